"""Weights from elsewhere, each source against the program that it comes from."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from gpt_pretrain.checkpoints.pretrained import load_pretrained, load_weights_into_gpt, open_weights
from gpt_pretrain.errors import UserError
from gpt_pretrain.generation.sampling import generate
from gpt_pretrain.model.config import GPTConfig
from gpt_pretrain.model.gpt2 import GPTModel
from tests.conftest import tiny_model

VOCAB, CONTEXT = 101, 24


def shaken(model: torch.nn.Module) -> Any:
    """The same model with no weight left at its start, biases least of all."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def hugging_face(**changes: Any) -> GPT2LMHeadModel:
    fields = {
        "vocab_size": VOCAB,
        "n_positions": CONTEXT,
        "n_embd": 48,
        "n_layer": 3,
        "n_head": 4,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    torch.manual_seed(0)
    return shaken(GPT2LMHeadModel(GPT2Config(**(fields | changes))))


def difference(ours: GPTModel, theirs: Callable[[Tensor], Any]) -> float:
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
def test_a_folder_of_transformers(tmp_path: Path, changes: dict[str, Any]) -> None:
    model = hugging_face(**changes)
    model.save_pretrained(tmp_path)
    ours = load_pretrained(tmp_path)
    assert difference(ours, model) <= 1e-5
    assert ours.config.tie_embeddings == model.config.tie_word_embeddings
    assert ours.config.drop_rate == model.config.resid_pdrop
    assert not ours.training
    assert ours.num_parameters() == model.num_parameters()
    for name in ("config.json", "model.safetensors"):  # a file of the folder stands for it
        assert difference(load_pretrained(str(tmp_path / name)), model) <= 1e-5


def test_the_single_file_counts_where_an_index_lies_beside_it(tmp_path: Path, theirs: GPT2LMHeadModel) -> None:
    hugging_face(n_head=2).save_pretrained(tmp_path, max_shard_size="100KB")
    theirs.save_pretrained(tmp_path)  # as transformers itself leaves it
    assert (tmp_path / "model.safetensors.index.json").exists()
    (tmp_path / "checkpoints").mkdir()
    assert difference(load_pretrained(tmp_path), theirs) <= 1e-5


def test_a_folder_in_shards(tmp_path: Path, theirs: GPT2LMHeadModel) -> None:
    theirs.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    assert difference(load_pretrained(tmp_path), theirs) <= 1e-5


def test_a_folder_without_the_prefix_and_one_of_pickles(tmp_path: Path, theirs: GPT2LMHeadModel) -> None:
    theirs.transformer.save_pretrained(tmp_path)
    assert difference(load_pretrained(tmp_path), theirs) <= 1e-5
    (tmp_path / "model.safetensors").unlink()
    torch.save(theirs.state_dict(), tmp_path / "pytorch_model.bin")
    assert difference(load_pretrained(tmp_path), theirs) <= 1e-5


def test_a_bare_state_dict_with_the_masks_that_old_releases_stored(tmp_path: Path, theirs: GPT2LMHeadModel) -> None:
    masks = {f"transformer.h.{layer}.attn.bias": torch.ones(1, 1, CONTEXT, CONTEXT).tril().bool() for layer in range(3)}
    torch.save(theirs.state_dict() | masks, tmp_path / "odd.name")
    ours = load_pretrained(tmp_path / "odd.name", n_heads=4)
    assert difference(ours, theirs) <= 1e-5
    assert ours.config.tie_embeddings, "one piece of memory in the file is one tensor here"
    torch.save(theirs.state_dict() | masks, tmp_path / "old", _use_new_zipfile_serialization=False)
    assert difference(load_pretrained(tmp_path / "old", n_heads=4), theirs) <= 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_widened_unless_asked_otherwise(tmp_path: Path, theirs: GPT2LMHeadModel, dtype: torch.dtype) -> None:
    half = hugging_face().to(dtype)
    half.save_pretrained(tmp_path)
    assert difference(load_pretrained(tmp_path), half.float()) <= 1e-5
    assert {value.dtype for value in load_pretrained(tmp_path, dtype=dtype, device="cpu").state_dict().values()} == {dtype}


def to_nanogpt(state: dict[str, Tensor], *, prefix: str = "") -> dict[str, Tensor]:
    """nanoGPT keeps GPT-2's names and stores linear layers (out, in)."""
    turned = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
    return {prefix + name: value.T.contiguous() if name.endswith(turned) else value for name, value in state.items()}


def nanogpt_forward(state: dict[str, Tensor], token_ids: Tensor, *, n_layer: int, n_head: int) -> Tensor:
    """nanoGPT's model, restated: exact GELU, biases only where there are some."""

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ state[f"{name}.weight"].T + state.get(f"{name}.bias", torch.zeros(1))

    def norm(x: Tensor, name: str) -> Tensor:
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, correction=0) + 1e-5).sqrt()
        return x * state[f"{name}.weight"] + state.get(f"{name}.bias", torch.zeros(1))

    B, T = token_ids.shape
    x = state["transformer.wte.weight"][token_ids] + state["transformer.wpe.weight"][:T]
    for layer in range(n_layer):
        h = f"transformer.h.{layer}"
        q, k, v = (
            part.view(B, T, n_head, -1).transpose(1, 2) for part in linear(norm(x, f"{h}.ln_1"), f"{h}.attn.c_attn").chunk(3, -1)
        )
        scores = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).masked_fill(~torch.ones(T, T).tril().bool(), -torch.inf)
        x = x + linear((scores.softmax(-1) @ v).transpose(1, 2).reshape(B, T, -1), f"{h}.attn.c_proj")
        hidden = linear(norm(x, f"{h}.ln_2"), f"{h}.mlp.c_fc")
        x = x + linear(hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2))), f"{h}.mlp.c_proj")
    return norm(x, "transformer.ln_f") @ state["lm_head.weight"].T


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("prefix", ["", "_orig_mod."])
def test_a_checkpoint_of_nanogpt(tmp_path: Path, bias: bool, prefix: str) -> None:
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
def test_the_state_dict_of_chapter_5(tmp_path: Path, kind: str, qkv_bias: bool, form: str) -> None:
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


