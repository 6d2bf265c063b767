"""The text of a continuation, made from its tokens one by one, up to a stop string or the end of text."""

from __future__ import annotations

from bisect import bisect_left
from codecs import getincrementaldecoder
from collections.abc import Sequence

from gpt_pretrain.tokenizers.base import Tokenizer

STOP, LENGTH = "stop", "length"  # why a continuation ends: with a stop string or the end of text, or with its last token


class ContinuedText:
    """The text of one continuation, which grows by a token at a time.

    Characters are held back until their last byte has arrived, and the beginning of a stop string until it turns out to be
    none. So what `add` returns can be shown at once. A stop string counts wherever it is in the new text, also across the
    borders of tokens, and is no part of the text.

    Args:
        tokenizer: The tokenizer of the model.
        max_new_tokens: Number of tokens after which the text ends.
        stop: Texts that end the continuation.

    Attributes:
        token_ids: The tokens so far, with the end of text.
        text: What `add` has returned so far.
        finish_reason: "stop", "length", or None as long as the text goes on.
    """

    def __init__(self, tokenizer: Tokenizer, *, max_new_tokens: int, stop: Sequence[str] = ()) -> None:
        self._tokenizer, self._max_new_tokens = tokenizer, max_new_tokens
        self._stop = [text for text in stop if text]
        self._decoder = getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""  # decoded, but perhaps the beginning of a stop string
        self.token_ids: list[int] = []
        self.offsets: list[int] = []  # where the text of each token begins, in characters of the continuation
        self.text = ""
        self.finish_reason: str | None = LENGTH if max_new_tokens == 0 else None

    def add(self, token_id: int) -> str:
        """Take the next token, and return the text that can be shown now."""
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
        """End the text before its time, and return what was held back; a stop string that is incomplete is part of it."""
        shown = "" if self.finish_reason is not None else self._held + self._decoder.decode(b"", final=True)
        self._held = ""
        self.text += shown
        return shown

    @property
    def n_shown(self) -> int:
        """The number of tokens that belong to the text shown so far; those of a stop string never do."""
        if self.finish_reason is not None and not self._held:
            return len(self.token_ids)
        return bisect_left(self.offsets, len(self.text))

    def _first_possible_stop(self) -> int:
        """Return the position from which on the held text may be the beginning of a stop string."""
        held = self._held
        lengths = (
            next((n for n in range(min(len(text) - 1, len(held)), 0, -1) if held.endswith(text[:n])), 0) for text in self._stop
        )
        return len(held) - max(lengths, default=0)
