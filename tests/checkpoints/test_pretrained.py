"""Weights of other programs, each compared with the program that it comes from."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import GPT2LMHeadModel

from gpt_pretrain.checkpoints.pretrained import load_pretrained, load_weights_into_gpt, open_weights
from gpt_pretrain.checkpoints.serialization.tensor_files import is_finite_tensor
from gpt_pretrain.errors import UserError
from gpt_pretrain.generation.sampling import generate
from gpt_pretrain.model.config import GPTConfig
from gpt_pretrain.model.gpt2 import GPTModel
from tests.conftest import tiny_model
from tests.helpers.other_models import CONTEXT, VOCAB, hugging_face, nanogpt_forward, numpy_params, shaken, to_nanogpt


def difference(ours: GPTModel, theirs: Callable[[Tensor], Any]) -> float:
    """Return the largest difference between the logits of two models."""
    token_ids = torch.randint(0, ours.config.vocab_size, (3, ours.config.context_length))
    with torch.no_grad():
        logits = theirs(token_ids)
        return float((ours(token_ids) - getattr(logits, "logits", logits)).abs().max())


@pytest.fixture(scope="module")
def theirs() -> GPT2LMHeadModel:
    return hugging_face()


@pytest.mark.parametrize(
    "changes",
    [{}, {"tie_word_embeddings": False}, {"activation_function": "gelu"}, {"n_layer": 1, "n_head": 1, "resid_pdrop": 0.0}],
    ids=["plain", "own head", "exact GELU", "one layer"],
)
def test_a_folder_of_transformers_is_loaded(tmp_path: Path, changes: dict[str, Any]) -> None:
    model = hugging_face(**changes)
    model.save_pretrained(tmp_path)
    ours = load_pretrained(tmp_path)
    assert difference(ours, model) <= 1e-5
    assert ours.config.tie_embeddings == model.config.tie_word_embeddings
    assert ours.config.drop_rate == model.config.resid_pdrop
    assert not ours.training
    assert ours.num_parameters() == model.num_parameters()
    for name in ("config.json", "model.safetensors"):  # either file stands for the folder
        assert difference(load_pretrained(str(tmp_path / name)), model) <= 1e-5


def test_a_single_file_takes_precedence_over_an_index(tmp_path: Path, theirs: GPT2LMHeadModel) -> None:
    hugging_face(n_head=2).save_pretrained(tmp_path, max_shard_size="100KB")
    theirs.save_pretrained(tmp_path)  # transformers itself leaves the old index in place
    assert (tmp_path / "model.safetensors.index.json").exists()
    (tmp_path / "checkpoints").mkdir()
    assert difference(load_pretrained(tmp_path), theirs) <= 1e-5


def test_a_folder_of_shards_is_loaded(tmp_path: Path, theirs: GPT2LMHeadModel) -> None:
    theirs.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    assert difference(load_pretrained(tmp_path), theirs) <= 1e-5


def test_a_folder_without_the_prefix_and_a_folder_of_pickles_are_loaded(tmp_path: Path, theirs: GPT2LMHeadModel) -> None:
    theirs.transformer.save_pretrained(tmp_path)
    assert difference(load_pretrained(tmp_path), theirs) <= 1e-5
    (tmp_path / "model.safetensors").unlink()
    torch.save(theirs.state_dict(), tmp_path / "pytorch_model.bin")
    assert difference(load_pretrained(tmp_path), theirs) <= 1e-5


def test_a_bare_state_dict_with_the_masks_of_old_releases_is_loaded(tmp_path: Path, theirs: GPT2LMHeadModel) -> None:
    masks = {f"transformer.h.{layer}.attn.bias": torch.ones(1, 1, CONTEXT, CONTEXT).tril().bool() for layer in range(3)}
    torch.save(theirs.state_dict() | masks, tmp_path / "any.name")
    ours = load_pretrained(tmp_path / "any.name", n_heads=4)
    assert difference(ours, theirs) <= 1e-5
    assert ours.config.tie_embeddings, "two names that share memory in the file are one tensor"
    torch.save(theirs.state_dict() | masks, tmp_path / "old", _use_new_zipfile_serialization=False)
    assert difference(load_pretrained(tmp_path / "old", n_heads=4), theirs) <= 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_loaded_as_fp32_unless_a_dtype_is_given(
    tmp_path: Path, theirs: GPT2LMHeadModel, dtype: torch.dtype
) -> None:
    half = hugging_face().to(dtype)
    half.save_pretrained(tmp_path)
    assert difference(load_pretrained(tmp_path), half.float()) <= 1e-5
    assert {value.dtype for value in load_pretrained(tmp_path, dtype=dtype, device="cpu").state_dict().values()} == {dtype}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("prefix", ["", "_orig_mod."])
def test_a_checkpoint_of_nanogpt_is_loaded(tmp_path: Path, bias: bool, prefix: str) -> None:
    state = to_nanogpt(hugging_face().state_dict())
    if not bias:
        state = {name: value for name, value in state.items() if not name.endswith(".bias")}
    arguments = {
        "n_layer": 3,
        "n_head": 4,
        "n_embd": 48,
        "block_size": CONTEXT,
        "bias": bias,
        "vocab_size": VOCAB,
        "dropout": 0.2,
    }
    content = {"model": {prefix + name: value for name, value in state.items()}, "model_args": arguments, "iter_num": 5}
    torch.save(
        content | {"optimizer": {"state": {}}, "best_val_loss": torch.tensor(3.0), "config": {"dataset": "x"}},
        tmp_path / "ckpt.pt",
    )
    ours = load_pretrained(tmp_path / "ckpt.pt")
    assert difference(ours, lambda token_ids: nanogpt_forward(state, token_ids, n_layer=3, n_head=4)) <= 1e-5
    assert (ours.config.qkv_bias, ours.config.tie_embeddings, ours.config.drop_rate) == (bias, True, 0.2)


CHAPTER = {"vocab_size": VOCAB, "context_length": CONTEXT, "emb_dim": 48, "n_heads": 4, "n_layers": 3, "drop_rate": 0.1}


@pytest.mark.parametrize("qkv_bias", [True, False])
@pytest.mark.parametrize("kind", ["GPTModel", "GPTModelFast"])
@pytest.mark.parametrize("form", ["plain", "wrapped", "compiled", "safetensors"])
def test_the_state_dict_of_chapter_5_is_loaded(tmp_path: Path, kind: str, qkv_bias: bool, form: str) -> None:
    chapter4 = pytest.importorskip("llms_from_scratch.ch04", reason="pip install --no-deps llms-from-scratch")
    torch.manual_seed(0)
    model = shaken(getattr(chapter4, kind)(CHAPTER | {"qkv_bias": qkv_bias}))
    state, path = model.state_dict(), tmp_path / "model.pth"
    assert any(name.endswith("att.mask") for name in state) == (kind == "GPTModel")
    if form == "safetensors":
        path = tmp_path / "model"
        save_file(state, path)
    elif form == "wrapped":
        torch.save({"model_state_dict": state, "optimizer_state_dict": torch.optim.AdamW(model.parameters()).state_dict()}, path)
    else:
        torch.save({("_orig_mod." if form == "compiled" else "") + name: value for name, value in state.items()}, path)
    ours = load_pretrained(path, n_heads=4)
    assert difference(ours, model) <= 1e-5
    assert (ours.config.qkv_bias, ours.config.tie_embeddings) == (qkv_bias, False)


def test_n_heads_is_required_if_nothing_states_it(tmp_path: Path) -> None:
    torch.save(tiny_model().state_dict(), tmp_path / "own.pth")
    with pytest.raises(
        UserError, match=r"own\.pth does not state its number of attention heads.* Add n_heads=\.\.\. .*divisor of its emb_dim=32"
    ):
        load_pretrained(tmp_path / "own.pth")
    with pytest.raises(UserError, match=r"own\.pth: n_heads=5 does not divide emb_dim=32"):
        load_pretrained(tmp_path / "own.pth", n_heads=5)
    assert difference(load_pretrained(tmp_path / "own.pth", n_heads=4), tiny_model()) == 0
    small = tiny_model(emb_dim=768, n_layers=12, n_heads=12, vocab_size=7, context_length=3)
    torch.save(small.half().state_dict(), tmp_path / "small.pth")
    assert open_weights(tmp_path / "small.pth").config.n_heads == 12
    assert open_weights(tmp_path / "small.pth", n_heads=8).config.n_heads == 8, "the given number takes precedence over the guess"


def test_the_context_can_be_shortened_but_not_lengthened(tmp_path: Path, theirs: GPT2LMHeadModel) -> None:
    theirs.save_pretrained(tmp_path)
    short = open_weights(tmp_path).build(context_length=8)
    assert short.pos_emb.weight.shape == (8, 48)
    assert short.pos_emb.weight.untyped_storage().nbytes() == 8 * 48 * 4, "the remaining positions are not kept in memory"
    assert difference(short, theirs) <= 1e-5
    with pytest.raises(
        UserError, match=r"model\.context_length=25 exceeds the 24 positions of .* can be shortened, not lengthened"
    ):
        open_weights(tmp_path).build(context_length=25)


def fresh(**changes: Any) -> GPTModel:
    fields = {"vocab_size": VOCAB, "context_length": CONTEXT, "emb_dim": 48, "n_heads": 4, "n_layers": 3, "qkv_bias": True}
    return GPTModel(GPTConfig(**(fields | changes))).eval()


@pytest.mark.parametrize("under_ln_f", [True, False])
@pytest.mark.parametrize("tie_embeddings", [True, False])
def test_openai_s_parameters_are_loaded(theirs: GPT2LMHeadModel, under_ln_f: bool, tie_embeddings: bool) -> None:
    model = fresh(tie_embeddings=tie_embeddings)
    load_weights_into_gpt(model, numpy_params(theirs, under_ln_f=under_ln_f))
    assert difference(model, theirs) <= 1e-5


def test_parameters_of_openai_that_do_not_fit_leave_the_model_unchanged(theirs: GPT2LMHeadModel) -> None:
    params = numpy_params(theirs, under_ln_f=False)
    params["wpe"] = params["wpe"][:, :40]
    params["extra"] = params["g"]
    del params["blocks"][1]["mlp"]["c_fc"]["b"]
    params["blocks"][2]["ln_1"]["g"] = np.full(48, np.nan, dtype=np.float32)
    model = fresh()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(UserError) as caught:
        load_weights_into_gpt(model, params)
    message = "\n".join(caught.value.problems)
    assert "wpe.weight has (24, 40), but the model needs (24, 48)" in message
    assert "1 tensor does not belong to the model (extra)" in message
    assert "1 tensor is missing (h.1.mlp.c_fc.bias)" in message
    assert "h.2.ln_1.weight holds NaN or infinity" in message
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    for nothing in ({}, None, {"blocks": 3}):
        with pytest.raises(UserError, match="lacks 'blocks'"):
            load_weights_into_gpt(model, nothing)
    damaged = numpy_params(theirs, under_ln_f=False)
    damaged |= {"wte": None, "wpe": damaged["wpe"].astype(">f8")[::-1], "g": torch.nn.Parameter(torch.ones(48)), "b": "text"}
    with pytest.raises(UserError) as caught:
        load_weights_into_gpt(model, damaged)
    assert "params: ln_f.b is not an array of numbers." in caught.value.problems
    assert "wte.weight has (), but the model needs (101, 48)" in caught.value.problems[1]
    with pytest.raises(UserError, match=r"h\.0\.attn\.c_attn\.bias is not zero, but the model has qkv_bias=False"):
        load_weights_into_gpt(fresh(qkv_bias=False), numpy_params(theirs, under_ln_f=True))


def test_one_message_names_all_kinds_of_misfits(tmp_path: Path, theirs: GPT2LMHeadModel) -> None:
    theirs.save_pretrained(tmp_path)
    state = {name: value.clone() for name, value in theirs.state_dict().items() if name != "lm_head.weight"}
    state["transformer.h.1.mlp.c_fc.bias"] = torch.zeros(7)
    state["transformer.h.2.attn.extra"] = torch.zeros(2)
    state["transformer.h.0.ln_1.bias"] = torch.zeros(48, dtype=torch.int64)
    del state["transformer.h.0.attn.c_proj.weight"], state["transformer.ln_f.bias"]
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(UserError) as caught:
        load_pretrained(tmp_path)
    (message,) = caught.value.problems
    assert "2 tensors are missing (transformer.h.0.attn.c_proj.weight, transformer.ln_f.bias)" in message
    assert "1 tensor does not belong to the model (transformer.h.2.attn.extra)" in message
    assert "the wrong shape (transformer.h.1.mlp.c_fc.bias has (7,), but the model needs (192,))" in message
    assert "is not in fp64, fp32, fp16 or bf16 (transformer.h.0.ln_1.bias holds I64)" in message


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("rows", [1, 2])
def test_greedy_texts_equal_transformers_texts(tmp_path: Path, use_cache: bool, rows: int) -> None:
    model = hugging_face(n_positions=64)
    model.save_pretrained(tmp_path)
    prompt = torch.randint(1, VOCAB, (rows, 5))
    expected = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=50, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    assert len(expected[0].unique()) > 5, "a repetitive text would hide differences"
    assert torch.equal(generate(load_pretrained(tmp_path), prompt, 50, use_cache=use_cache), expected)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere.pth", r"nowhere\.pth: there is no such file or folder"),
        ("a/b/c", "there is no such file or folder"),
        (".", "holds no model: neither a config.json"),
    ],
)
def test_missing_sources_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        load_pretrained(name)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_single_number_that_is_not_finite_is_found_wherever_it_is(dtype: torch.dtype, value: float) -> None:
    values = torch.full((301, 257), torch.finfo(dtype).max, dtype=dtype)
    values[::2] *= -1  # a sum would overflow
    assert is_finite_tensor(values)
    assert is_finite_tensor(values.T)
    for index in (0, 1, 128, 40_000, values.numel() - 1):
        broken = values.clone()
        broken.view(-1)[index] = value
        assert not is_finite_tensor(broken)
        assert not is_finite_tensor(broken.T)


def test_finite_numbers_are_also_those_of_tensors_without_order_or_numbers() -> None:
    for values in (torch.zeros(0, 3), torch.tensor(3), torch.tensor([True]), torch.ones(2, dtype=torch.complex64)):
        assert is_finite_tensor(values)
    assert not is_finite_tensor(torch.tensor([complex(0, float("inf"))]))
    assert not is_finite_tensor(torch.tensor(float("nan")))
