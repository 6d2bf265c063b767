"""Give each part of reading weights and checkpoints an input that it refuses, and check what its message says."""

from __future__ import annotations

import json
import pickle
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub.errors import GatedRepoError
from safetensors import SafetensorError
from safetensors.torch import save_file

from gpt_pretrain.checkpoints.checkpoint_file import _save
from gpt_pretrain.checkpoints.custom_weights import CustomWeights, misfit_of
from gpt_pretrain.checkpoints.export.tokenizer_files import write_tokenizer
from gpt_pretrain.checkpoints.recognition.architecture import _count_heads
from gpt_pretrain.checkpoints.recognition.folder_contents import _check_archive
from gpt_pretrain.checkpoints.recognition.indexed_files import read_indexed
from gpt_pretrain.checkpoints.serialization import tensor_files
from gpt_pretrain.checkpoints.serialization.tensor_files import StoredTensor, read_safetensors, read_torch_file
from gpt_pretrain.checkpoints.serialization.torch_pickles import _record_sizes
from gpt_pretrain.checkpoints.sharded import ShardReader, rank_file_name, write_rank_file
from gpt_pretrain.evaluation.tasks.task_results import compare_accuracies
from gpt_pretrain.model.config import GPTConfig
from gpt_pretrain.model.kv_cache import KVCache, StaticKVCache
from gpt_pretrain.system import hub
from gpt_pretrain.tokenizers.build import build_tokenizer
from tests.conftest import tiny_model
from tests.helpers.refusals import Make, check_each


def zipped(folder: Path) -> Path:
    with zipfile.ZipFile(folder / "a.zip", "w") as archive:
        archive.writestr("notes.txt", "x")
    return folder / "a.zip"


def indexed(folder: Path) -> Path:
    """Write an index that leaves out a tensor of its file."""
    save_file({"a": torch.zeros(1), "b": torch.zeros(1)}, folder / "x.safetensors")
    (folder / "index.json").write_text(json.dumps({"weight_map": {"a": "x.safetensors"}}))
    return folder / "index.json"


def shard_reader(folder: Path, **changes: Any) -> ShardReader:
    """Write shards of two rows, and open them through an index with other entries."""
    sha256 = write_rank_file(folder / "shards", 0, {"w": torch.zeros(2, 3)})
    entry = {"name": rank_file_name(0), "sha256": sha256, "rows": {"w": [0, 2]}} | changes
    return ShardReader(folder / "last.ckpt", {"shards": {"folder": "shards", "files": [entry]}})


def rows_of_two_widths(folder: Path) -> object:
    files = [
        {"name": rank_file_name(rank), "sha256": write_rank_file(folder / "shards", rank, {"w": torch.zeros(1, 3 + rank)})}
        | {"rows": {"w": [rank, rank + 1]}}
        for rank in range(2)
    ]
    return ShardReader(folder / "last.ckpt", {"shards": {"folder": "shards", "files": files}}).rows("w", 0, 2)


def without_an_entry(folder: Path) -> object:
    """Read the sizes of records as with PyTorch 2.11, from an archive whose index lacks one of them."""
    return _record_sizes(zipped(folder), SimpleNamespace(get_record_offset=lambda name: 0), ["data.pkl"])


def old_file(folder: Path) -> object:
    """Read a file of PyTorch before 1.6 whose storages are not listed behind its tensors."""
    parts = [0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}, {}, 5]
    (folder / "x.pt").write_bytes(b"".join(pickle.dumps(part, 2) for part in parts))
    return read_torch_file(folder / "x.pt")


