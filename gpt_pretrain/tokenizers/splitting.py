"""Split texts of any size into parts that are encoded one by one. Together, the parts have the token ids of the whole text.

Texts are split because a text may be larger than the memory, and because tiktoken's regular expressions give up after a million
steps. The end-of-text marker is its own part. Other parts end at a position that no token of a supported encoding spans: between
a letter or a digit and a space or a punctuation mark.

Half a million characters of a text may lack such a position, for example in a genome or a run of spaces. Such a text is split
between two tokens of its own encoding. That gives the ids of the whole, because byte-pair encoding is local: a list of tokens
encodes its text if and only if every two neighbors encode theirs.

In rare cases no split keeps the ids, for example in half a million spaces between two line feeds in some vocabularies. A few
tokens at the split may then differ from the whole text's. Some vocabularies put a blank before a text. No blank is put before the
later parts.

Source: https://github.blog/ai-and-ml/llms/so-many-tokens-so-little-time-introducing-a-faster-more-flexible-byte-pair-tokenizer/
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from gpt_pretrain.system.line_ends import unify_line_ends
from gpt_pretrain.tokenizers.base import END_OF_TEXT, Tokenizer
from gpt_pretrain.tokenizers.unknown import UnknownText
from gpt_pretrain.tokenizers.vocabulary import VocabularyTokenizer

PART = 1 << 19  # Characters to encode in one call.
LOOKAHEAD = 1 << 12  # Characters after a part. They are encoded with it to find a split point between two tokens.
MAX_TRIES = 20  # Split points of either kind to check.
SHORT_PART, SHORT_LOOKAHEAD, SHORT_TRIES = 1 << 12, 1 << 9, 4
CHECKED = 256  # Characters around a split point to encode again.

# The apostrophe is missing because o200k_base matches "don't" as one piece.
CUT_BEFORE = " \t\n\r" + '!"#$%&()*+,-./:;<=>?@[\\]^_`{|}~' + "\uff0c\u3002\u3001\uff01\uff1f\uff1b\uff1a"
SAFE_SPLIT = re.compile(rf"(?<=[^\W_])[{re.escape(CUT_BEFORE)}]")
SEARCHED = 1 << 7  # Characters to search for a safe split at a time. Most texts have several safe splits in them.


@dataclass(frozen=True)
class PartSizes:
    """Sizes by which a text is split.

    Args:
        part: Characters to encode in one call.
        lookahead: Characters after a part. They are encoded with it to find a split point between two tokens.
        tries: Split points between two tokens to check.
    """

    part: int
    lookahead: int
    tries: int

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> PartSizes:
        """Return the sizes for a tokenizer. They are small if a part may take much time or memory for its length."""
        if not isinstance(tokenizer, VocabularyTokenizer):
            return cls(PART, LOOKAHEAD, MAX_TRIES)
        part = min(SHORT_PART, PART) if tokenizer.may_rescan else PART
        lookahead, tries = (SHORT_LOOKAHEAD, SHORT_TRIES) if tokenizer.may_rescan else (LOOKAHEAD, MAX_TRIES)
        largest = tokenizer.largest_part
        return cls(min(part, largest), min(lookahead, LOOKAHEAD, largest // 2), tries)


def split_point(text: str, tokenizer: Tokenizer, start: int = 0) -> int:
    """Return the end of the part that begins at `start`.

    Args:
        text: The text, with at least a whole part after `start`. Only the part and its lookahead are read.
    """
    sizes = PartSizes.of(tokenizer)
    for position in itertools.islice(_safe_splits(text, start, start + sizes.part), MAX_TRIES):
        if _is_boundary(text, position, tokenizer):
            return position
    if (length := _last_token_split(text[start : start + sizes.part + sizes.lookahead], tokenizer, sizes)) is not None:
        return start + length
    # Tokens without the characters of the text, such as unknown tokens, show no position.
    anywhere = range(start + sizes.part, start + sizes.part - min(sizes.part, MAX_TRIES), -1)
    return next((position for position in anywhere if _is_boundary(text, position, tokenizer)), start + sizes.part)


def split_text(text: str, tokenizer: Tokenizer) -> Iterator[str]:
    """Split a text without end-of-text markers into parts. The split points depend only on the text and the tokenizer."""
    start, part = 0, PartSizes.of(tokenizer).part
    while len(text) - start > part:
        end = split_point(text, tokenizer, start)
        yield text[start:end]
        start = end
    yield text[start:] if start else text


def split_start(text: str, tokenizer: Tokenizer) -> Iterator[str]:
    """Split the beginning of a text at the same points as `split_text` splits the whole. The last part is the unsplit rest."""
    start, sizes = 0, PartSizes.of(tokenizer)
    # The last characters may be the beginning of an end-of-text marker.
    while len(text) - start > sizes.part + sizes.lookahead + len(END_OF_TEXT):
        end = split_point(text, tokenizer, start)
        yield text[start:end]
        start = end
    yield text[start:]


def split_pieces(pieces: Iterable[str], tokenizer: Tokenizer) -> Iterator[str]:
    """Split a text that arrives in pieces of any kind into parts. Each end-of-text marker is its own part."""
    rest = ""
    for piece in pieces:
        rest += piece
        *complete, rest = rest.split(END_OF_TEXT)
        for text in complete:
            yield from split_text(text, tokenizer)
            yield END_OF_TEXT
        *parts, rest = split_start(rest, tokenizer)
        yield from parts
    yield from split_text(rest, tokenizer)


def encode_pieces(
    pieces: Iterable[str],
    tokenizer: Tokenizer,
    *,
    unknown: UnknownText | None = None,
    encode: Callable[[str], np.ndarray] | None = None,
) -> Iterator[np.ndarray]:
    """Yield the token ids of a text that arrives in pieces, uint32. Together they are the ids of the whole text.

    An end-of-text marker ends a document. A vocabulary without an end of text has no token for it.

    Args:
        unknown: Counts the tokens for text that the vocabulary lacks.
        encode: Gives the same ids as the tokenizer's `encode_ordinary`, but faster.
    """
    continues = False
    for part in split_pieces(pieces, tokenizer):
        is_end = part == END_OF_TEXT
        if is_end and tokenizer.eos_id is not None:
            yield np.array([tokenizer.eos_id], np.uint32)
        elif part and not is_end:
            token_ids = encode_part(part, tokenizer, continues=continues, encode=encode)
            if unknown is not None:
                unknown.add(part, token_ids)
            yield token_ids
        continues = not is_end and (continues or bool(part))


def encode_part(
    text: str, tokenizer: Tokenizer, *, continues: bool, encode: Callable[[str], np.ndarray] | None = None
) -> np.ndarray:
    """Return the token ids of a part of a text, uint32.

    Args:
        continues: Whether it follows another part. No blank is then put before it.
        encode: Gives the same ids as the tokenizer's `encode_ordinary`, but faster.
    """
    before, length = _before_continuation(tokenizer) if continues else ("", 0)
    return (encode or tokenizer.encode_ordinary)(before + text)[length:]


def adds_blank(tokenizer: Tokenizer) -> bool:
    """Return whether a tokenizer puts a blank before a text."""
    return bool(_before_continuation(tokenizer)[1])


def _before_continuation(tokenizer: Tokenizer) -> tuple[str, int]:
    return tokenizer.before_continuation if isinstance(tokenizer, VocabularyTokenizer) else ("", 0)


def encode_prompt(text: str, tokenizer: Tokenizer) -> list[int]:
    """Return the token ids of a prompt of any length, with its special tokens."""
    return _encode_in_parts(unify_line_ends(text), tokenizer)


def encode_whole(text: str, tokenizer: Tokenizer) -> list[int]:
    """Return the token ids that a tokenizer's `encode` gives to a text of any length. A long text is encoded in parts."""
    return tokenizer.encode(text) if len(text) <= PartSizes.of(tokenizer).part else _encode_in_parts(text, tokenizer)


