"""The same weights, in every way in which training programs store them: read as they are, or refused for what they are."""

from __future__ import annotations

import argparse
import collections
import datetime
import enum
import functools
import gzip
import json
import logging
import pickle
import shutil
import tarfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file, save_model
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2LMHeadModel

from gpt_pretrain.checkpoints.huggingface import export
from gpt_pretrain.checkpoints.pretrained import load_pretrained, open_weights
from gpt_pretrain.errors import UserError
from gpt_pretrain.model.gpt2 import GPTModel
from gpt_pretrain.tokenizers.build import build_tokenizer
from tests.helpers.hub_server import Hub
from tests.helpers.other_models import CONTEXT, Hostile, hugging_face, nanogpt_forward, shaken, to_nanogpt
from tests.helpers.vocabularies import byte_level

State = dict[str, Tensor]
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 123\n"


@pytest.fixture(scope="module")
def theirs() -> GPT2LMHeadModel:
    return hugging_face()


def logits_of(model: torch.nn.Module) -> Tensor:
    token_ids = torch.arange(2 * CONTEXT).view(2, CONTEXT)
    with torch.no_grad():
        out = model(token_ids)
    return getattr(out, "logits", out)


def same(ours: GPTModel, theirs: torch.nn.Module) -> bool:
    return bool((logits_of(ours) - logits_of(theirs)).abs().max() < 1e-5)


def prefixed(state: State, prefix: str) -> State:
    return {prefix + name: value for name, value in state.items()}


def refusal(path: Path | str, *, n_heads: int | None = 4) -> str:
    """Return the one message with which a file is refused."""
    with pytest.raises(UserError) as caught:
        load_pretrained(path, n_heads=n_heads)
    (message,) = caught.value.problems
    return message


def inner_wrappers(state: State) -> State:
    """Name tensors as FSDP, activation checkpointing and compiled blocks do."""
    return {
        name.replace("transformer.", "transformer._fsdp_wrapped_module.")
        .replace(".mlp.", "._orig_mod.mlp.")
        .replace(".attn.", "._checkpoint_wrapped_module.attn."): value
        for name, value in state.items()
    }


WRAPPED: dict[str, Callable[[State], State]] = {
    "lightning-hydra-template": lambda state: prefixed(state, "net."),
    "compiled, and with metrics": lambda state: (
        prefixed(state, "net._orig_mod.") | {"train_loss.mean_value": torch.tensor(1.0), "loss_fn.weight": torch.ones(3)}
    ),
    "gpt": lambda state: prefixed(state, "gpt."),
    "backbone of a model": lambda state: prefixed(state, "model.backbone."),
    "data parallel": lambda state: prefixed(state, "module."),
    "data parallel and compiled": lambda state: prefixed(state, "module._orig_mod."),
    "compiled and data parallel": lambda state: prefixed(state, "_orig_mod.module.model."),
    "DeepSpeed in Lightning": lambda state: prefixed(state, "_forward_module.model."),
    "FSDP, checkpointed and compiled blocks": inner_wrappers,
    "PEFT, merged": lambda state: prefixed(state, "base_model.model."),
    "only the body has a prefix": lambda state: {
        ("" if name.startswith("lm_head") else "encoder.") + name.removeprefix("transformer."): value
        for name, value in state.items()
    },
    "no prefix of its own": lambda state: {name.removeprefix("transformer."): value for name, value in state.items()},
    "one name for all": lambda state: {name.replace("transformer.", "gpt2_model."): value for name, value in state.items()},
    "TRL": lambda state: (
        prefixed(state, "pretrained_model.") | {"v_head.summary.weight": torch.ones(1, 48), "v_head.summary.bias": torch.ones(1)}
    ),
    "the head's old name": lambda state: {
        name.replace("lm_head.weight", "lm_head.decoder.weight"): value for name, value in state.items()
    },
    "names of TensorFlow": lambda state: {
        name.replace("ln_1.weight", "ln_1.gamma").replace("ln_1.bias", "ln_1.beta"): value for name, value in state.items()
    },
    "an alias of the body": lambda state: state | {f"body.{name}": value for name, value in state.items()},
    "an average of the weights": lambda state: (
        prefixed(state, "model.") | {f"ema.module.{name}": value + 1 for name, value in state.items()}
    ),
    "positions and masks": lambda state: (
        state
        | {"transformer.position_ids": torch.arange(CONTEXT)[None]}
        | {f"transformer.h.{layer}.attn.masked_bias": torch.tensor(-1e4) for layer in range(3)}
        | {f"transformer.h.{layer}.attn.bias": torch.ones(1, 1, CONTEXT, CONTEXT).tril().byte() for layer in range(3)}
    ),
}


@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
def test_any_prefix_is_taken_off(tmp_path: Path, theirs: GPT2LMHeadModel, wrap: Callable[[State], State]) -> None:
    torch.save({"state_dict": wrap(theirs.state_dict()), "epoch": 3}, tmp_path / "x.ckpt")
    assert same(ours := load_pretrained(tmp_path / "x.ckpt", n_heads=4), theirs)
    assert ours.config.tie_embeddings
    save_file({name: value.clone() for name, value in wrap(theirs.state_dict()).items()}, tmp_path / "x.safetensors")
    assert same(load_pretrained(tmp_path / "x.safetensors", n_heads=4), theirs)


def test_what_is_left_out_is_said(tmp_path: Path, theirs: GPT2LMHeadModel, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, logger="gpt_pretrain")
    torch.save(WRAPPED["TRL"](theirs.state_dict()), tmp_path / "trl.bin")
    load_pretrained(tmp_path / "trl.bin", n_heads=4)
    assert "a value head was left out: v_head.summary.weight, v_head.summary.bias" in caplog.text