def test_heads_are_asked_for_where_nothing_tells_them(tmp_path: Path) -> None:
    torch.save(tiny_model().state_dict(), tmp_path / "own.pth")
    with pytest.raises(
        UserError, match=r"own\.pth does not say how many attention heads .* Add n_heads=\.\.\. .*divisor of its emb_dim 32"
    ):
        load_pretrained(tmp_path / "own.pth")
    with pytest.raises(UserError, match=r"own\.pth: n_heads=5 does not divide emb_dim=32"):
        load_pretrained(tmp_path / "own.pth", n_heads=5)
    assert difference(load_pretrained(tmp_path / "own.pth", n_heads=4), tiny_model()) == 0
    small = tiny_model(emb_dim=768, n_layers=12, n_heads=12, vocab_size=7, context_length=3)
    torch.save(small.half().state_dict(), tmp_path / "small.pth")
    assert open_weights(tmp_path / "small.pth").config.n_heads == 12
    assert open_weights(tmp_path / "small.pth", n_heads=8).config.n_heads == 8, "what is said counts more than what is guessed"


def test_the_context_can_be_cut_and_not_stretched(tmp_path: Path, theirs: GPT2LMHeadModel) -> None:
    theirs.save_pretrained(tmp_path)
    short = open_weights(tmp_path).build(context_length=8)
    assert short.pos_emb.weight.shape == (8, 48)
    assert short.pos_emb.weight.untyped_storage().nbytes() == 8 * 48 * 4, "the rest is not kept alive, nor saved with it"
    assert difference(short, theirs) <= 1e-5
    with pytest.raises(UserError, match=r"model\.context_length=25: .* can be shortened, not lengthened"):
        open_weights(tmp_path).build(context_length=25)


def numpy_params(model: GPT2LMHeadModel, *, under_ln_f: bool) -> dict[str, Any]:
    """The nested arrays that chapter 5 reads from OpenAI's original files."""
    state = {name.removeprefix("transformer."): value.numpy() for name, value in model.state_dict().items()}

    def pair(name: str, weight: str) -> dict[str, np.ndarray]:
        return {weight: state[f"{name}.weight"], "b": state[f"{name}.bias"]}

    blocks = [
        {
            "ln_1": pair(f"h.{layer}.ln_1", "g"),
            "attn": {"c_attn": pair(f"h.{layer}.attn.c_attn", "w"), "c_proj": pair(f"h.{layer}.attn.c_proj", "w")},
            "ln_2": pair(f"h.{layer}.ln_2", "g"),
            "mlp": {"c_fc": pair(f"h.{layer}.mlp.c_fc", "w"), "c_proj": pair(f"h.{layer}.mlp.c_proj", "w")},
        }
        for layer in range(model.config.n_layer)
    ]
    last = pair("ln_f", "g")
    return {"wte": state["wte.weight"], "wpe": state["wpe.weight"], "blocks": blocks} | ({"ln_f": last} if under_ln_f else last)


