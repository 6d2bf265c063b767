"""The names and shapes of a GPT's tensors in other programs, and their configs.

Two families of names are known: GPT-2's, which Hugging Face and nanoGPT share, and chapter 5's, which resemble this program's.

Source: transformers' GPT2LMHeadModel and GPT2Config; nanoGPT's GPT and GPTConfig; OpenAI's gpt-2 `src/model.py`;
`llms-from-scratch`'s GPTModel and GPTModelFast.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from gpt_pretrain.checkpoints.formats.stated_settings import HF_GELUS, READ_GELUS, as_count, as_number, other_settings
from gpt_pretrain.model.config import GPTConfig
from gpt_pretrain.system.shown_values import short_repr

# Files of a Hugging Face folder.
CONFIG_FILE, SAFETENSORS_FILE, PICKLE_FILE = "config.json", "model.safetensors", "pytorch_model.bin"
SHARD_INDEX, PICKLE_INDEX = "model.safetensors.index.json", "pytorch_model.bin.index.json"
WEIGHTS_FILES = (SAFETENSORS_FILE, SHARD_INDEX, PICKLE_FILE, PICKLE_INDEX)  # the first one that exists is read
# The name of an index, perhaps with the name of a variant such as fp16.
ANY_INDEX = re.compile(r"(?P<kind>model\.safetensors|pytorch_model\.bin)\.index(\.[\w-]+)?\.json")

# The modules of GPTModel and of its blocks, with GPT-2's names for them.
GPT2_TOP = {"tok_emb": "wte", "pos_emb": "wpe", "final_norm": "ln_f", "out_head": "lm_head"}
GPT2_BLOCK = {
    "norm1": "ln_1",
    "att.qkv": "attn.c_attn",
    "att.out_proj": "attn.c_proj",
    "norm2": "ln_2",
    "ff.layers.0": "mlp.c_fc",
    "ff.layers.2": "mlp.c_proj",
}
# All known names of a module, with GPTModel's name for it.
TOP_MODULES = {name: name for name in GPT2_TOP} | {theirs: ours for ours, theirs in GPT2_TOP.items()}
BLOCK_MODULES = {name: name for name in GPT2_BLOCK} | {theirs: ours for ours, theirs in GPT2_BLOCK.items()}
TOP_MODULES |= {"lm_head.decoder": "out_head", "head": "out_head"}  # pytorch-pretrained-bert's and minGPT's names
TOP_MODULES["bigram_emb"], BLOCK_MODULES["att.value_emb"] = "bigram_emb", "att.value_emb"  # the modern model's own
BLOCK_MODULES |= dict.fromkeys(("att.proj", "attn.proj", "attn.out_proj"), "att.out_proj")
# Separate modules for query, key and value: chapter 5's, and those of forks of nanoGPT.
QKV_PARTS = {"att.W_query": 0, "att.W_key": 1, "att.W_value": 2}
QKV_PARTS |= {f"attn.{name}": part for part, q in enumerate("qkv") for name in (f"{q}_proj", f"c_{q}")}
QKV_PARTS |= {"attn.query": 0, "attn.key": 1, "attn.value": 2}
PARAMETERS = {"weight": "weight", "bias": "bias", "scale": "weight", "shift": "bias", "gamma": "weight", "beta": "bias"}

TENSOR = re.compile(r"(?:trf_blocks\.(\d+)\.)?(.+)\.(weight|bias)")  # of GPTModel

HF_DEFAULTS = {"n_head": 12, "n_layer": 12, "n_embd": 768, "n_positions": 1024, "vocab_size": 50257, "tie_word_embeddings": True}
# Older or more general names of these fields.
HF_ALIASES = {"n_positions": ("n_ctx", "max_position_embeddings"), "n_embd": ("hidden_size",)}
HF_ALIASES |= {"n_layer": ("num_hidden_layers",), "n_head": ("num_attention_heads",)}
# Settings of transformers for which GPTModel has no option, with the only value that matches GPTModel.
HF_FIXED = {
    "layer_norm_epsilon": 1e-5,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
}
# Settings that other programs add to GPT-2, with the value that changes nothing.
ADDED_SETTINGS = {
    **{"multi_query": False, "alibi": False, "rotary": False, "rotary_emb_fraction": 0, "rms_norm": False, "use_rms_norm": False},
    **{"parallel_block": False, "prenorm": True, "position_embedding_type": "absolute"},
}
OWN_FIELDS = {"activation_function", *HF_FIXED, *ADDED_SETTINGS}
MAX_ARCHITECTURES = 10  # classes in a config that are looked at; the settings in a file may share a long list of them
OTHER_OUTPUTS = re.compile(r"\w+For(Sequence|Token)Classification|\w+ForQuestionAnswering")  # classes of transformers
OWN_KEY = "gpt_pretrain"  # in config.json: the settings that GPT-2's own fields cannot express
NANOGPT_FIELDS = {
    "vocab_size": "vocab_size",
    "block_size": "context_length",
    "n_embd": "emb_dim",
    "n_head": "n_heads",
    "n_layer": "n_layers",
    "dropout": "drop_rate",
}


@dataclass(frozen=True)
class TensorSlot:
    """The destination of a stored tensor: a tensor of GPTModel, or one third of it (parts 0, 1, 2: query, key, value)."""

    name: str
    part: int | None = None

    def __str__(self) -> str:
        return self.name if self.part is None else self.name.replace("qkv", ("W_query", "W_key", "W_value")[self.part])


def possible_slots(name: str) -> list[TensorSlot]:
    """Return the slots in which a tensor of GPTModel can be stored: the whole tensor, then its three parts, if it has any."""
    return [TensorSlot(name)] + ([TensorSlot(name, part) for part in range(3)] if ".att.qkv." in name else [])


def gpt2_name(name: str) -> str:
    """Return the name that transformers' GPT2LMHeadModel has for a tensor of GPTModel."""
    match = TENSOR.fullmatch(name)
    assert match is not None, name
    layer, module, parameter = match.groups()
    if layer is not None:
        return f"transformer.h.{layer}.{GPT2_BLOCK[module]}.{parameter}"
    return f"{GPT2_TOP[module]}.{parameter}" if module == "out_head" else f"transformer.{GPT2_TOP[module]}.{parameter}"


