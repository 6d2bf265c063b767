"""Weights in pickles with objects of any class: whole modules, settings, several models."""

from __future__ import annotations

import argparse
import collections
import datetime
import enum
import functools
import logging
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from omegaconf import OmegaConf
from torch.distributed.tensor import DeviceMesh, Shard, distribute_tensor
from transformers import GPT2LMHeadModel

from gpt_pretrain.checkpoints.pretrained import load_pretrained
from gpt_pretrain.checkpoints.serialization.torch_pickles import _record_sizes
from gpt_pretrain.errors import UserError
from tests.helpers.foreign_weights import (
    prefixed,
    refusal,
    same,
)
from tests.helpers.other_models import CONTEXT, Hostile, hugging_face, shaken, to_nanogpt


class Settings:
    """Settings of a training program, in a class that nobody else has."""

    def __init__(self, **values: object) -> None:
        vars(self).update(values)

    def method(self) -> None:
        """Be more than data."""


class Enumeration(enum.Enum):
    """An enumeration of a training program."""

    ONE = 1


@dataclass
class GPTConfig:
    """The settings of forks of nanoGPT."""

    block_size: int = CONTEXT
    vocab_size: int = 101
    n_layer: int = 3
    n_head: int = 4
    n_embd: int = 48


def odd_objects() -> dict[str, Any]:
    """Return objects of many classes, as hyperparameters hold them."""
    return {
        "namespace": argparse.Namespace(lr=1e-3, out=Path("x"), n_head=4),
        "settings": Settings(lr=1e-3, inner=Settings(names=["a"])),
        "numpy": [np.float32(3), np.int64(4), np.arange(3), np.dtype("float32"), np.random.RandomState(0)],
        "omegaconf": OmegaConf.create({"a": {"b": [1, "${a}"]}}),
        "partial": functools.partial(torch.optim.AdamW, lr=1e-3),
        "enum": Enumeration.ONE,
        "collections": [collections.defaultdict(list, a=[1]), collections.deque([1]), {1, 2}, frozenset([1]), Fraction(1, 3)],
        "time": datetime.datetime(2024, 1, 1),
        "bound": Settings().method,
        "class": Settings,
        "bytes": bytearray(b"x"),
        "slice": [slice(1, 2), range(3), complex(1, 2)],
        "scheduler": {"lr_lambdas": [None], "_get_lr_called_within_step": False},
    }


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("zipped", [True, False])
def test_objects_of_unknown_classes_beside_the_tensors_stay_inert(
    tmp_path: Path, theirs: GPT2LMHeadModel, zipped: bool, protocol: int
) -> None:
    content = {"hyper_parameters": odd_objects(), "epoch": 3, "state_dict": prefixed(theirs.state_dict(), "model.")}
    torch.save(content, tmp_path / "x.ckpt", _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)
    ours = load_pretrained(tmp_path / "x.ckpt")
    assert same(ours, theirs)
    assert ours.config.n_heads == 4, "as the settings tell"
    assert ours.config.tie_embeddings


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("wrapper", ["none", "data parallel", "bf16"])
def test_a_whole_module_is_read(tmp_path: Path, zipped: bool, wrapper: str) -> None:
    model = hugging_face()
    model = model.bfloat16() if wrapper == "bf16" else model
    module = torch.nn.DataParallel(model) if wrapper == "data parallel" else model
    torch.save({"model": module, "args": Settings()}, tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
    ours = load_pretrained(tmp_path / "x.pt")
    assert same(ours, model.float())
    assert (ours.config.n_heads, ours.config.gelu_approximate, ours.config.tie_embeddings) == (4, "tanh", True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"activation_function": "relu"}, "its module has ReLU, but GPT-2 has GELU"),
        ({"layer_norm_epsilon": 1e-6}, "has eps=1e-06, but this program's GPT-2 always has 1e-05"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx=True is not supported"),
    ],
)
def test_a_whole_module_that_computes_otherwise_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    torch.save(hugging_face(**changes), tmp_path / "x.pt")
    assert message in refusal(tmp_path / "x.pt")