REFUSED: dict[str, tuple[Callable[[State], State], str]] = {
    "no head for tokens": (
        lambda state: (
            {name: value for name, value in state.items() if "lm_head" not in name} | {"score.weight": torch.ones(2, 48)}
        ),
        "it has a classifier's head (score.weight) instead of one for tokens",
    ),
    "two models": (
        lambda state: prefixed(state, "actor.") | {f"critic.{name}": value + 1 for name, value in state.items()},
        "holds 2 models (actor., critic.), and does not state which one to use",
    ),
    "LoRA": (
        lambda state: (
            prefixed(state, "base_model.model.")
            | {"base_model.model.transformer.h.0.attn.c_attn.lora_A.weight": torch.ones(4, 48)}
        ),
        "it holds LoRA adapters",
    ),
    "quantized": (
        lambda state: (
            {name: value for name, value in state.items() if "c_fc.weight" not in name}
            | {f"transformer.h.{layer}.mlp.c_fc.qweight": torch.ones(6, 4, dtype=torch.int32) for layer in range(3)}
        ),
        "it holds quantized weights",
    ),
    "Llama": (
        lambda state: {"model.layers.0.self_attn.q_proj.weight": torch.ones(4, 4), "model.embed_tokens.weight": torch.ones(8, 4)},
        "it holds a Llama, Mistral or Qwen (model.layers.0.self_attn.q_proj.weight). Only GPT-2 models can be read.",
    ),
    "local attention": (
        lambda state: state | {"transformer.h.1.attn.bias": torch.ones(1, 1, CONTEXT, CONTEXT).tril().triu(-4).bool()},
        "transformer.h.1.attn.bias is not a causal mask, as with local attention",
    ),
    "a norm of the queries": (
        lambda state: state | {"transformer.h.1.attn.q_norm.weight": torch.ones(12)},
        "1 tensor does not belong to the model (transformer.h.1.attn.q_norm.weight)",
    ),
    "a bias of the head": (lambda state: state | {"lm_head.bias": torch.ones(101)}, "GPT-2's output head has no bias"),
    "another head beside the body": (
        lambda state: (
            {f"net.{name}": value for name, value in state.items() if "lm_head" not in name} | {"out.weight": torch.ones(101, 48)}
        ),
        "1 tensor does not belong to the model (out.weight)",
    ),
    "a gate in a block, with a name of a training program": (
        lambda state: (
            state | {"transformer.h.1.attn.ema.weight": torch.ones(12), "transformer.h.1.loss_gate.weight": torch.ones(1)}
        ),
        "2 tensors do not belong to the model (transformer.h.1.attn.ema.weight, transformer.h.1.loss_gate.weight)",
    ),
    "scores in a block": (
        lambda state: state | {"transformer.h.1.attn.score.weight": torch.ones(12, 12)},
        "1 tensor does not belong to the model (transformer.h.1.attn.score.weight)",
    ),
    "pieces of ZeRO 3": (lambda state: {name: torch.empty(0) for name in state}, "as in a piece of a distributed checkpoint"),
    "eight bits": (
        lambda state: {name: value.to(torch.float8_e4m3fn) for name, value in state.items()},
        "41 tensors are not in fp64, fp32, fp16 or bf16 (lm_head.weight holds float8_e4m3fn",
    ),
    "a head with other rows": (
        lambda state: state | {"lm_head.weight": torch.ones(90, 48)},
        "1 tensor has the wrong shape (lm_head.weight has (90, 48), but the model needs (101, 48))",
    ),
    "a reward in place of the head": (
        lambda state: prefixed(state, "model.") | {"model.lm_head.weight": torch.ones(7, 48)},
        "its head model.lm_head.weight has 7 outputs instead of one for each of 101 tokens",
    ),
    "two tasks": (
        lambda state: (
            {name: value for name, value in state.items() if "lm_head" not in name}
            | {"classifier.weight": torch.ones(2, 48), "classifier.bias": torch.ones(2)}
        ),
        "it has a classifier's head (classifier.weight) instead of one for tokens",
    ),
    "many names": (
        lambda state: state | {f"transformer.h.0.extra.{number}.weight": torch.ones(3, 3) for number in range(50)},
        "50 tensors do not belong to the model",
    ),
    "nothing known": (
        lambda state: {f"layer{number}.weight": torch.ones(3, 3) for number in range(150)},
        "is not a GPT-2: it has no token and position embeddings with a known name. Its 150 tensors have names such as 'layer0.weight'",
    ),
}


@pytest.mark.parametrize(("change", "message"), REFUSED.values(), ids=REFUSED)
def test_one_message_says_why_weights_cannot_be_used(
    tmp_path: Path, theirs: GPT2LMHeadModel, change: Callable[[State], State], message: str
) -> None:
    torch.save({"state_dict": change(theirs.state_dict())}, tmp_path / "x.ckpt")
    assert message in (said := refusal(tmp_path / "x.ckpt"))
    assert len(said) < 600
    assert "\n" not in said


def as_unfused(state: State) -> State:
    """Split the joint projections of nanoGPT's layout, as its forks do."""
    split = {}
    for name, value in state.items():
        if ".attn.c_attn." in name:
            split |= {
                name.replace("c_attn", part): third for part, third in zip(("c_q", "c_k", "c_v"), value.chunk(3), strict=True)
            }
        else:
            split[name] = value
    return split


