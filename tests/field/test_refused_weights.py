"""Weights that cannot be used are refused with one message that says what they are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import GPT2LMHeadModel

from tests.helpers.foreign_weights import (
    State,
    prefixed,
    refusal,
)
from tests.helpers.other_models import CONTEXT

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


def test_a_model_without_learned_positions_is_named(tmp_path: Path, theirs: GPT2LMHeadModel) -> None:
    torch.save({name: value for name, value in theirs.state_dict().items() if "wpe" not in name}, tmp_path / "x.pt")
    assert "it has a token embedding (transformer.wte.weight), but no position embedding" in refusal(tmp_path / "x.pt")
