"""The same weights, in every way in which training programs store them: read as they are, or refused for what they are."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file, save_model
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2LMHeadModel

from gpt_pretrain.checkpoints.huggingface import export
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
        "it holds a Llama or a model like it, such as Mistral, Qwen or Phi (model.layers.0.self_attn.q_proj.weight). Only GPT-2 models can be read.",
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
        "is not a GPT-2: it has no token and position embeddings with a known name. 150 tensors have other names, such as 'layer0.weight'",
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


def test_generate_refuses_other_weights_in_one_line(tmp_path: Path, theirs: GPT2LMHeadModel, script: Callable[..., Any]) -> None:
    state = prefixed(theirs.state_dict(), "net.") | {f"net.extra.{number}.weight": torch.ones(2, 2) for number in range(150)}
    torch.save({"state_dict": state, "pytorch-lightning_version": "2.4.0"}, tmp_path / "net.ckpt")
    done = script("generate.py", "pretrained=net.ckpt", "n_heads=4", "prompt=Hi")
    assert done.returncode == 2
    assert done.stderr.strip().splitlines() == [
        "error: net.ckpt does not fit a GPT-2: 150 tensors do not belong to the model (net.extra.0.weight, net.extra.1.weight, "
        "net.extra.10.weight and 147 more). Nothing was loaded. If the model's output does not depend on them, save the state_dict() "
        "without them."
    ]


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


def test_a_model_without_learned_positions_is_named(tmp_path: Path, theirs: GPT2LMHeadModel) -> None:
    torch.save({name: value for name, value in theirs.state_dict().items() if "wpe" not in name}, tmp_path / "x.pt")
    assert "it has a token embedding (transformer.wte.weight), but no position embedding" in refusal(tmp_path / "x.pt")


def test_a_layout_of_another_program_is_named(tmp_path: Path, theirs: GPT2LMHeadModel) -> None:
    state = theirs.state_dict()
    without_positions = {name: value for name, value in as_unfused(to_nanogpt(state)).items() if "wpe" not in name}
    torch.save(without_positions, tmp_path / "model_000100.pt")
    assert "convert it to transformers' NanoChatForCausalLM" in refusal(tmp_path / "model_000100.pt")
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