@pytest.mark.parametrize("bias", [True, False])
def test_separate_projections_and_absent_biases_are_read(tmp_path: Path, theirs: GPT2LMHeadModel, bias: bool) -> None:
    state = to_nanogpt(theirs.state_dict())
    if not bias:
        state = {name: value for name, value in state.items() if not name.endswith(".bias")}
    torch.save(as_unfused(state), tmp_path / "fork.pt")
    ours = load_pretrained(tmp_path / "fork.pt", n_heads=4)
    token_ids = torch.arange(2 * CONTEXT).view(2, CONTEXT)
    assert ours.config.qkv_bias == bias
    with torch.no_grad():
        expected = nanogpt_forward(state, token_ids, n_layer=3, n_head=4)
        assert (ours(token_ids) - expected).abs().max() < 5e-3, "but for the form of GELU, which the file does not tell"


def test_a_head_stored_twice_is_one(tmp_path: Path, theirs: GPT2LMHeadModel) -> None:
    state = {name: value.clone() for name, value in theirs.state_dict().items()}  # as after value.cpu() on each
    torch.save(state, tmp_path / "x.pt")
    assert load_pretrained(tmp_path / "x.pt", n_heads=4).config.tie_embeddings
    torch.save(state | {"lm_head.weight": state["lm_head.weight"].half()}, tmp_path / "half.pt")
    assert load_pretrained(tmp_path / "half.pt", n_heads=4).config.tie_embeddings
    torch.save(state | {"lm_head.weight": state["lm_head.weight"] + 0.01}, tmp_path / "own.pt")
    assert not load_pretrained(tmp_path / "own.pt", n_heads=4).config.tie_embeddings


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub of this test, and an empty cache."""
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.url)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(
        huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def upload(hub: Hub, model: str, folder: Path) -> None:
    hub.files |= {f"{model}/{file.name}": file.read_bytes() for file in folder.iterdir()}


def save_as_pickle(model: GPT2LMHeadModel, folder: Path, *, parts: int) -> Path:
    """Save a model as transformers did before safetensors."""
    model.save_pretrained(folder)
    (folder / "model.safetensors").unlink()
    state = {name: value.clone() for name, value in model.state_dict().items() if name != "lm_head.weight"}
    if parts == 1:
        torch.save(state, folder / "pytorch_model.bin")
        return folder
    files = {name: f"pytorch_model-{number % parts + 1:05d}-of-{parts:05d}.bin" for number, name in enumerate(state)}
    for file in set(files.values()):
        torch.save({name: value for name, value in state.items() if files[name] == file}, folder / file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    return folder


@pytest.mark.parametrize("parts", [1, 3])
def test_a_model_of_the_hub_without_safetensors_is_read(tmp_path: Path, hub: Hub, theirs: GPT2LMHeadModel, parts: int) -> None:
    upload(hub, "some/model", save_as_pickle(theirs, tmp_path / "saved", parts=parts))
    assert same(load_pretrained("some/model"), theirs)
    assert same(load_pretrained(tmp_path / "saved"), theirs), "and the same folder"


def test_a_model_of_the_hub_in_several_safetensors_files_is_read(tmp_path: Path, hub: Hub, theirs: GPT2LMHeadModel) -> None:
    theirs.save_pretrained(tmp_path / "saved", max_shard_size="100KB")
    upload(hub, "some/model", tmp_path / "saved")
    assert same(load_pretrained("some/model"), theirs)


def test_a_model_of_the_hub_without_weights_names_the_files_that_are_read(
    tmp_path: Path, hub: Hub, theirs: GPT2LMHeadModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(hub, "some/model", save_as_pickle(theirs, tmp_path / "saved", parts=1))
    data = hub.files.pop("some/model/pytorch_model.bin")
    hub.files["some/model/tf_model.h5"] = data
    message = refusal(Path("some/model"))
    assert "has none of these files on the hub: model.safetensors, model.safetensors.index.json, pytorch_model.bin" in message
    nowhere = "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", nowhere)
    assert "model.safetensors is not in the cache" in refusal(Path("some/model"))


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
        ({"layer_norm_epsilon": 1e-6}, "has eps=1e-06, but GPTModel always has 1e-05"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx=True is not supported"),
    ],
)
def test_a_whole_module_that_computes_otherwise_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    torch.save(hugging_face(**changes), tmp_path / "x.pt")
    assert message in refusal(tmp_path / "x.pt")


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
    assert "it needs tests.field.test_weights.Settings" in refusal(tmp_path / "x.pt")


def rewrite_config(folder: Path, **changes: object) -> None:
    """Change fields of a config.json; those that are None are removed."""
    fields = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({name: value for name, value in fields.items() if value is not None}))


@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": None, "architectures": None, "n_ctx": CONTEXT, "transformers_version": None, "activation_function": None},
        {"n_positions": None, "n_ctx": CONTEXT},
        {"n_positions": None, "n_embd": None, "n_head": None, "n_layer": None, "max_position_embeddings": CONTEXT}
        | {"hidden_size": 48, "num_attention_heads": 4, "num_hidden_layers": 3},
        {
            "n_inner": 192,
            "activation_function": "gelu_fast",
            "position_embedding_type": "absolute",
            "reorder_and_upcast_attn": True,
        },
        {"torch_dtype": "float16", "architectures": ["GPT2DoubleHeadsModel"], "summary_type": "cls_index", "prefix": "x"},
        {"vocab_size": 99, "n_special": 2, "predict_special_tokens": True},
    ],
    ids=["of 2019", "n_ctx", "general names", "inner width", "double heads", "special tokens"],
)
def test_old_and_general_configs_are_read(tmp_path: Path, theirs: GPT2LMHeadModel, changes: dict[str, Any]) -> None:
    theirs.save_pretrained(tmp_path)
    rewrite_config(tmp_path, **changes)
    assert same(load_pretrained(tmp_path), theirs)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["GPT2ForSequenceClassification"]}, "a GPT2ForSequenceClassification has a head for its task"),
        ({"quantization_config": {"quant_method": "gptq"}}, "its weights are quantized (quant_method='gptq')"),
        ({"multi_query": True}, "multi_query=True is not supported"),
        ({"rotary_emb_fraction": 0.5, "n_inner": 100}, "n_inner=100 is not supported"),
        ({"position_embedding_type": "alibi"}, "position_embedding_type='alibi' is not supported"),
        ({"activation_function": "relu"}, "activation_function='relu' is not supported; GPTModel has GELU"),
        ({"model_type": "openai-gpt", "afn": "gelu"}, "model_type='openai-gpt' is not supported; only 'gpt2' and 'nanochat' are"),
        ({"scale_attn_weights": False, "reorder_and_upcast_attn": True}, "scale_attn_weights=False is not supported"),
    ],
)
def test_a_config_that_changes_the_mathematics_is_refused_in_one_message(
    tmp_path: Path, theirs: GPT2LMHeadModel, changes: dict[str, Any], message: str
) -> None:
    theirs.save_pretrained(tmp_path)
    rewrite_config(tmp_path, **changes)
    assert message in refusal(tmp_path, n_heads=None)


def test_code_that_comes_with_a_model_is_named_and_not_run(
    tmp_path: Path, theirs: GPT2LMHeadModel, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, logger="gpt_pretrain")
    theirs.save_pretrained(tmp_path)
    rewrite_config(tmp_path, auto_map={"AutoModelForCausalLM": "modeling.Model"})
    (tmp_path / "modeling.py").write_text("raise SystemExit(3)")
    assert same(load_pretrained(tmp_path), theirs)
    assert "asks for model code of its own" in caplog.text


def test_a_folder_with_one_file_of_weights_stands_for_it(tmp_path: Path, theirs: GPT2LMHeadModel) -> None:
    settings = {"n_layer": 3, "n_head": 4, "n_embd": 48, "block_size": CONTEXT, "bias": True, "vocab_size": 101}
    torch.save({"model": to_nanogpt(theirs.state_dict()), "model_args": settings}, tmp_path / "ckpt.pt")
    torch.save({"state": {}}, tmp_path / "optimizer.pt")
    assert load_pretrained(tmp_path).config.n_heads == 4
    torch.save({}, tmp_path / "ckpt-2.pt")
    assert "holds several files of weights: ckpt-2.pt, ckpt.pt. Name one of them." in refusal(tmp_path)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"adapter_config.json": '{"base_model_name_or_path": "gpt2"}', "adapter_model.safetensors": ""},
            "change the model 'gpt2'",
        ),
        (
            {".metadata": "", "__0_0.distcp": "", "meta.pt": ""},
            "python -m torch.distributed.checkpoint.format_utils dcp_to_torch",
        ),
        ({"zero_to_fp32.py": "", "latest": "global_step5"}, "is a checkpoint of DeepSpeed"),
        ({"checkpoint-500/config.json": "{}", "checkpoint-900/config.json": "{}"}, "checkpoint-500, checkpoint-900. Name one"),
        ({"config.json": "{}", "tf_model.h5": ""}, "tf_model.h5 holds weights for TensorFlow"),
        ({"model.onnx": ""}, "model.onnx holds weights for ONNX"),
        ({"config.json": "{}"}, "has a config.json, but none of these files of weights"),
        ({"notes.txt": "x"}, "holds no model"),
    ],
)
def test_a_folder_without_weights_is_named_for_what_it_is(tmp_path: Path, files: dict[str, str], message: str) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    assert message in refusal(tmp_path)


def write_llmc(state: State, path: Path, *, dtype: torch.dtype, padded: int = 128) -> None:
    """Write a model as llm.c's Python program does."""
    header = np.zeros(256, dtype="<i4")
    header[:8] = [20240326, 3 if dtype == torch.float32 else 5, CONTEXT, 101, 3, 4, 48, padded]
    state = {name.removeprefix("transformer."): value for name, value in to_nanogpt(state).items()}
    wte = torch.cat([state["wte.weight"], torch.zeros(padded - 101, 48)])
    order = ["ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj"]
    blocks = [state[f"h.{i}.{name}.{kind}"] for name in order for kind in ("weight", "bias") for i in range(3)]
    values = [wte, state["wpe.weight"], *blocks, state["ln_f.weight"], state["ln_f.bias"]]
    path.write_bytes(
        header.tobytes() + b"".join(value.to(dtype).contiguous().view(torch.uint8).numpy().tobytes() for value in values)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_of_llmc_is_read(tmp_path: Path, dtype: torch.dtype) -> None:
    model = hugging_face().to(dtype).float()
    write_llmc(model.state_dict(), path := tmp_path / "model_00018865.bin", dtype=dtype)
    ours = load_pretrained(path, n_heads=None)
    assert same(ours, model)
    assert ours.config.vocab_size == 101, "without the rows that only fill up the vocabulary"
    path.write_bytes(path.read_bytes()[:-2])
    assert "is damaged: by its header" in refusal(path)
    path.write_bytes(np.array([20240527, 1], dtype="<i4").tobytes() + bytes(2000))
    assert "holds the optimizer's state of llm.c" in refusal(path)


@pytest.mark.parametrize("prefix", ["", "model.net."])
def test_a_tied_embedding_that_is_stored_only_as_the_head_is_read(tmp_path: Path, theirs: GPT2LMHeadModel, prefix: str) -> None:
    module = torch.nn.ModuleDict({"net": theirs})
    save_model(torch.nn.ModuleDict({"model": module}) if prefix else theirs, str(tmp_path / "x.safetensors"))
    names = load_file(tmp_path / "x.safetensors").keys()
    assert f"{prefix}transformer.wte.weight" not in names
    ours = load_pretrained(tmp_path / "x.safetensors", n_heads=4)
    assert same(ours, theirs)
    assert ours.config.tie_embeddings
    theirs.save_pretrained(tmp_path / "folder")
    save_model(theirs, str(tmp_path / "folder" / "model.safetensors"), metadata={"format": "pt"})
    assert same(load_pretrained(tmp_path / "folder"), theirs)
    rewrite_config(tmp_path / "folder", tie_word_embeddings=False)
    assert "1 tensor is missing" in refusal(tmp_path / "folder")


def test_a_number_of_heads_in_the_settings_is_only_a_default(tmp_path: Path, theirs: GPT2LMHeadModel) -> None:
    torch.save({"model": theirs.state_dict(), "hyper_parameters": {"decoder": {"num_heads": 6}}}, tmp_path / "x.ckpt")
    assert load_pretrained(tmp_path / "x.ckpt").config.n_heads == 6
    assert same(load_pretrained(tmp_path / "x.ckpt", n_heads=4), theirs)
    torch.save({"model": theirs.state_dict(), "args": {"n_head": 7}}, tmp_path / "y.ckpt")
    assert "does not state its number of attention heads" in refusal(tmp_path / "y.ckpt", n_heads=None)


def test_a_folder_of_the_cache_a_part_and_an_address_lead_to_the_model(tmp_path: Path, theirs: GPT2LMHeadModel) -> None:
    theirs.save_pretrained(tmp_path / "models--some--model" / "snapshots" / "abc", max_shard_size="100KB")
    assert same(load_pretrained(tmp_path / "models--some--model"), theirs)
    part = min((tmp_path / "models--some--model" / "snapshots" / "abc").glob("model-*"))
    assert same(load_pretrained(part), theirs)
    (part.parent / "config.json").unlink()
    assert same(load_pretrained(part, n_heads=4), theirs), "the number of heads is all that the config tells"
    assert same(load_pretrained(part.parent, n_heads=4), theirs)
    lone = tmp_path / part.name
    lone.write_bytes(part.read_bytes())
    assert "is part 1 of a model in" in refusal(lone)
    assert "are given by name, not by address. Type some/model" in refusal("https://huggingface.co/some/model/tree/main")


def test_a_file_of_weights_with_another_name_follows_the_config_beside_it(tmp_path: Path, theirs: GPT2LMHeadModel) -> None:
    theirs.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "model.fp32.safetensors")
    assert same(load_pretrained(tmp_path), theirs)
    (tmp_path / "config.json").write_text('{"n_embd": 48, "dataset": "x"}')
    assert "does not state its number of attention heads" in refusal(tmp_path, n_heads=None)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda model, path: path.write_bytes(pickle.dumps(model.state_dict())), "was written with pickle.dump"),
        (lambda model, path: torch.save({"wte.weight": np.ones(3)}, path), "convert them with torch.from_numpy"),
        (lambda model, path: torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path), "It is a TorchScript program"),
        (lambda model, path: torch.save({"wte.weight": torch.ones(3, device="meta")}, path), "the device meta"),
        (lambda model, path: torch.save(torch.optim.AdamW(model.parameters()).state_dict(), path), "holds no tensors of a GPT-2"),
        (lambda model, path: torch.save(list(model.state_dict().values()), path), "holds a list, not a dict of tensors"),
    ],
    ids=["pickle", "NumPy", "TorchScript", "meta", "optimizer", "list"],
)
@pytest.mark.filterwarnings("ignore")
def test_files_of_pytorch_without_usable_weights_have_a_message_of_their_own(
    tmp_path: Path, theirs: GPT2LMHeadModel, write: Callable[[GPT2LMHeadModel, Path], object], message: str
) -> None:
    write(theirs, tmp_path / "x.pt")
    assert message in refusal(tmp_path / "x.pt")


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_the_folder_of_a_training_state_without_a_config_is_read(tmp_path: Path, theirs: GPT2LMHeadModel, name: str) -> None:
    state = {key: value.clone() for key, value in theirs.state_dict().items()}
    save_file(state, tmp_path / name) if name.endswith("safetensors") else torch.save(state, tmp_path / name)
    for other in ("optimizer.bin", "scheduler.bin", "random_states_0.pkl"):
        torch.save({}, tmp_path / other)
    assert same(load_pretrained(tmp_path, n_heads=4), theirs)


