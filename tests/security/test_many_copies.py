"""Files of weights in which a few bytes stand for many tensors or containers."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from gpt_pretrain.checkpoints.checkpoint_file import NoSuchWeightsError
from gpt_pretrain.checkpoints.formats.layouts import TensorSlot
from gpt_pretrain.checkpoints.recognition import tensor_groups
from gpt_pretrain.checkpoints.recognition.architecture import _stored_names
from gpt_pretrain.checkpoints.recognition.file_content import find_weights
from gpt_pretrain.checkpoints.recognition.tensor_groups import Slots, group_tensors
from gpt_pretrain.checkpoints.recognition.tensor_names import is_training_state
from gpt_pretrain.checkpoints.serialization.tensor_files import StoredTensor, loaded_tensor, read_safetensors
from gpt_pretrain.checkpoints.sharded import ShardReader, rank_file_name, write_rank_file
from gpt_pretrain.checkpoints.weight_averages import AVERAGE, choose_weights
from gpt_pretrain.checkpoints.weight_source import WeightSource
from tests.helpers.resource_limits import within


def test_copies_of_a_tensor_are_compared_a_limited_number_of_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensor_groups, "FREE_COMPARED", 0)
    stored = torch.zeros(300, 100)
    names = [f"m{number}.h.0.mlp.c_fc.weight" for number in range(22)]
    groups = group_tensors("a.pth", {name: loaded_tensor(name, stored) for name in names[:21]})
    assert len(groups.slots) == 1 and not groups.misfits
    groups = group_tensors("a.pth", {name: loaded_tensor(name, stored) for name in names})
    assert groups.misfits.causes == [f"it holds far too many copies of tensors, such as {names[21]}."]


def test_a_list_of_many_empty_containers_takes_little_memory() -> None:
    with within(2, 150):
        assert find_weights([()] * 2_000_000) is None


def test_each_tensor_of_many_is_read_without_the_others(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    save_file({f"t{number}": torch.full((1,), float(number)) for number in range(5000)}, file)
    tensors = read_safetensors(file)
    with within(0.5, 50):
        assert [int(tensors[f"t{number}"].read()) for number in range(1000)] == list(range(1000))


def test_the_names_of_missing_tensors_are_told_in_linear_time() -> None:
    names = [f"trf_blocks.{number}.norm1.weight{part}" for number in range(1000) for part in range(6)]
    slots: Slots = {TensorSlot(name): StoredTensor(name, (), torch.float32, torch.Tensor) for name in names}
    missing = [TensorSlot(f"trf_blocks.{number}.norm2.bias") for number in range(1000)]
    with within(0.2, 50):
        assert _stored_names(missing, slots)[1] == "trf_blocks.1.norm2.bias"


def test_long_names_of_a_training_state_are_looked_at_once() -> None:
    with within(0.2, 50):
        assert not any(is_training_state("loss" * 240 + f"-{number}") for number in range(1000))
    assert all(map(is_training_state, ("train_loss_fn", "loss", "val_acc_3.weight", "_device", "step")))
    assert not any(map(is_training_state, ("head", "steps_of", "closs-fn")))


def test_the_files_with_rows_of_a_tensor_are_not_looked_for_in_all_files(tmp_path: Path) -> None:
    names = [f"t{number}" for number in range(2000)]
    write_rank_file(tmp_path / "shards", 0, {name: torch.zeros(1) for name in names})
    files = [{"name": rank_file_name(rank), "sha256": "", "rows": {}} for rank in range(1, 3000)]
    first = {"name": rank_file_name(0), "sha256": "", "rows": {name: [0, 1] for name in names}}
    reader = ShardReader(tmp_path / "last.ckpt", {"shards": {"folder": "shards", "files": [first, *files]}}, check=False)
    with within(0.4, 50):
        assert sum(len(reader.rows(name, 0, 1)) for name in names) == 2000


def test_a_mean_of_checkpoints_reads_each_file_once(tmp_path: Path) -> None:
    (tmp_path / "step-1.ckpt").write_bytes(b"damaged")
    os.link(tmp_path / "step-1.ckpt", tmp_path / "step-2.ckpt")
    with pytest.raises(NoSuchWeightsError, match="two or more periodic checkpoints"):
        choose_weights(WeightSource(str(tmp_path / "last.ckpt"), {}, content={"tokenizer": "byte"}), AVERAGE)
