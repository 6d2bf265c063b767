"""Files with many tensors, or long names, whose cost must not grow with a square of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from gpt_pretrain.checkpoints.recognition.indexed_files import read_indexed
from gpt_pretrain.checkpoints.recognition.tensor_groups import TensorGroups, group_tensors
from gpt_pretrain.checkpoints.serialization.tensor_files import loaded_tensor
from gpt_pretrain.errors import UserError
from tests.helpers.resource_limits import within


def grouped(names: list[str]) -> TensorGroups:
    """Return the groups of a file with tensors of these names, each with a value of its own."""
    return group_tensors("a.pth", {name: loaded_tensor(name, torch.full((2, 2), number)) for number, name in enumerate(names)})


def test_a_file_holds_few_models() -> None:
    with pytest.raises(UserError, match=r"a\.pth holds 20 models"):  # which one counts, nothing says
        grouped([f"m{number}.wte.weight" for number in range(20)])
    with within(1, 100), pytest.raises(UserError, match=r"a\.pth holds 3,000 models\. Save the state_dict"):
        grouped([f"m{number}.wte.weight" for number in range(3000)])


def test_the_most_frequent_prefix_of_many_is_found_in_linear_time() -> None:
    names = [f"m{number}.h.0.ln_1.weight" for number in range(15_000)]
    with within(3, 200):
        groups = grouped([*names, "m7.h.1.ln_1.weight"])
    assert {stored.name for stored in groups.slots.values()} == {"m7.h.0.ln_1.weight", "m7.h.1.ln_1.weight"}


@pytest.mark.parametrize("name", ["loss" * 30_000 + "-", ".quant_state" * 10_000 + "\n\nx"])
def test_no_pattern_is_looked_for_in_a_long_name(name: str) -> None:
    with within(0.5, 100), pytest.raises(UserError, match=r"a name of 120,00\d characters, more than the limit of 1,000"):
        grouped(["wte.weight", name])
    assert grouped(["wte.weight", "module." * 141 + "wpe.bias"]).slots


def test_an_index_of_many_files_is_checked_in_linear_time(tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {f"t{number}": f"{number}.safetensors" for number in range(15_000)}}))
    with within(1.5, 100), pytest.raises(UserError, match=r"lists tensors in files that are missing: 0\.safetensors"):
        read_indexed(index)