@pytest.mark.parametrize("form", ["prefix", "whole module", "llm.c", "folder of parts in fp16"])
def test_what_is_read_is_exported_for_transformers(tmp_path: Path, theirs: GPT2LMHeadModel, form: str) -> None:
    model, source = theirs, tmp_path / "x.bin"
    if form == "prefix":
        torch.save({"state_dict": WRAPPED["compiled, and with metrics"](theirs.state_dict())}, source)
    elif form == "whole module":
        torch.save(theirs, source)
    elif form == "llm.c":
        write_llmc(theirs.state_dict(), source, dtype=torch.float32)
    else:
        model = hugging_face().half()
        source = save_as_pickle(model, tmp_path / "parts", parts=2)
    weights = open_weights(source, n_heads=4)
    export(weights, tmp_path / "out")
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert (logits_of(opened) - logits_of(model.float())).abs().max() < 1e-5
    assert same(load_pretrained(tmp_path / "out"), opened)


def test_generate_refuses_other_weights_in_one_line(tmp_path: Path, theirs: GPT2LMHeadModel, script: Callable[..., Any]) -> None:
    state = prefixed(theirs.state_dict(), "net.") | {f"net.extra.{number}.weight": torch.ones(2, 2) for number in range(150)}
    torch.save({"state_dict": state, "pytorch-lightning_version": "2.4.0"}, tmp_path / "net.ckpt")
    done = script("generate.py", "pretrained=net.ckpt", "n_heads=4", "prompt=Hi")
    assert done.returncode == 2
    assert done.stderr.strip().splitlines() == [
        "error: net.ckpt does not fit a GPT-2: 150 tensors do not belong to the model (net.extra.0.weight, net.extra.1.weight, "
        "net.extra.10.weight and 147 more). Nothing was loaded. If its output does not depend on them, save its state_dict() "
        "without them."
    ]


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


