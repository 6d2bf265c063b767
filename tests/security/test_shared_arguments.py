"""Pickles that name the same value again and again, so that a small file would be copied into a large memory."""

from __future__ import annotations

import io
import pickle
import struct

import pytest

from gpt_pretrain.checkpoints.serialization.torch_pickles import _StorageSizes
from gpt_pretrain.system.pickle_rules import PickledName, PickledReference, PickleRules
from gpt_pretrain.system.pickles import read_pickle
from gpt_pretrain.system.reading import DamagedFileError
from tests.helpers.hostile_files import read_plain_pickle

MODULE, NAME, COPIES = "some.module", "name", 3000


def repeated(argument: bytes, call: bytes) -> io.BytesIO:
    """Return a pickle that memoizes an argument and then makes the same call many times."""
    return io.BytesIO(b"\x80\x02" + argument + b"q\x00]" + (call + b"a") * COPIES + b".")


def test_calls_copy_no_more_than_the_file_holds() -> None:
    text = b"X" + struct.pack("<I", 300_000) + b"a" * 300_000
    rules = PickleRules(calls={f"{MODULE}.{NAME}": lambda value: value.encode("utf-16")})
    stream = repeated(text, f"c{MODULE}\n{NAME}\nh\x00\x85R".encode("latin-1"))
    with pytest.raises(DamagedFileError, match="would copy far more than it holds"):
        read_pickle(stream, rules, size=len(stream.getvalue()))


def test_names_are_counted() -> None:
    text = b"X" + struct.pack("<I", 1000) + b"a" * 1000
    stream = repeated(text, b"h\x00h\x00\x93")
    with pytest.raises(DamagedFileError, match="would copy far more than it holds"):
        read_pickle(stream, PickleRules(calls={}, inert=True), size=len(stream.getvalue()))


def test_large_numbers_are_few_among_the_keys() -> None:
    assert len(read_plain_pickle(pickle.dumps(dict.fromkeys(range(50000))))) == 50_000
    with pytest.raises(DamagedFileError, match="large numbers or fractions"):
        read_plain_pickle(pickle.dumps({number << 40: None for number in range(2000)}))


def test_a_tensor_has_few_dimensions() -> None:
    storage = PickledReference(("storage", PickledName("torch.FloatStorage"), "0", "cpu", 1))
    with pytest.raises(DamagedFileError, match="more than 64 dimensions"):
        _StorageSizes(1000).rebuild(storage, 0, (1,) * 20_000, (1,) * 20_000)