def empty(**changes: Any) -> GPTModel:
    fields = {"vocab_size": VOCAB, "context_length": CONTEXT, "emb_dim": 48, "n_heads": 4, "n_layers": 3, "qkv_bias": True}
    return GPTModel(GPTConfig(**(fields | changes))).eval()


@pytest.mark.parametrize("under_ln_f", [True, False])
@pytest.mark.parametrize("tie_embeddings", [True, False])
def test_openai_s_parameters(theirs: GPT2LMHeadModel, under_ln_f: bool, tie_embeddings: bool) -> None:
    model = empty(tie_embeddings=tie_embeddings)
    load_weights_into_gpt(model, numpy_params(theirs, under_ln_f=under_ln_f))
    assert difference(model, theirs) <= 1e-5


def test_openai_s_parameters_that_do_not_fit_leave_the_model_as_it_was(theirs: GPT2LMHeadModel) -> None:
    params = numpy_params(theirs, under_ln_f=False)
    params["wpe"] = params["wpe"][:, :40]
    params["extra"] = params["g"]
    del params["blocks"][1]["mlp"]["c_fc"]["b"]
    params["blocks"][2]["ln_1"]["g"] = np.full(48, np.nan, dtype=np.float32)
    model = empty()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(UserError) as caught:
        load_weights_into_gpt(model, params)
    told = "\n".join(caught.value.problems)
    assert "wpe.weight has shape (24, 40), the model needs (24, 48)" in told
    assert "the tensor extra is not one of a GPT-2's" in told
    assert "the tensor h.1.mlp.c_fc.bias is missing" in told
    assert "h.2.ln_1.weight holds numbers that are not finite" in told
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    for nothing in ({}, None, {"blocks": 3}):
        with pytest.raises(UserError, match="lack 'blocks'"):
            load_weights_into_gpt(model, nothing)
    odd = numpy_params(theirs, under_ln_f=False)
    odd |= {"wte": None, "wpe": odd["wpe"].astype(">f8")[::-1], "g": torch.nn.Parameter(torch.ones(48)), "b": "text"}
    with pytest.raises(UserError) as caught:
        load_weights_into_gpt(model, odd)
    assert "The parameters: ln_f.b is no array of numbers." in caught.value.problems
    assert "The parameters: the tensor wte.weight has shape (), the model needs (101, 48)." in caught.value.problems
    with pytest.raises(UserError, match=r"h\.0\.attn\.c_attn\.bias is not zero, but the model has qkv_bias=False"):
        load_weights_into_gpt(empty(qkv_bias=False), numpy_params(theirs, under_ln_f=True))


def test_all_that_does_not_fit_is_told_at_once_in_the_names_of_the_file(tmp_path: Path, theirs: GPT2LMHeadModel) -> None:
    theirs.save_pretrained(tmp_path)
    state = {name: value.clone() for name, value in theirs.state_dict().items() if name != "lm_head.weight"}
    state["transformer.h.1.mlp.c_fc.bias"] = torch.zeros(7)
    state["transformer.h.2.attn.rotary"] = torch.zeros(2)
    state["transformer.h.0.ln_1.bias"] = torch.zeros(48, dtype=torch.int64)
    del state["transformer.h.0.attn.c_proj.weight"], state["transformer.ln_f.bias"]
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(UserError) as caught:
        load_pretrained(tmp_path)
    told = "\n".join(caught.value.problems)
    assert "transformer.h.1.mlp.c_fc.bias has shape (7,), the model needs (192,)" in told
    assert "transformer.h.2.attn.rotary is not one of a GPT-2's" in told
    assert "transformer.h.0.ln_1.bias holds I64, not floating-point numbers" in told
    assert "transformer.h.0.attn.c_proj.weight is missing" in told
    assert "transformer.ln_f.bias is missing" in told


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("rows", [1, 2])
def test_greedy_texts_equal_those_of_transformers(tmp_path: Path, use_cache: bool, rows: int) -> None:
    model = hugging_face(n_positions=64)
    model.save_pretrained(tmp_path)
    prompt = torch.randint(1, VOCAB, (rows, 5))
    expected = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=50, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    assert len(expected[0].unique()) > 5, "a text that repeats itself would hide differences"
    assert torch.equal(generate(load_pretrained(tmp_path), prompt, 50, use_cache=use_cache), expected)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("nowhere.pth", r"nowhere\.pth: there is no such file or folder"),
        ("a/b/c", "there is no such file or folder"),
        (".", "holds no model: it has neither config.json"),
    ],
)
def test_what_is_not_there_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, told: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=told):
        load_pretrained(name)