@pytest.mark.parametrize("file", ["weights.safetensors", "weights.pt", "model-00001-of-00001.safetensors"])
def test_a_file_of_any_name_is_read_with_the_config_beside_it(file: str, tmp_path: Path, theirs: GPT2LMHeadModel) -> None:
    theirs.save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    if file.endswith(".pt"):
        torch.save(theirs.state_dict(), tmp_path / file)
    else:
        weights.rename(tmp_path / file)
    assert same(load_pretrained(tmp_path / file), theirs)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"activation_function": "relu"}))
    assert "activation_function='relu' is not supported" in refusal(tmp_path / file, n_heads=None)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("activation", "relu"),
        ("norm_eps", 1e-6),
        ("use_rope", True),
        ("window_size", 8),
        ("logit_softcap", 15.0),
        ("n_kv_head", 2),
    ],
)
def test_settings_of_another_model_are_named(name: str, value: Any, tmp_path: Path, theirs: GPT2LMHeadModel) -> None:
    torch.save(
        {"state_dict": theirs.state_dict(), "hyper_parameters": {"model": {"n_head": 4, name: value}}}, tmp_path / "a.ckpt"
    )
    assert f"its settings have {name}={value!r}" in refusal(tmp_path / "a.ckpt")


def test_settings_of_other_parts_of_a_program_do_not_count(tmp_path: Path, theirs: GPT2LMHeadModel) -> None:
    settings = {
        "data": {"window_size": 8},
        "model": {"n_head": 4, "window_size": CONTEXT, "sliding_window": -1, "norm_eps": "1e-5", "activation": "GELU"},
        "optimizer": {"eps": 1e-8},
    }
    torch.save({"state_dict": theirs.state_dict(), "hyper_parameters": settings}, tmp_path / "a.ckpt")
    assert same(load_pretrained(tmp_path / "a.ckpt"), theirs)