def test_a_whole_module_with_two_activations_is_refused(tmp_path: Path) -> None:
    model = hugging_face()
    model.transformer.h[0].mlp.act = torch.nn.GELU()
    torch.save(model, tmp_path / "x.pt")
    said = "its modules have GELU in several forms (none, tanh), but this program's GPT-2 has one."
    assert said in refusal(tmp_path / "x.pt")


def test_the_whole_module_of_chapter_4_is_read(tmp_path: Path) -> None:
    chapter4 = pytest.importorskip("llms_from_scratch.ch04", reason="pip install --no-deps llms-from-scratch")
    settings = {
        "vocab_size": 101,
        "context_length": CONTEXT,
        "emb_dim": 48,
        "n_heads": 4,
        "n_layers": 3,
        "drop_rate": 0.1,
        "qkv_bias": False,
    }
    model = shaken(chapter4.GPTModel(settings))
    torch.save(model, tmp_path / "model.pth")
    assert same(load_pretrained(tmp_path / "model.pth"), model)


@pytest.mark.parametrize("exact", [True, False])
def test_the_settings_of_a_fork_of_nanogpt_tell_heads_and_gelu(tmp_path: Path, theirs: GPT2LMHeadModel, exact: bool) -> None:
    settings = GPTConfig()
    if exact:
        vars(settings).update(bias=True, dropout=0.0)
    torch.save({"model": to_nanogpt(theirs.state_dict()), "config": settings, "step": 5, "val_loss": 3.2}, tmp_path / "x.pt")
    ours = load_pretrained(tmp_path / "x.pt")
    assert (ours.config.n_heads, ours.config.gelu_approximate) == (4, "none" if exact else "tanh")
    assert same(ours, theirs) != exact


@pytest.mark.parametrize("place", ["beside", "inside"])
def test_a_file_that_would_run_a_command_is_refused_whatever_else_it_holds(
    tmp_path: Path, theirs: GPT2LMHeadModel, place: str
) -> None:
    hostile = Hostile(tmp_path / "marker")
    content = {"model": theirs.state_dict(), "args": hostile if place == "beside" else Settings(inner=[Settings(deep=hostile)])}
    torch.save(content, tmp_path / "x.pt")
    assert "holds more than tensors and plain data (it needs" in refusal(tmp_path / "x.pt")
    assert not (tmp_path / "marker").exists()


def test_an_object_of_an_unknown_class_without_weights_is_refused(tmp_path: Path) -> None:
    torch.save({"args": Settings(a=1)}, tmp_path / "x.pt")
    assert "it needs tests.field.test_weight_pickles.Settings" in refusal(tmp_path / "x.pt")


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda model, path: path.write_bytes(pickle.dumps(model.state_dict())), "was written with pickle.dump"),
        (lambda model, path: torch.save({"wte.weight": np.ones(3)}, path), "convert them with torch.from_numpy"),
        (
            lambda model, path: torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path),
            "is a TorchScript program, not only weights",
        ),
        (lambda model, path: torch.save({"wte.weight": torch.ones(3, device="meta")}, path), "the device meta"),
        (lambda model, path: torch.save(torch.optim.AdamW(model.parameters()).state_dict(), path), "holds no tensors of a GPT-2"),
        (lambda model, path: torch.save(list(model.state_dict().values()), path), "holds an array, not a dict of tensors"),
    ],
    ids=["pickle", "NumPy", "TorchScript", "meta", "optimizer", "list"],
)
@pytest.mark.filterwarnings("ignore")
def test_files_of_pytorch_without_usable_weights_have_a_message_of_their_own(
    tmp_path: Path, theirs: GPT2LMHeadModel, write: Callable[[GPT2LMHeadModel, Path], object], message: str
) -> None:
    write(theirs, tmp_path / "x.pt")
    assert message in refusal(tmp_path / "x.pt")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda model: setattr(model, "out_head", torch.nn.Linear(48, 2)), "its head out_head.weight has 2 outputs"),
        (lambda model: setattr(model, "out_head", torch.nn.Linear(48, 101)), "GPT-2's output head has no bias"),
        (lambda model: setattr(model.trf_blocks[0].att, "W_query", LinearWithLoRA(model.trf_blocks[0].att.W_query)), "LoRA"),
        (lambda model: setattr(model, "final_norm", torch.nn.Identity()), "final_norm.weight"),
    ],
    ids=["classifier of chapter 6", "bias", "LoRA of appendix E", "no norm"],
)
def test_variants_of_the_book_s_model_are_named(tmp_path: Path, change: Callable[[torch.nn.Module], None], message: str) -> None:
    chapter4 = pytest.importorskip("llms_from_scratch.ch04", reason="pip install --no-deps llms-from-scratch")
    settings = {"vocab_size": 101, "context_length": CONTEXT, "emb_dim": 48, "n_heads": 4, "n_layers": 3, "drop_rate": 0.1}
    model = chapter4.GPTModel(settings | {"qkv_bias": True})
    change(model)
    torch.save(model.state_dict(), tmp_path / "model.pth")
    assert message in refusal(tmp_path / "model.pth")