class Line(torch.nn.Linear):
    """A model of the user's own with two weights."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__(1, vocab_size)

    def forward(self, token_ids: torch.Tensor) -> torch.Tensor:
        return super().forward(token_ids.float()[..., None])


def diverged(_: Path) -> object:
    config = GPTConfig(5, 8, 1, 1, 1, kind="custom")
    values = {"custom.weight": torch.full((5, 1), torch.nan), "custom.bias": torch.zeros(5)}
    parts = {name: [StoredTensor(name, tuple(one.shape), one.dtype, lambda one=one: one)] for name, one in values.items()}
    return CustomWeights("x.ckpt", config, parts, False, {"state_dict": {}}, named={"_target_": f"{__name__}.Line"}).build()


WEIGHTS: dict[str, tuple[Make, str]] = {
    "heads_of_another_number": (
        lambda _: _count_heads(SimpleNamespace(name="x.pt", likely_heads=None), {"n_heads": 4, "emb_dim": 8, "n_layers": 1}, 2),  # type: ignore[arg-type]
        "n_heads=2: x.pt has 4 attention heads. Leave out n_heads.",
    ),
    "own_class_that_lacks_a_tensor": (
        lambda _: misfit_of(torch.nn.Linear(1, 1), {"weight": (1, 1), "bias": (1,), "more": (1,)}),  # type: ignore[arg-type]
        "the class lacks more",
    ),
    "archive_of_something_else": (lambda folder: _check_archive(zipped(folder)), "is a zip archive (notes.txt), not weights."),
    "tensor_beside_the_index": (
        lambda folder: read_indexed(indexed(folder)),
        "has tensors that index.json does not list in it: b.",
    ),
    "rows_beyond_the_shards": (lambda folder: shard_reader(folder).rows("w", 0, 3), "rows 0 to 3 of w are missing."),
    "rows_that_the_file_lacks": (
        lambda folder: shard_reader(folder, rows={"w": [0, 4]}).rows("w", 0, 4),
        "rows 0 to 4 of w are missing.",
    ),
    "shard_that_is_missing": (
        lambda folder: shard_reader(folder, name="rank-7.safetensors"),
        "its shard rank-7.safetensors cannot be read (No such file or directory).",
    ),
    "shard_of_another_run": (
        lambda folder: shard_reader(folder, sha256="0"),
        "the checksum of its shard rank-00000.safetensors does not match.",
    ),
    "shards_of_two_widths": (rows_of_two_widths, "the rows of w do not fit together."),
    "index_of_an_archive_that_lies": (without_an_entry, "its parts differ from its index"),
    "tensor_that_a_shard_lacks": (
        lambda folder: shard_reader(folder, rows={"v": [0, 2]}).rows("v", 0, 2),
        "is damaged: v cannot be read (",
    ),
    "vocabulary_that_transformers_lacks": (
        lambda folder: write_tokenizer(build_tokenizer("ids:97"), folder, context_length=8),
        "A model with the tokenizer ids:97 cannot be exported: transformers has no such tokenizer.",
    ),
    "old_file_without_a_list": (old_file, "it does not list its storages"),
    "own_model_that_diverged": (diverged, "x.ckpt holds NaN or infinity, in weight. Its training diverged."),
    "results_of_other_tasks": (
        lambda _: compare_accuracies(SimpleNamespace(correct=np.zeros(2)), SimpleNamespace(correct=np.zeros(3))),  # type: ignore[arg-type]
        "2 and 3 items cannot be compared",
    ),
}


def test_weights_that_are_refused(tmp_path: Path) -> None:
    check_each(WEIGHTS, tmp_path)


def test_weights_where_no_file_can_be_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise SafetensorError("No such device (os error 19)")

    monkeypatch.setattr(tensor_files, "safe_open", fail)
    with pytest.raises(
        tensor_files.UserError, match=r"is on a file system that cannot map files into memory, .* Copy it to another"
    ):
        read_safetensors(tmp_path / "x.safetensors")


def test_a_checkpoint_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("enforce fail at inline_container.cc")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="could not write the whole file; the disk may be full"):
        _save({}, tmp_path / "last.ckpt")


def test_a_model_whose_terms_are_not_agreed_to(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise GatedRepoError("403", response=SimpleNamespace(headers={}, request=None))  # type: ignore[arg-type]

    monkeypatch.setattr(hub, "_fill_cache", refuse)
    with pytest.raises(hub.UserError, match="theirs/model: access to this model requires agreement to its terms on the hub"):
        hub.fetch("theirs/model", "config.json")


def test_a_cache_has_no_positions_beyond_its_end() -> None:
    cache = KVCache(tiny_model().config, 1, capacity=2, device=torch.device("cpu"), dtype=torch.float32)
    with pytest.raises(ValueError, match="token_ids reach position 3, but cache and context_length end at 2"):
        cache.begin(3)
    cache.length = 2
    with pytest.raises(ValueError, match="Position 3 exceeds the cache and the model's context_length, 2"):
        StaticKVCache(cache).advance()