@pytest.mark.parametrize("config", ['{"model_type": "llama", "hidden_size": 64}', '{"n_embd": 48}', "{"])
def test_the_config_of_another_model_beside_a_file_is_not_used(config: str, tmp_path: Path, theirs: GPT2LMHeadModel) -> None:
    (tmp_path / "config.json").write_text(config)
    torch.save(theirs.state_dict(), tmp_path / "mine.pt")
    save_file({name: value.clone() for name, value in theirs.state_dict().items()}, tmp_path / "mine.safetensors")
    assert same(load_pretrained(tmp_path / "mine.pt", n_heads=4), theirs)
    assert same(load_pretrained(tmp_path / "mine.safetensors", n_heads=4), theirs)


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


def test_the_main_version_of_a_cached_model_is_read(tmp_path: Path, theirs: GPT2LMHeadModel) -> None:
    folder = tmp_path / "models--some--model"
    theirs.save_pretrained(folder / "snapshots" / "abc")
    hugging_face(n_head=2).save_pretrained(folder / "snapshots" / "def")
    assert "holds several versions of a model" in refusal(folder)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("abc\n")
    assert same(load_pretrained(folder), theirs)
    (folder / "refs" / "main").write_text("../../elsewhere")
    assert "holds several versions of a model" in refusal(folder)
    assert "is the hub's cache, with these models: models--some--model" in refusal(tmp_path)


