"""How other programs name, shape and describe the tensors of a GPT.

Two families are known: GPT-2's names, which Hugging Face and nanoGPT share, and chapter 5's, which this program's are close to.

Source: transformers' GPT2LMHeadModel and GPT2Config; nanoGPT's GPT and GPTConfig; OpenAI's gpt-2 `src/model.py`;
`llms-from-scratch`'s GPTModel and GPTModelFast.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from gpt_pretrain.model.config import GPTConfig

# Modules of GPTModel and of its blocks: GPT-2's names.
GPT2_TOP = {"tok_emb": "wte", "pos_emb": "wpe", "final_norm": "ln_f", "out_head": "lm_head"}
GPT2_BLOCK = {
    "norm1": "ln_1",
    "att.qkv": "attn.c_attn",
    "att.out_proj": "attn.c_proj",
    "norm2": "ln_2",
    "ff.layers.0": "mlp.c_fc",
    "ff.layers.2": "mlp.c_proj",
}
TOP = {name: name for name in GPT2_TOP} | {theirs: ours for ours, theirs in GPT2_TOP.items()}
BLOCK = {name: name for name in GPT2_BLOCK} | {theirs: ours for ours, theirs in GPT2_BLOCK.items()} | {"att.proj": "att.out_proj"}
QKV_PARTS = {"att.W_query": 0, "att.W_key": 1, "att.W_value": 2}  # chapter 5 keeps them apart
KIND = {"weight": "weight", "bias": "bias", "scale": "weight", "shift": "bias"}

WRAPPERS = re.compile(r"^(module\.|_orig_mod\.|model\.|transformer\.)+")  # of DDP, torch.compile, Lightning, transformers
TENSOR = re.compile(r"(?:(?:trf_blocks|h)\.(\d{1,6})\.)?(.+)\.(weight|bias|scale|shift)")
CAUSAL_MASK = re.compile(r"(trf_blocks\.\d+\.att\.mask|h\.\d+\.attn\.(bias|masked_bias))")  # rebuilt, not learnt

HF_DEFAULTS = {"n_head": 12, "n_layer": 12, "n_embd": 768, "n_positions": 1024, "vocab_size": 50257, "tie_word_embeddings": True}
HF_GELUS = {"gelu_new": "tanh", "gelu_pytorch_tanh": "tanh", "gelu": "none"}
HF_FIXED = {  # what GPTModel does always, and transformers' setting for it
    "layer_norm_epsilon": 1e-5,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
}
OWN_KEY = "gpt_pretrain"  # in config.json: what GPT-2's own fields have no word for


@dataclass(frozen=True)
class TensorSlot:
    """Where a stored tensor belongs: a tensor of GPTModel, or one third (query, key, value) of one."""

    name: str
    part: int | None = None

    def __str__(self) -> str:
        return self.name if self.part is None else self.name.replace("qkv", ("W_query", "W_key", "W_value")[self.part])


def bare(name: str) -> str:
    """A tensor's name without what wrappers put before it."""
    return WRAPPERS.sub("", name.replace("._orig_mod.", "."))


def is_mask(name: str) -> bool:
    """Whether that is a buffer with the causal mask."""
    return CAUSAL_MASK.fullmatch(bare(name)) is not None


def slot_of(name: str) -> TensorSlot | None:
    """Where the tensor of that name belongs; None when no known layout has it."""
    match = TENSOR.fullmatch(bare(name))
    if match is None:
        return None
    layer, module, kind = match.groups()
    if layer is None:
        return TensorSlot(f"{TOP[module]}.{KIND[kind]}") if module in TOP else None
    block = f"trf_blocks.{int(layer)}"
    if module in QKV_PARTS:
        return TensorSlot(f"{block}.att.qkv.{KIND[kind]}", QKV_PARTS[module])
    return TensorSlot(f"{block}.{BLOCK[module]}.{KIND[kind]}") if module in BLOCK else None


