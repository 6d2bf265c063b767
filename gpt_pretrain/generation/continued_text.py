"""Make the text of a continuation from its tokens, one by one, up to a stop string or the end of text."""

from __future__ import annotations

from bisect import bisect_left
from codecs import getincrementaldecoder
from collections.abc import Sequence

from gpt_pretrain.tokenizers.base import Tokenizer

STOP, LENGTH = "stop", "length"  # reasons for the end: a stop string or the end of text, or the last token


class ContinuedText:
    """The text of one continuation. It grows by one token at a time.

    Characters are held back until their last byte has arrived. A possible beginning of a stop string is held back until it turns
    out not to be one. The text from `add` can therefore be shown at once. A stop string counts anywhere in the new text, even
    across the borders of tokens. It is not part of the text.

    Args:
        tokenizer: The tokenizer of the model.
        max_new_tokens: Number of tokens after which the text ends.
        stop: Texts that end the continuation.

    Attributes:
        token_ids: The tokens so far, including the end of text.
        text: The text that `add` has returned so far.
        finish_reason: "stop", "length", or None while the text continues.
    """

    def __init__(self, tokenizer: Tokenizer, *, max_new_tokens: int, stop: Sequence[str] = ()) -> None:
        self._tokenizer, self._max_new_tokens = tokenizer, max_new_tokens
        self._stop = [text for text in stop if text]
        self._decoder = getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""  # decoded text that may be the beginning of a stop string
        self.token_ids: list[int] = []
        self.offsets: list[int] = []  # start of each token's text, in characters of the continuation
        self.text = ""
        self.finish_reason: str | None = LENGTH if max_new_tokens == 0 else None

    def add(self, token_id: int) -> str:
        """Add the next token, and return the text that can be shown now."""
        self.offsets.append(len(self.text) + len(self._held))
        self.token_ids.append(token_id)
        if token_id == self._tokenizer.eos_id:
            self.finish_reason = STOP
        elif len(self.token_ids) == self._max_new_tokens:
            self.finish_reason = LENGTH
        new = b"" if token_id == self._tokenizer.eos_id else self._tokenizer.token_bytes(token_id)
        self._held += self._decoder.decode(new, final=self.finish_reason is not None)
        found = [start for text in self._stop if (start := self._held.find(text)) >= 0]
        if found:
            self.finish_reason = STOP
            shown = self._held[: min(found)]
        else:
            shown = self._held if self.finish_reason is not None else self._held[: self._first_possible_stop()]
        self._held = self._held[len(shown) :]
        self.text += shown
        return shown

    def close(self) -> str:
        """End the text early, and return the text held back. An incomplete stop string is part of it."""
        shown = "" if self.finish_reason is not None else self._held + self._decoder.decode(b"", final=True)
        self._held = ""
        self.text += shown
        return shown

    @property
    def n_shown(self) -> int:
        """The number of tokens in the text shown so far. Tokens of a stop string never count."""
        if self.finish_reason is not None and not self._held:
            return len(self.token_ids)
        return bisect_left(self.offsets, len(self.text))

    def _first_possible_stop(self) -> int:
        """Return the position in the held text at which a stop string may begin."""
        held = self._held
        lengths = (
            next((n for n in range(min(len(text) - 1, len(held)), 0, -1) if held.endswith(text[:n])), 0) for text in self._stop
        )
        return len(held) - max(lengths, default=0)
