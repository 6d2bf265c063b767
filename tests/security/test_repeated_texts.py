"""Pickles in which a few bytes name a long text, or a long key, again and again."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch

from gpt_pretrain.checkpoints.serialization.tensor_files import read_torch_content
from gpt_pretrain.errors import UserError
from gpt_pretrain.system.reading import DamagedFileError
from gpt_pretrain.tokenizers.formats.nanogpt_meta import read_meta
from tests.helpers.hostile_files import read_plain_pickle
from tests.helpers.resource_limits import within

LONG = "a" * 100_000


class OfNoKnownClass:
    """An object that stays inert."""


def test_a_tuple_of_many_parts_is_no_key() -> None:
    many = b"(" + b"N" * 100_000 + b"t"
    with within(0.5, 50), pytest.raises(DamagedFileError, match="a key of a dict has 100,000 parts, more than the limit of 20"):
        read_plain_pickle(b"\x80\x02}" + many + b"q\x00Ns" + b"h\x00Ns" * 500 + b".")
    assert read_plain_pickle(pickle.dumps({(1, "a", None): 2}, protocol=2)) == {(1, "a", None): 2}


@pytest.mark.parametrize("content", [[LONG] * 20_000, [[LONG]] * 20_000, {f"t{n}": LONG for n in range(20_000)}])
def test_a_text_is_not_repeated_far_beyond_the_file(content: object) -> None:
    with within(1, 50), pytest.raises(DamagedFileError, match=r"far more than it holds|repeated far too often"):
        read_plain_pickle(pickle.dumps(content, protocol=2))
    assert read_plain_pickle(pickle.dumps([LONG] * 15, protocol=2)) == [LONG] * 15


def test_a_text_within_objects_of_unknown_classes_is_not_repeated_either(tmp_path: Path) -> None:
    found = OfNoKnownClass()
    found.__dict__ = {f"t{n}": LONG for n in range(20_000)}
    torch.save({"wte.weight": torch.zeros(2, 2), "more": found}, tmp_path / "a.pth")
    with within(2, 100), pytest.raises(UserError, match="holds more than tensors and plain data"):
        read_torch_content(tmp_path / "a.pth")


def test_the_tokens_of_a_table_are_short() -> None:
    with within(0.5, 50), pytest.raises(DamagedFileError, match=r"its itos holds 'aaa.*', which is not a token"):
        read_meta(pickle.dumps({"itos": [LONG] * 15}, protocol=2), end_of_text=False)
