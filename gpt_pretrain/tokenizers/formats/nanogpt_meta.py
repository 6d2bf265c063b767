"""Read nanoGPT's meta.pkl, the table of a corpus's tokens.

Source: karpathy/nanoGPT, data/shakespeare_char/prepare.py. It writes vocab_size, itos and stoi; other programs write only some.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

from gpt_pretrain.system.pickle_rules import PickledName, PickleRules
from gpt_pretrain.system.pickles import read_pickle
from gpt_pretrain.system.reading import DamagedFileError
from gpt_pretrain.system.shown_values import describe_value, short_repr
from gpt_pretrain.tokenizers.characters import CharacterTokenizer
from gpt_pretrain.tokenizers.tables import MAX_IDS, MAX_TOKEN_CHARACTERS, IdTokenizer, TableTokenizer

META = "meta.pkl"
MAX_META_BYTES = 20_000_000  # One character takes 20 bytes, and Unicode has 150,000.
MAX_TEXT_BYTES = 400  # Bytes of a NumPy text. A few bytes of a pickle can repeat it.


def read_meta(content: bytes, *, end_of_text: bool, label: str = "nanogpt") -> CharacterTokenizer | TableTokenizer | IdTokenizer:
    """Return the tokenizer that a meta.pkl describes.

    Args:
        end_of_text: Whether an alphabet gets an end of text. It then has one id more than nanoGPT's own models.

    Raises:
        DamagedFileError: If the file contains anything but plain data and NumPy's numbers, or has no vocabulary.
    """
    if len(content) > MAX_META_BYTES:
        raise DamagedFileError(f"it has more than {MAX_META_BYTES:,} bytes")
    fields = read_pickle(io.BytesIO(content), NUMPY_NUMBERS, size=len(content))
    if not isinstance(fields, dict):
        raise DamagedFileError(f"it holds {describe_value(fields)}, not a table of tokens")
    tokens, size = _tokens(fields), fields.get("vocab_size")
    if tokens is None:
        if not isinstance(size, int) or not 0 < size <= MAX_IDS:
            stated = "" if size is None else f" of up to {MAX_IDS:,}: it states {short_repr(size)}"
            raise DamagedFileError(f"it has neither a table itos of the tokens by their ids nor a vocab_size{stated}")
        return IdTokenizer(size)
    _check_inverse(fields.get("stoi"), tokens)
    if size is not None and size != len(tokens):
        raise DamagedFileError(f"its vocab_size is {short_repr(size)}, but it has {len(tokens):,} tokens")
    if all(len(token) == 1 for token in tokens) and len(set(tokens)) == len(tokens):
        return CharacterTokenizer("".join(tokens), end_of_text=end_of_text)
    return TableTokenizer(label, tokens)


def _tokens(fields: dict[Any, Any]) -> list[str] | None:
    """Return the tokens in the order of their ids, from itos or from its inverse, stoi; None if there is neither."""
    table = fields.get("itos")
    if table is None and isinstance(fields.get("stoi"), dict):
        table = _inverse(fields["stoi"])
    if isinstance(table, list | tuple):
        table = dict(enumerate(table))
    if table is None:
        return None
    if not isinstance(table, dict) or not table or table.keys() != set(range(len(table))):
        raise DamagedFileError("it has no table itos of the tokens by their ids")
    tokens = [_as_text(table[token_id]) for token_id in range(len(table))]
    for token in tokens:
        if not _is_token(token):
            raise DamagedFileError(f"its itos holds {short_repr(token)}, which is not a token")
    return tokens


def _is_token(token: Any) -> bool:
    """Return whether a value is a text of a plausible length. A file may contain a text once and refer to it a million times."""
    if not isinstance(token, str) or not 0 < len(token) <= MAX_TOKEN_CHARACTERS:
        return False
    try:
        token.encode()
    except UnicodeEncodeError:  # half a surrogate pair
        return False
    return True


def _inverse(ids: Mapping[Any, Any]) -> list[Any]:
    """Return the tokens in the order of their ids. Ids are not used as keys, since chosen numbers can collide in a dict.

    Raises:
        DamagedFileError: If the ids are not the numbers from 0 on.
    """
    table: list[Any] = [None] * len(ids)
    for token, token_id in ids.items():
        if type(token_id) is not int or not 0 <= token_id < len(ids):
            raise DamagedFileError(
                f"its stoi has {len(ids):,} tokens and gives {short_repr(token)} the id {short_repr(token_id)}"
            )
        if table[token_id] is not None:
            raise DamagedFileError("two tokens of its stoi have the same id")
        table[token_id] = token
    return table


def _check_inverse(ids: Any, tokens: list[str]) -> None:
    """Check that stoi is the inverse of itos. Other programs encode with stoi and decode with itos.

    Raises:
        DamagedFileError: If they contradict each other.
    """
    for token, token_id in ids.items() if isinstance(ids, dict) else ():
        known = type(token_id) is int and 0 <= token_id < len(tokens)
        if not known or tokens[token_id] != _as_text(token):
            other = f"but by its itos that is {short_repr(tokens[token_id])}" if known else "which its itos lacks"
            raise DamagedFileError(f"its stoi gives {short_repr(token)} the id {short_repr(token_id)}, {other}")


def _as_text(token: Any) -> Any:
    """Return a token as text. Some tokens, such as pixels or notes of music, are numbers."""
    return str(token) if type(token) is int else token


class _Dtype:
    """A stand-in for a NumPy dtype.

    Args:
        code: Its kind and size, such as "i8".
    """

    def __init__(self, code: object, *_: object) -> None:
        self.code = code if isinstance(code, str) else ""


def _number(dtype: object, data: object) -> int | str:
    """Return the value of a NumPy scalar."""
    code = dtype.code if isinstance(dtype, _Dtype) else ""
    if isinstance(data, bytes) and len(data) <= MAX_TEXT_BYTES:
        if code[:1] in ("i", "u") and len(data) <= 8:
            return int.from_bytes(data, "little", signed=code[0] == "i")
        if code[:1] == "U":
            return data.decode("utf-32-le", errors="replace").rstrip("\0")
    raise DamagedFileError(f"it holds a NumPy value of the type {short_repr(code)}, where a whole number or a text is expected")


def _encode(text: object, encoding: object) -> bytes:
    """Return bytes from the form in which old pickle protocols store them."""
    if not isinstance(text, str) or len(text) > MAX_TEXT_BYTES or encoding not in ("latin1", "latin-1"):
        raise DamagedFileError("it calls a function, which a table of tokens does not need")
    return text.encode("latin-1", errors="replace")


def _build(target: object, _state: object) -> None:
    if not isinstance(target, _Dtype | PickledName):
        raise DamagedFileError(f"it changes a {type(target).__name__}")


NUMPY_NUMBERS = PickleRules(
    calls={
        "numpy.dtype": _Dtype,
        "numpy.core.multiarray.scalar": _number,
        "numpy._core.multiarray.scalar": _number,
        "_codecs.encode": _encode,
    },
    build=_build,
)