def test_the_tokenizer_beside_weights_without_a_config_is_theirs(
    tmp_path: Path, theirs: GPT2LMHeadModel, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = build_tokenizer(str(byte_level(folder := tmp_path / "model", size=400)))
    rows = tokenizer.vocab_size
    model = hugging_face(vocab_size=rows)
    torch.save(model.state_dict(), folder / "model.pt")
    save_file({name: value.clone() for name, value in model.state_dict().items()}, folder / "model.safetensors")
    for source in ("model.pt", "model.safetensors"):
        assert open_weights(folder / source, n_heads=4).build_tokenizer().name == tokenizer.name
    torch.save(theirs.state_dict(), folder / "model.pt")
    assert open_weights(folder / "model.pt", n_heads=4).own_tokenizer is None, "which has another number of rows"
    assert f"the tokenizer beside it has {rows} tokens instead of 101, and is not used" in caplog.text


@pytest.mark.parametrize("heads", ["4", 4.0, "4.0"])
def test_a_number_of_heads_may_be_a_text_or_a_fraction(heads: Any, tmp_path: Path, theirs: GPT2LMHeadModel) -> None:
    theirs.save_pretrained(tmp_path / "folder")
    rewrite_config(tmp_path / "folder", n_head=heads, layer_norm_epsilon="1e-5", resid_pdrop="0.1")
    assert same(load_pretrained(tmp_path / "folder"), theirs)
    arguments = {"n_layer": "3", "n_head": heads, "n_embd": 48.0, "block_size": CONTEXT, "vocab_size": None}
    torch.save({"model": to_nanogpt(theirs.state_dict()), "model_args": arguments}, tmp_path / "ckpt.pt")
    assert same(load_pretrained(tmp_path / "ckpt.pt"), theirs)
    torch.save({"model": theirs.state_dict(), "hyper_parameters": {"num_heads": heads}}, tmp_path / "x.ckpt")
    assert same(load_pretrained(tmp_path / "x.ckpt"), theirs)


@pytest.mark.parametrize("heads", ["four", 4.5, True, [4]])
def test_a_wrong_number_of_heads_is_never_replaced(heads: Any, tmp_path: Path, theirs: GPT2LMHeadModel) -> None:
    theirs.save_pretrained(tmp_path / "folder")
    rewrite_config(tmp_path / "folder", n_head=heads)
    assert f"n_heads={heads!r}: must be a whole number" in refusal(tmp_path / "folder", n_heads=None)
    arguments = {"n_layer": 3, "n_head": heads, "n_embd": 48, "block_size": CONTEXT, "vocab_size": 101}
    torch.save({"model": to_nanogpt(theirs.state_dict()), "model_args": arguments}, tmp_path / "ckpt.pt")
    assert f"n_heads={heads!r}: must be a whole number" in refusal(tmp_path / "ckpt.pt", n_heads=None)


@pytest.mark.parametrize("form", ["gelu_new", "gelu_exact"])
def test_the_form_of_gelu_that_settings_name_is_used(form: str, tmp_path: Path) -> None:
    model = hugging_face(activation_function="gelu_new" if form == "gelu_new" else "gelu")
    torch.save({"state_dict": model.state_dict(), "hyper_parameters": {"cfg": {"act": form, "n_head": 4}}}, tmp_path / "x.ckpt")
    assert same(load_pretrained(tmp_path / "x.ckpt"), model)


def test_settings_of_other_classes_in_a_config_are_not_passed_over(tmp_path: Path, theirs: GPT2LMHeadModel) -> None:
    theirs.save_pretrained(tmp_path)
    rewrite_config(tmp_path, activation_function=None, hidden_act="relu", layer_norm_eps=1e-6)
    message = refusal(tmp_path, n_heads=None)
    assert "hidden_act='relu'" in message
    assert "layer_norm_eps=1e-06" in message


LEFT_OUT_WRONGLY: dict[str, tuple[dict[str, Tensor], str]] = {
    "a scale of the logits": ({"logit_scale": torch.tensor(2.0)}, "does not belong to the model (logit_scale)"),
    "a norm of the embedding": (
        {"emb_ln.weight": torch.ones(48), "emb_ln.bias": torch.zeros(48)},
        "(emb_ln.bias, emb_ln.weight)",
    ),
    "a bias by a name of training": ({"train_bias.weight": torch.ones(101, 48)}, "(train_bias.weight)"),
    "a bias by a name of tests": ({"test_time_bias": torch.ones(101)}, "(test_time_bias)"),
    "a norm by the name of an average": ({"avg_norm.weight": torch.ones(48)}, "(avg_norm.weight)"),
    "a reference": ({"ref_bias": torch.ones(101)}, "(ref_bias)"),
    "types of tokens": ({"token_type.weight": torch.ones(2, 48)}, "(token_type.weight)"),
    "a scale of the attention": (
        {"model.transformer.h.0.attn.scale": torch.ones(4)},
        "does not belong to the model (model.transformer.h.0.attn.scale)",
    ),
    "an adapter": ({"model.transformer.h.0.adapter.down.weight": torch.ones(4, 48)}, "it holds adapters, which change"),
    "IA3": ({"model.transformer.h.0.attn.c_attn.ia3_l.default": torch.ones(144, 1)}, "it holds adapters, which change"),
    "prompts": ({"prompt_encoder.default.embedding.weight": torch.ones(8, 48)}, "it holds adapters, which change"),
    "scales of eight bits": ({"model.transformer.h.0.attn.c_attn.weight_scale": torch.ones(144)}, "it holds quantized weights"),
    "pruning": ({"model.transformer.h.0.attn.c_attn.weight_mask": torch.ones(48, 144)}, "remove the parametrization"),
}


@pytest.mark.parametrize(("extra", "message"), LEFT_OUT_WRONGLY.values(), ids=LEFT_OUT_WRONGLY)
@pytest.mark.parametrize("safe", [True, False], ids=["safetensors", "pickle"])
def test_no_tensor_that_changes_the_output_is_left_out(
    tmp_path: Path, theirs: GPT2LMHeadModel, extra: State, message: str, safe: bool
) -> None:
    state = {name: value.clone() for name, value in prefixed(theirs.state_dict(), "model.").items()} | extra
    (save_file if safe else torch.save)(state, tmp_path / "x")  # type: ignore[operator]
    assert message in refusal(tmp_path / "x")


@pytest.mark.parametrize(
    "extra",
    [
        {"n_averaged": torch.tensor(5), "num_updates": torch.tensor(5), "seen": torch.tensor([5, 6])},
        {"model_ema.transformerwteweight": torch.ones(101, 48), "model_ema.decay": torch.tensor(0.9)},
        {"train_acc.tp": torch.tensor(5.0), "val_perplexity.total": torch.ones(1), "dummy_param": torch.empty(0)},
    ],
    ids=["counters", "an average without dots", "metrics"],
)
def test_counters_averages_and_metrics_are_left_out(tmp_path: Path, theirs: GPT2LMHeadModel, extra: State) -> None:
    torch.save({"state_dict": prefixed(theirs.state_dict(), "model.") | extra}, tmp_path / "x.ckpt")
    assert same(load_pretrained(tmp_path / "x.ckpt", n_heads=4), theirs)


def test_one_of_two_models_under_keys_without_a_meaning_is_not_guessed(tmp_path: Path, theirs: GPT2LMHeadModel) -> None:
    state, other = theirs.state_dict(), hugging_face(n_head=2).state_dict()
    other = {name: value + 1 for name, value in other.items()}
    for content in ({"generator": state, "discriminator": other}, {"models": [state, other]}):
        torch.save(content, tmp_path / "x.pt")
        assert "holds 2 models (" in refusal(tmp_path / "x.pt")
    for content in ({"best": state, "last": dict(state)}, {"other": other, "model": state}, {"ema": other, "net_g": state}):
        torch.save(content, tmp_path / "x.pt")
        assert same(load_pretrained(tmp_path / "x.pt", n_heads=4), theirs)


def test_a_model_without_learned_positions_is_named(tmp_path: Path, theirs: GPT2LMHeadModel) -> None:
    torch.save({name: value for name, value in theirs.state_dict().items() if "wpe" not in name}, tmp_path / "x.pt")
    assert "it has a token embedding (transformer.wte.weight), but no position embedding" in refusal(tmp_path / "x.pt")


NO_WEIGHTS: dict[str, tuple[bytes, str]] = {
    "pointer.safetensors": (POINTER, "is a Git LFS pointer, not weights. It stands for a file that was not downloaded"),
    "pointer.pt": (POINTER, "is a Git LFS pointer, not weights"),
    "page.safetensors": (b"<!DOCTYPE html><html>", "the hub's files are at /resolve/, not at /blob/"),
    "page.bin": (b"<!DOCTYPE html><html>", "is an HTML page, not weights"),
    "empty.pt": (b"", "is empty. Download or save it again."),
    "empty.safetensors": (b"", "is empty. Download or save it again."),
    "model.gguf": (b"GGUF\3\0\0\0" + bytes(100), "holds weights for llama.cpp. Only those for PyTorch can be read"),
    "model.onnx": (b"\x08\x07\x12\x07pytorch" + bytes(100), "holds weights for ONNX"),
    "tf_model.h5": (b"\x89HDF\r\n\x1a\n" + bytes(100), "GPT2LMHeadModel.from_pretrained(FOLDER, from_tf=True)"),
    "flax_model.msgpack": (b"\x81\xabtransformer" + bytes(100), "GPT2LMHeadModel.from_pretrained(FOLDER, from_flax=True)"),
    "model.ckpt.index": (bytes(100), "OpenAI's GPT-2 is named gpt2, gpt2-medium"),
    "model.ckpt.data-00000-of-00001": (bytes(100), "holds weights for TensorFlow"),
    "model.pt.gz": (gzip.compress(b"x" * 100, mtime=0), "is compressed. Decompress it first: gzip -d"),
    "model.bin": (np.random.default_rng(0).bytes(300), "is damaged or is not a PyTorch file"),
    "x.safetensors": (np.random.default_rng(0).bytes(300), "is damaged: it does not begin as a safetensors file does"),
    "model.json": (b'{"a": 1}', "is a file of JSON lines, not weights"),
}


@pytest.mark.parametrize("name", NO_WEIGHTS)
def test_a_file_without_weights_is_named_for_what_it_is(tmp_path: Path, name: str) -> None:
    content, message = NO_WEIGHTS[name]
    (tmp_path / name).write_bytes(content)
    assert message in refusal(tmp_path / name)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_file_without_weights_beside_a_config_is_named_for_what_it_is(
    tmp_path: Path, theirs: GPT2LMHeadModel, name: str
) -> None:
    theirs.config.save_pretrained(tmp_path)
    for other in ("pointer.pt", "page.bin", "empty.pt", "x.safetensors" if "safe" in name else "model.bin"):
        content, message = NO_WEIGHTS[other]
        (tmp_path / name).write_bytes(content)
        assert message in refusal(tmp_path, n_heads=None)
        assert message in refusal(tmp_path / name, n_heads=None)


def test_an_incomplete_download_is_named(tmp_path: Path, theirs: GPT2LMHeadModel) -> None:
    theirs.save_pretrained(tmp_path)
    data = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(data[:-100])
    said = f"is incomplete: by its header it has {len(data):,} bytes, but the file has {len(data) - 100:,}. Download or copy it"
    assert said in refusal(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(data[:300])
    assert "is incomplete: by its header" in refusal(tmp_path)
    for zipped in (True, False):
        torch.save(theirs.state_dict(), tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
        (tmp_path / "x.pt").write_bytes((tmp_path / "x.pt").read_bytes()[:-100])
        assert ("is incomplete" if zipped else "is damaged") in refusal(tmp_path / "x.pt")


def test_archives_of_other_content_are_named(tmp_path: Path, theirs: GPT2LMHeadModel) -> None:
    theirs.save_pretrained(tmp_path / "saved")
    for form in ("zip", "tar"):
        archive = Path(shutil.make_archive(str(tmp_path / "model"), form, tmp_path / "saved"))
        assert f"is a {form} archive" in (message := refusal(archive))
        assert "Unpack it, and give the file or folder of weights in it." in message
    with tarfile.open(tmp_path / "old.pt", "w") as tar:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            tar.addfile(tarfile.TarInfo(name))
    assert "It was saved by PyTorch before 0.2" in refusal(tmp_path / "old.pt")


def test_an_index_without_its_files_is_one_message(tmp_path: Path, theirs: GPT2LMHeadModel) -> None:
    theirs.save_pretrained(tmp_path, max_shard_size="100KB")
    parts = sorted(tmp_path.glob("model-*"))
    shutil.copy(parts[0], parts[1])
    with pytest.raises(UserError) as caught:
        load_pretrained(tmp_path)
    assert [problem.partition(" that ")[0] for problem in caught.value.problems] == [
        f"{parts[1]} lacks tensors",
        f"{parts[1]} has tensors",
    ]
    for part in parts:
        part.unlink()
    said = refusal(tmp_path / "model.safetensors.index.json", n_heads=None)
    assert f"lists tensors in files that are missing: {parts[0].name}, " in said
