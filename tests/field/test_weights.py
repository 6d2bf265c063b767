"""The same weights, in every way in which training programs store them: read as they are, or refused for what they are."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file, save_model
from transformers import AutoModelForCausalLM, GPT2LMHeadModel

from gpt_pretrain.checkpoints.export.huggingface import export
from gpt_pretrain.checkpoints.pretrained import load_pretrained, open_weights
from tests.helpers.foreign_weights import (
    State,
    logits_of,
    prefixed,
    refusal,
    rewrite_config,
    same,
    save_as_pickle,
    write_llmc,
)
from tests.helpers.other_models import CONTEXT, hugging_face, nanogpt_forward, to_nanogpt


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
    "gradients of each sample": lambda state: prefixed(state, "_module."),
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


def test_a_layout_of_another_program_is_named(tmp_path: Path, theirs: GPT2LMHeadModel) -> None:
    state = theirs.state_dict()
    without_positions = {name: value for name, value in as_unfused(to_nanogpt(state)).items() if "wpe" not in name}
    torch.save(without_positions, tmp_path / "model_000100.pt")
    assert "a model of nanochat needs its meta_*.json beside it" in refusal(tmp_path / "model_000100.pt")
    torch.save(state | {"transformer.h.0.attn.rotary_emb.inv_freq": torch.ones(6)}, tmp_path / "x.pt")
    assert "it holds a model with rotary positions" in refusal(tmp_path / "x.pt")
    torch.save({name.replace(".h.", ".h.layer_"): value for name, value in state.items()}, tmp_path / "x.pt")
    assert "but no transformer blocks with known names. 36 tensors have other names, such as 't" in refusal(tmp_path / "x.pt")


def test_only_whole_numbers_are_a_list_of_positions(tmp_path: Path, theirs: GPT2LMHeadModel) -> None:
    torch.save(theirs.state_dict() | {"transformer.pos": torch.arange(CONTEXT)}, tmp_path / "x.pt")
    assert same(load_pretrained(tmp_path / "x.pt", n_heads=4), theirs)
    torch.save(theirs.state_dict() | {"transformer.position_ids": torch.ones(CONTEXT, 48)}, tmp_path / "x.pt")
    assert "does not belong to the model (transformer.position_ids)" in refusal(tmp_path / "x.pt")


def test_an_old_half_precision_pickle_by_the_name_of_a_pickle_is_read(tmp_path: Path) -> None:
    model = hugging_face().half().float()
    state = {name.replace("lm_head.weight", "lm_head.decoder.weight"): value.half() for name, value in model.state_dict().items()}
    torch.save(state, tmp_path / "medium_ft.pkl", _use_new_zipfile_serialization=False)
    assert same(load_pretrained(tmp_path / "medium_ft.pkl", n_heads=4), model)
