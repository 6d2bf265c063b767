"""The protocol of every tokenizer, and functions that work with any of them.

Shapes: V vocab_size.
"""

from __future__ import annotations

import hashlib
from codecs import getincrementaldecoder
from collections.abc import Iterable, Iterator
from itertools import chain
from operator import index
from typing import Protocol, runtime_checkable

import numpy as np

from gpt_pretrain.errors import UserError
from gpt_pretrain.system.shown_values import short_repr

END_OF_TEXT = "<|endoftext|>"


@runtime_checkable
class Tokenizer(Protocol):
    """The interface of a tokenizer for the rest of the package.

    Attributes:
        name: The name from which `build_tokenizer` builds the same tokenizer again. With a definition, it is the name of the
            tokenizer's source and the beginning of its checksum.
        vocab_size: Number of token ids.
        eos_id: The id of `<|endoftext|>`, or None if there is none.
        definition: Everything that `restore_tokenizer` needs, as JSON; None if the name is enough.
        keeps_bytes: Whether the tokens of a text have exactly its bytes. Other tokenizers change a text, or add blanks to it.
        unknown_id: The id for text that the vocabulary lacks; None if it has everything, or refuses such a text.
    """

    @property
    def name(self) -> str: ...

    @property
    def vocab_size(self) -> int: ...

    @property
    def eos_id(self) -> int | None: ...

    @property
    def definition(self) -> str | None: ...

    @property
    def keeps_bytes(self) -> bool: ...

    @property
    def unknown_id(self) -> int | None: ...

    def encode(self, text: str) -> list[int]:
        """Return the token ids of text, with `<|endoftext|>` encoded as eos_id."""
        ...

    def encode_ordinary(self, text: str) -> np.ndarray:
        """Return the token ids of text as uint32, with `<|endoftext|>` treated as ordinary text."""
        ...

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes of a token, or no bytes if the id is unused."""
        ...


def check_one_text(text: object) -> None:
    """Check that what is to be encoded is a single text.

    Raises:
        UserError: If it is something else, such as None, bytes or a list of texts.
    """
    if not isinstance(text, str):
        raise UserError(f"text={short_repr(text)}: must be a text (str). Decode bytes first, and encode each text by itself.")


def encode_with_end_of_text(tokenizer: Tokenizer, text: str) -> list[int]:
    """Return the token ids of text, with `<|endoftext|>` encoded as eos_id, for a tokenizer that only has `encode_ordinary`.

    Without an eos_id, the marker is left out.
    """
    check_one_text(text)
    first, *rest = text.split(END_OF_TEXT)
    token_ids: list[int] = tokenizer.encode_ordinary(first).tolist()
    end = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
    for part in rest:
        token_ids += [*end, *tokenizer.encode_ordinary(part).tolist()]
    return token_ids


def decode(tokenizer: Tokenizer, token_ids: Iterable[int]) -> str:
    """Return the text of token ids, with invalid UTF-8 replaced by U+FFFD.

    Args:
        token_ids: A list of ids, or an array or a tensor of whole numbers, (T,).

    Raises:
        UserError: If it is something else, such as the two dimensions that `generate` returns, or if an id is outside of the
            vocabulary.
    """
    try:
        # An element of a tensor is equal to no key of a vocabulary's table, whatever its number.
        ids = [index(token_id) for token_id in token_ids]
    except TypeError as error:
        shown = f"={short_repr(token_ids)}"
        if hasattr(token_ids, "shape") and hasattr(token_ids, "dtype"):
            shown = f" has shape {tuple(token_ids.shape)} and dtype {token_ids.dtype}"
        raise UserError(
            f"token_ids{shown}: they must be whole numbers, (T,), such as tokenizer.encode(text) or generate(...)[0]."
        ) from error
    if (unknown := next((one for one in ids if not 0 <= one < tokenizer.vocab_size), None)) is not None:
        raise UserError(
            f"token_ids has the id {unknown}, and those of the tokenizer {tokenizer.name[:100]} are 0 to "
            f"{tokenizer.vocab_size - 1}. Use the tokenizer that made the ids. If the model has more rows, give generate "
            f"banned_ids=range({tokenizer.vocab_size}, model.config.vocab_size)."
        )
    return "".join(decode_stream(tokenizer, ids))


def decode_stream(tokenizer: Tokenizer, token_ids: Iterable[int]) -> Iterator[str]:
    """Yield the text of token ids piece by piece. An incomplete character is held back until its last byte arrives.

    Ids outside of the vocabulary are left out: a model may have more rows than its tokenizer has tokens.
    """
    decoder = getincrementaldecoder("utf-8")(errors="replace")
    for token_id in token_ids:
        yield decoder.decode(tokenizer.token_bytes(token_id))
    yield decoder.decode(b"", final=True)


def token_byte_lengths(tokenizer: Tokenizer) -> np.ndarray:
    """Return the number of text bytes of each token, int64, (V,). eos_id counts as 0.

    All numbers are 0 if the tokens of a text do not show its size, for example if each word adds a blank.
    """
    if not tokenizer.keeps_bytes:
        return np.zeros(tokenizer.vocab_size, dtype=np.int64)
    lengths = np.array([len(tokenizer.token_bytes(token_id)) for token_id in range(tokenizer.vocab_size)], dtype=np.int64)
    if tokenizer.eos_id is not None:
        lengths[tokenizer.eos_id] = 0
    return lengths


def missing_ids(tokenizer: Tokenizer, n_rows: int) -> list[int]:
    """Return the rows of a model without a token of its tokenizer. These ids must never be generated.

    Args:
        n_rows: Rows of the model's vocabulary.
    """
    known = min(tokenizer.vocab_size, n_rows)
    return [*(token_id for token_id in range(known) if not tokenizer.token_bytes(token_id)), *range(known, n_rows)]


def token_itemsize(vocab_size: int) -> int:
    """Return the number of bytes that a token id takes in a file."""
    return 2 if vocab_size <= 1 << 16 else 4


def fingerprint(tokenizer: Tokenizer) -> str:
    """Return the SHA-256 of a tokenizer's definition, or of all tokens in the order of their ids, in hexadecimal.

    Tokenizers with the same fingerprint give the same ids to every text. An alphabet has the same fingerprint with and without an
    end of text, since its other ids are the same.
    """
    if tokenizer.definition is not None:
        return hashlib.sha256(tokenizer.definition.encode()).hexdigest()
    count, eos_id = tokenizer.vocab_size, tokenizer.eos_id
    tokens: Iterator[bytes] = map(tokenizer.token_bytes, range(count))
    if eos_id is None:
        count, eos_id, tokens = count + 1, count, chain(tokens, [END_OF_TEXT.encode()])
    digest = hashlib.sha256(f"{count} {eos_id}".encode())
    for token in tokens:  # One at a time: a few bytes of a file can stand for millions of ids.
        digest.update(len(token).to_bytes(4, "little") + token)
    return digest.hexdigest()