def is_linear(name: str) -> bool:
    """Return whether a tensor of GPTModel is a matrix that OpenAI and transformers store as (in, out), not (out, in)."""
    return name.startswith("trf_blocks.") and name.endswith(".weight") and ".norm" not in name


def from_hf_config(fields: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Translate the fields of a config.json into fields of `GPTConfig`.

    Returns:
        The fields, and the reasons why GPTModel cannot be this model.
    """
    named = {name: fields[alias] for name, aliases in HF_ALIASES.items() for alias in reversed(aliases) if alias in fields}
    values = HF_DEFAULTS | named | fields
    values |= {name: as_count(values[name]) for name in HF_DEFAULTS if name != "tie_word_embeddings"}
    gelu = READ_GELUS.get(str(fields.get("activation_function", "gelu_new")))
    own = fields.get(OWN_KEY)
    own = own if isinstance(own, dict) else {}
    declared = {
        "vocab_size": _with_special_tokens(values),
        "context_length": values["n_positions"],
        "emb_dim": values["n_embd"],
        "n_heads": values["n_head"],
        "n_layers": values["n_layer"],
        "drop_rate": as_number(fields.get("resid_pdrop", 0.1)),
        "gelu_approximate": gelu,
        "tie_embeddings": values["tie_word_embeddings"],
        "qkv_bias": own.get("qkv_bias", True),
        "init": own.get("init", "gpt2"),
    }
    return declared, _unsupported(fields, width=values["n_embd"], gelu=gelu)


def _with_special_tokens(values: dict[str, Any]) -> Any:
    """Return the number of rows of the vocabulary. The first releases of transformers counted added tokens separately."""
    size, added = values["vocab_size"], values.get("n_special", 0)
    return size + added if isinstance(size, int) and isinstance(added, int) else size


def _unsupported(fields: dict[str, Any], *, width: Any, gelu: str | None) -> list[str]:
    """List the settings of a config.json that GPTModel cannot follow."""
    # The first configs of transformers had no model_type.
    old = "model_type" not in fields and "n_embd" in fields and ("n_positions" in fields or "n_ctx" in fields)
    if fields.get("model_type") != "gpt2" and not old:
        return [f"model_type={short_repr(fields.get('model_type'))} is not supported; only 'gpt2' and 'nanochat' are."]
    problems = []
    classes = fields.get("architectures")
    for name in classes[:MAX_ARCHITECTURES] if isinstance(classes, list) else []:
        if isinstance(name, str) and OTHER_OUTPUTS.fullmatch(name):
            problems.append(f"a {name} has a head for its task instead of one for tokens, so it cannot generate text.")
    if isinstance(quantization := fields.get("quantization_config"), dict):
        method = short_repr(quantization.get("quant_method"))
        problems.append(f"its weights are quantized (quant_method={method}); name the model's original weights.")
    for name, value in (HF_FIXED | ADDED_SETTINGS).items():
        if as_number(fields.get(name, value)) not in (value, None):
            problems.append(
                f"{name}={short_repr(fields[name])} is not supported; this program's GPT-2 always has {short_repr(value)}."
            )
    if as_count(fields.get("n_inner")) not in (None, 4 * width if isinstance(width, int) else None):
        problems.append(
            f"n_inner={short_repr(fields['n_inner'])} is not supported; in this program's GPT-2 it is always 4 * n_embd."
        )
    if gelu is None:
        given = short_repr(fields["activation_function"])
        problems.append(f"activation_function={given} is not supported; this program's GPT-2 has GELU ({', '.join(READ_GELUS)}).")
    # transformers' GPT-2 ignores settings of other models, but whoever wrote them expects an effect.
    return problems + list(other_settings({name: value for name, value in fields.items() if name not in OWN_FIELDS}))


def to_hf_config(config: GPTConfig, *, tokenizer: str | None, eos_id: int | None) -> dict[str, Any]:
    """Return the fields of a transformers GPT2Config for the same model."""
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
    """Translate nanoGPT's `model_args` into fields of `GPTConfig`.

    Versions of nanoGPT with the option `bias` compute the exact GELU. Its first version, minGPT and llm.c do not have the option
    and compute GPT-2's form.
    """
    given = {ours: fields[theirs] for theirs, ours in NANOGPT_FIELDS.items() if fields.get(theirs) is not None}
    declared = {name: as_number(value) if name == "drop_rate" else as_count(value) for name, value in given.items()}
    gelu = "none" if "bias" in fields else "tanh"
    return declared | {"gelu_approximate": gelu, "qkv_bias": bool(fields.get("bias", True))}
