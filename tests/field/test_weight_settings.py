"""Settings and tokenizers beside weights: followed, refused by name, or left aside if they belong to something else."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import GPT2LMHeadModel

from gpt_pretrain.checkpoints.pretrained import load_pretrained, open_weights
from gpt_pretrain.tokenizers.build import build_tokenizer
from tests.helpers.foreign_weights import (
    refusal,
    rewrite_config,
    same,
)
from tests.helpers.other_models import CONTEXT, hugging_face, to_nanogpt
from tests.helpers.vocabularies import byte_level


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
        ({"activation_function": "relu"}, "activation_function='relu' is not supported; this program's GPT-2 has GELU"),
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


def test_a_number_of_heads_in_the_settings_is_only_a_default(tmp_path: Path, theirs: GPT2LMHeadModel) -> None:
    torch.save({"model": theirs.state_dict(), "hyper_parameters": {"decoder": {"num_heads": 6}}}, tmp_path / "x.ckpt")
    assert load_pretrained(tmp_path / "x.ckpt").config.n_heads == 6
    assert same(load_pretrained(tmp_path / "x.ckpt", n_heads=4), theirs)
    torch.save({"model": theirs.state_dict(), "args": {"n_head": 7}}, tmp_path / "y.ckpt")
    assert "does not state its number of attention heads" in refusal(tmp_path / "y.ckpt", n_heads=None)


def test_a_file_of_weights_with_another_name_follows_the_config_beside_it(tmp_path: Path, theirs: GPT2LMHeadModel) -> None:
    theirs.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "model.fp32.safetensors")
    assert same(load_pretrained(tmp_path), theirs)
    (tmp_path / "config.json").write_text('{"n_embd": 48, "dataset": "x"}')
    assert "does not state its number of attention heads" in refusal(tmp_path, n_heads=None)


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