def _encode_in_parts(text: str, tokenizer: Tokenizer) -> list[int]:
    token_ids, continues = list[int](), False
    for part in split_pieces([text], tokenizer):
        is_end = part == END_OF_TEXT
        before, length = _before_continuation(tokenizer) if continues else ("", 0)
        if not is_end or tokenizer.eos_id is not None:
            token_ids += tokenizer.encode(before + part)[length:]
        continues = not is_end and (continues or bool(part))
    return token_ids


def _safe_splits(text: str, start: int, end: int) -> Iterator[int]:
    """Yield the positions after `start`, from `end` backwards, at which tiktoken's encodings always end a token."""
    high = end + 1
    while high > start + 1:
        low = max(high - SEARCHED, start + 1)
        yield from reversed([match.start() for match in SAFE_SPLIT.finditer(text, low, high)])
        high = low


def _is_boundary(text: str, position: int, tokenizer: Tokenizer) -> bool:
    """Return whether the text around a position has the tokens of its two sides. Other tokenizers may join both sides."""
    before, after = text[max(position - CHECKED, 0) : position], text[position : position + CHECKED]
    left, both = (encode_part(part, tokenizer, continues=False).tolist() for part in (before, before + after))
    return bool(left + encode_part(after, tokenizer, continues=True).tolist() == both)


