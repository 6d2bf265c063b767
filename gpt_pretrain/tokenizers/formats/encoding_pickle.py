"""Read tokenizer.pkl, the pickle of a tiktoken encoding in which nanochat keeps its vocabulary.

Source: karpathy/nanochat, `nanochat/tokenizer.py`; tiktoken's `Encoding.__getstate__`.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

from gpt_pretrain.system.pickle_rules import InertObject, PickleRules
from gpt_pretrain.system.pickles import read_pickle
from gpt_pretrain.system.reading import DamagedFileError

ENCODING_FILE = "tokenizer.pkl"
ENCODING_CLASS = "tiktoken.core.Encoding"
MARK = ENCODING_CLASS.rpartition(".")[0].encode()  # every such pickle contains it, in each protocol


@dataclass(frozen=True)
class PickledEncoding:
    """The parts of a tiktoken encoding.

    Args:
        ranks: The tokens and their ids.
        specials: The special tokens and their ids.
        pattern: The regular expression that splits a text, in tiktoken's syntax.
    """

    ranks: dict[bytes, int]
    specials: dict[str, int]
    pattern: str


def is_encoding_pickle(content: bytes) -> bool:
    """Return whether a pickle may hold a tiktoken encoding, by its first bytes."""
    return MARK in content[:100]


def read_encoding_pickle(content: bytes) -> PickledEncoding:
    """Return the parts of a pickled encoding. Nothing is imported or called.

    Raises:
        DamagedFileError: If the pickle holds anything else.
    """
    found = read_pickle(io.BytesIO(content), PickleRules(calls={}, inert=True), size=len(content))
    state = found.state if isinstance(found, InertObject) and found.name == ENCODING_CLASS else None
    if not isinstance(state, dict):
        raise DamagedFileError("it is no encoding of tiktoken with its ranks")
    ranks, specials, pattern = (state.get(name) for name in ("mergeable_ranks", "special_tokens", "pat_str"))
    if not (_is_table(ranks, bytes) and _is_table(specials, str) and isinstance(pattern, str)):
        raise DamagedFileError("it lacks the ranks, the special tokens or the pattern of an encoding")
    assert isinstance(ranks, dict) and isinstance(specials, dict)
    return PickledEncoding(ranks, specials, pattern)


def _is_table(value: object, kind: type) -> bool:
    """Return whether a value is a table from tokens of a type to ids."""
    return isinstance(value, dict) and all(type(token) is kind and type(number) is int for token, number in value.items())