class LinearWithLoRA(torch.nn.Module):
    """A linear layer beside which two small matrices are trained, as in the book's appendix E."""

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        self.linear, self.lora = linear, torch.nn.ParameterDict({"A": torch.ones(48, 2), "B": torch.ones(2, 48)})


def test_tensors_with_attributes_of_their_own_are_read(tmp_path: Path, theirs: GPT2LMHeadModel) -> None:
    state = {name: value.clone() for name, value in theirs.state_dict().items()}
    for value in state.values():
        value.tensor_model_parallel = False  # type: ignore[attr-defined]
    torch.save({"model": state, "args": Settings(n_head=4)}, tmp_path / "x.pt")
    assert same(load_pretrained(tmp_path / "x.pt"), theirs)
    tagged = hugging_face()
    for parameter in tagged.parameters():
        parameter.group = "decay"  # type: ignore[attr-defined]
    torch.save(tagged, tmp_path / "module.pt")
    assert same(load_pretrained(tmp_path / "module.pt"), tagged)


@pytest.mark.parametrize("protocol", [3, 4, 5])
@pytest.mark.parametrize("zipped", [True, False])
def test_any_protocol_of_pickles_is_read(tmp_path: Path, theirs: GPT2LMHeadModel, zipped: bool, protocol: int) -> None:
    content = {"model": theirs.state_dict(), "n_head": 4, "size": theirs.lm_head.weight.shape, "dtype": torch.float32}
    torch.save(content, tmp_path / "x.pt", pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    assert same(ours := load_pretrained(tmp_path / "x.pt", n_heads=None), theirs)
    assert ours.config.tie_embeddings
    torch.save({"model": Hostile(tmp_path / "marker")}, tmp_path / "y.pt", pickle_protocol=protocol)
    assert "it needs" in refusal(tmp_path / "y.pt")
    assert not (tmp_path / "marker").exists()


def test_tensors_that_repeat_a_number_are_read(tmp_path: Path) -> None:
    model = hugging_face()
    state = model.state_dict() | {"transformer.ln_f.bias": torch.zeros(1).expand(48)}
    model.transformer.ln_f.bias.data.zero_()
    torch.save(state, tmp_path / "x.pt")
    assert same(load_pretrained(tmp_path / "x.pt", n_heads=4), model)


def test_one_of_two_models_under_keys_without_a_meaning_is_not_guessed(tmp_path: Path, theirs: GPT2LMHeadModel) -> None:
    state, other = theirs.state_dict(), hugging_face(n_head=2).state_dict()
    other = {name: value + 1 for name, value in other.items()}
    for content in ({"generator": state, "discriminator": other}, {"models": [state, other]}):
        torch.save(content, tmp_path / "x.pt")
        assert "holds 2 models (" in refusal(tmp_path / "x.pt")
    for content in ({"best": state, "last": dict(state)}, {"other": other, "model": state}, {"ema": other, "net_g": state}):
        torch.save(content, tmp_path / "x.pt")
        assert same(load_pretrained(tmp_path / "x.pt", n_heads=4), theirs)


READER = torch._C.PyTorchFileReader


class OlderReader:
    """PyTorch 2.11's reader of archives, which does not know the size of a record."""

    def __init__(self, file: str) -> None:
        self._reader = READER(file)
        self.get_all_records, self.get_record = self._reader.get_all_records, self._reader.get_record
        self.get_record_offset = self._reader.get_record_offset  # type: ignore[attr-defined]


def test_files_are_read_without_the_sizes_of_records(
    tmp_path: Path, theirs: GPT2LMHeadModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save({"model": theirs.state_dict(), "args": Settings(n_head=4)}, tmp_path / "x.pt")
    records = OlderReader(str(tmp_path / "x.pt"))
    assert set(_record_sizes(tmp_path / "x.pt", records, records.get_all_records())) == set(records.get_all_records())
    monkeypatch.setattr(torch._C, "PyTorchFileReader", OlderReader)
    assert same(load_pretrained(tmp_path / "x.pt"), theirs)
    with zipfile.ZipFile(tmp_path / "x.pt") as archive, zipfile.ZipFile(tmp_path / "packed.pt", "w") as packed:
        for entry in archive.infolist():
            packed.writestr(entry.filename, archive.read(entry), compress_type=zipfile.ZIP_DEFLATED)
    with pytest.raises(UserError, match="damaged or is not a PyTorch file"):
        load_pretrained(tmp_path / "packed.pt")


def test_tensors_that_are_divided_among_devices_are_named(tmp_path: Path, theirs: GPT2LMHeadModel) -> None:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        mesh = DeviceMesh("cpu", [0])
        divided = {name: distribute_tensor(value, mesh, [Shard(0)]) for name, value in theirs.state_dict().items()}
        torch.save({"model": divided}, tmp_path / "rank0.pt")
    finally:
        dist.destroy_process_group()
    assert "holds tensors that are divided among devices (DTensor), of which it has one device's part." in refusal(
        tmp_path / "rank0.pt"
    )


def test_tensors_in_nested_dicts_tell_what_they_are(tmp_path: Path) -> None:
    embedding = {"word_embeddings": {"weight": torch.ones(128, 48)}, "position_embeddings": {"weight": torch.ones(24, 48)}}
    torch.save({"model": {"language_model": {"embedding": embedding}}, "iteration": 5}, tmp_path / "model_optim_rng.pt")
    assert "it holds a model of Megatron-LM" in refusal(tmp_path / "model_optim_rng.pt")


def test_norms_alone_without_a_bias_may_be_others(
    tmp_path: Path, theirs: GPT2LMHeadModel, caplog: pytest.LogCaptureFixture
) -> None:
    state = theirs.state_dict()
    torch.save({name: value for name, value in state.items() if not (".ln_" in name and "bias" in name)}, tmp_path / "rms.pt")
    load_pretrained(tmp_path / "rms.pt", n_heads=4)
    assert (
        "norms without one, which are taken for LayerNorm. If they are RMSNorm, the model computes something else" in caplog.text
    )
    caplog.clear()
    torch.save({name: value for name, value in to_nanogpt(state).items() if not name.endswith("bias")}, tmp_path / "nano.pt")
    load_pretrained(tmp_path / "nano.pt", n_heads=4)
    assert all(record.levelno < logging.WARNING for record in caplog.records)


def test_an_embedding_in_another_shape_is_named(tmp_path: Path, theirs: GPT2LMHeadModel) -> None:
    state = theirs.state_dict()
    torch.save(state | {"transformer.wpe.weight": state["transformer.wpe.weight"][None]}, tmp_path / "x.pt")
    assert "its embedding transformer.wpe.weight has the shape (1, 24, 48), not rows and columns" in refusal(tmp_path / "x.pt")