def _last_token_split(window: str, tokenizer: Tokenizer, sizes: PartSizes) -> int | None:
    """Return a position between two tokens at which both sides keep their tokens, or None if there is none.

    Args:
        window: A part of the text. If more text follows, the tokens at its end may differ from the whole text's.
    """
    ids = encode_part(window, tokenizer, continues=True).tolist()
    latest = min(sizes.part, len(window) - sizes.lookahead // 2)
    near = _token_boundaries(ids, window, tokenizer, start=len(window) - 2 * sizes.lookahead)
    tried = [(index, position) for index, position in near if position <= latest][: sizes.tries]
    for index, position in tried:
        # At the end of a text, some patterns match all white space as one piece.
        earlier = [boundary for boundary in near if boundary[1] <= position - CHECKED and not window[position - 1].isspace()]
        first_index, first = earlier[0] if earlier else (0, 0)
        if _encodes_to(window[position:], ids[index:], tokenizer) and _encodes_to(
            window[first:position], ids[first_index:index], tokenizer
        ):
            return position
    # The same patterns end a piece after the last line feed of a run of white space.
    last_line = window.rfind("\n", 0, latest) + 1
    index = {position: index for index, position in _token_boundaries(ids, window, tokenizer)}.get(last_line, 0)
    sides = (window[:last_line], ids[:index]), (window[last_line:], ids[index:])
    if index and all(_encodes_to(side, side_ids, tokenizer) for side, side_ids in sides):
        return last_line
    return None


def _encodes_to(text: str, ids: list[int], tokenizer: Tokenizer) -> bool:
    return bool(encode_part(text, tokenizer, continues=True).tolist() == ids)


def _token_boundaries(ids: list[int], text: str, tokenizer: Tokenizer, *, start: int = 0) -> list[tuple[int, int]]:
    """Return the token boundaries that are also character boundaries, from the end of a text backwards.

    Args:
        ids: The tokens of the text.
        start: The first position to return.

    Returns:
        The index of the token after each boundary, and the position of the character after it.
    """
    data, boundaries = text[max(start, 0) :].encode(), list[tuple[int, int]]()
    end, position = len(data), len(text)
    for index in range(len(ids) - 1, 0, -1):
        token = tokenizer.token_bytes(ids[index])
        begin = end - len(token)
        if begin < 0 or data[begin:end] != token:  # A tokenizer may change the text that it encodes.
            break
        position -= sum(byte & 0xC0 != 0x80 for byte in token)
        if token and data[begin] & 0xC0 != 0x80:
            boundaries.append((index, position))
        end = begin
    return boundaries