def gpt2_name(name: str) -> str:
    """GPT-2's name of a tensor of GPTModel, as transformers' GPT2LMHeadModel has it."""
    match = TENSOR.fullmatch(name)
    assert match is not None, name
    layer, module, kind = match.groups()
    if layer is not None:
        return f"transformer.h.{layer}.{GPT2_BLOCK[module]}.{kind}"
    return f"{GPT2_TOP[module]}.{kind}" if module == "out_head" else f"transformer.{GPT2_TOP[module]}.{kind}"


def is_linear(name: str) -> bool:
    """Whether a tensor of GPTModel is a matrix that OpenAI and transformers store (in, out) instead of (out, in)."""
    return name.startswith("trf_blocks.") and name.endswith(".weight") and ".norm" not in name


def from_hf_config(fields: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """What a config.json says in this program's words.

    Returns:
        Fields of `GPTConfig`, and what keeps GPTModel from being that model.
    """
    problems = []
    if fields.get("model_type") != "gpt2":
        problems.append(f"model_type is {fields.get('model_type')!r}; only 'gpt2' can be read.")
    for name, fixed in HF_FIXED.items():
        if fields.get(name, fixed) != fixed:
            problems.append(f"{name} is {fields[name]!r}; GPTModel has {fixed!r} and no other.")
    given = HF_DEFAULTS | fields
    width = given["n_embd"]
    if fields.get("n_inner") not in (None, 4 * width if isinstance(width, int) else None):
        problems.append(f"n_inner is {fields['n_inner']!r}; GPTModel's feed-forward is four times n_embd wide.")
    gelu = HF_GELUS.get(str(fields.get("activation_function", "gelu_new")))
    if gelu is None:
        problems.append(f"activation_function is {fields['activation_function']!r}; GPTModel has {', '.join(HF_GELUS)}.")
    own = fields.get(OWN_KEY)
    own = own if isinstance(own, dict) else {}
    declared = {
        "vocab_size": given["vocab_size"],
        "context_length": given["n_positions"],
        "emb_dim": width,
        "n_heads": given["n_head"],
        "n_layers": given["n_layer"],
        "drop_rate": fields.get("resid_pdrop", 0.1),
        "gelu_approximate": gelu,
        "tie_embeddings": given["tie_word_embeddings"],
        "qkv_bias": own.get("qkv_bias", True),
        "init": own.get("init", "gpt2"),
    }
    return declared, problems


def to_hf_config(config: GPTConfig, *, tokenizer: str | None, eos_id: int | None) -> dict[str, Any]:
    """The fields of a transformers GPT2Config that make the same model."""
    gelus = {ours: theirs for theirs, ours in reversed(HF_GELUS.items())}
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": config.vocab_size,
        "n_positions": config.context_length,
        "n_embd": config.emb_dim,
        "n_head": config.n_heads,
        "n_layer": config.n_layers,
        "n_inner": None,
        "activation_function": gelus[config.gelu_approximate],
        "resid_pdrop": config.drop_rate,
        "embd_pdrop": config.drop_rate,
        "attn_pdrop": config.drop_rate,
        "tie_word_embeddings": config.tie_embeddings,
        "bos_token_id": eos_id,
        "eos_token_id": eos_id,
        **HF_FIXED,
        OWN_KEY: {"qkv_bias": config.qkv_bias, "init": config.init, "tokenizer": tokenizer},
    }


def from_nanogpt_args(fields: dict[str, Any]) -> dict[str, Any]:
    """What nanoGPT's `model_args` say in this program's words; nanoGPT computes the exact GELU and ties the embeddings."""
    names = {
        "vocab_size": "vocab_size",
        "block_size": "context_length",
        "n_embd": "emb_dim",
        "n_head": "n_heads",
        "n_layer": "n_layers",
        "dropout": "drop_rate",
    }
    declared = {ours: fields[theirs] for theirs, ours in names.items() if theirs in fields}
    return declared | {"gelu_approximate": "none", "qkv_bias": bool(fields.get("bias", True))}
