"""Recognize the tensors of a GPT-2 by their names, under any prefix, and name what else a file holds.

Source: the prefixes and names that Lightning, DistributedDataParallel, FSDP, torch.compile, PEFT and TRL give to a model inside
their own modules.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from gpt_pretrain.checkpoints.formats.layouts import BLOCK_MODULES, PARAMETERS, QKV_PARTS, TOP_MODULES, TensorSlot

BLOCK_LISTS = ("trf_blocks", "h", "blocks", "layers")
# Parts that wrappers insert anywhere in a name. They say nothing about the tensor.
WRAPPER_PARTS = {
    *("module", "_orig_mod", "_forward_module", "_wrapped_module", "_checkpoint_wrapped_module"),
    *("_fsdp_wrapped_module", "_fpw_module", "base_layer"),
}


def _any_of(names: Iterable[str]) -> str:
    return "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))


PARAMETER = rf"(?P<parameter>{_any_of(PARAMETERS)})"
BLOCK_TENSOR = re.compile(
    rf"(?:{_any_of(BLOCK_LISTS)})\.(?P<layer>\d{{1,6}})\.(?P<module>{_any_of(BLOCK_MODULES | QKV_PARTS)})\.{PARAMETER}"
)
TOP_TENSOR = re.compile(rf"(?P<module>{_any_of(TOP_MODULES)})\.{PARAMETER}")
CAUSAL_MASK = re.compile(rf"(?:.*\.)?(?:{_any_of(BLOCK_LISTS)})\.\d{{1,6}}\.attn?\.(?:mask|bias|masked_bias|causal_mask|tril)")
POSITION_IDS = re.compile(r"(?:.*\.)?(?:position_ids|pos_ids|positions?|pos)")

# Patterns of names that show which other model or storage format a file holds. The first that matches is reported.
FOREIGN = {
    "LoRA adapters, which change a model that is stored elsewhere; merge them into it with PEFT's merge_and_unload()": (
        r"\.lora_(A|B|embedding_A|embedding_B)\b|\.lora\.[AB]$|\.modules_to_save\."
    ),
    "adapters, which change what a model computes; merge them into it with the library that made them": (
        r"\.ia3_l\b|(^|\.)(prompt_encoder|prefix_encoder|token_adapter|adapters?|\w+_adapters?)\."
    ),
    "quantized weights; name the model's original weights": (
        r"\.(qweight|qzeros|SCB|weight_format|absmax|quant_map|quant_state.*|_packed_params.*|weight_scale(_inv)?|scales"
        r"|zero_points?|(input|output)_scale|W_q|weight\._(data|scale|shift))$"
    ),
    "weights in parts that are computed together; remove the parametrization or the pruning before they are saved": (
        r"\.weight_(orig|mask|g|v|u)$|\.parametrizations\."
    ),
    "the flat parameters of FSDP; save a full state dict with FSDP's StateDictType.FULL_STATE_DICT": r"flat_param",
    "an OPT or BART": r"decoder\.layers\.\d+\.self_attn\.",
    "a Llama or a model like it, such as Mistral, Qwen or Phi": r"layers\.\d+\.(self_attn\.[qk]_proj|attention\.w[qk])\b",
    "a GPT-NeoX or Pythia": r"gpt_neox\.|layers\.\d+\.attention\.query_key_value\.",
    "a GPT-Neo": r"h\.\d+\.attn\.attention\.[qk]_proj\.",
    "a GPT-J or CodeGen": r"h\.\d+\.attn\.(q|qkv)_proj\.",
    "a GPT-1": r"tokens_embed\.|positions_embed\.",
    "a BLOOM or Falcon": r"h\.\d+\.self_attention\.",
    "a BERT or RoBERTa": r"layer\.\d+\.attention\.self\.",
    "a T5": r"(en|de)coder\.block\.\d+\.layer\.",
    "a model of Megatron-LM": r"language_model\.|layers\.\d+\.self_attention\.linear_qkv",
    "a model of minGPT's first version": r"blocks\.\d+\.attn\.(key|query|value)\.",
    "a model of LitGPT": r"h\.\d+\.(attn\.(attn|qkv)|norm_1)\.",
    "a model in the layout of nanochat or modded-nanogpt; a model of nanochat needs its meta_*.json beside it": (
        r"h\.\d+\.attn\.c_[qkv]\."
    ),
    "a model with rotary positions": r"(^|\.)(rotary\w*|inv_freq|freqs_cis|(cos|sin)(_cached)?)(\.|$)",
    "a model with one module for each attention head, and ReLU": r"blocks\.\d+\.sa\.heads\.|token_embedding_table\.",
}
# Output heads with other purposes. A model with one of these has the head of a language model as well.
EXTRA_HEADS = {
    "a value head": r"(v_head|value_head|critic|value_function|val_head)\.",
    "a multiple-choice head": r"multiple_choice_head\.",
}
OTHER_HEADS = {
    "a classifier's head": r"(score|classifier|classification_head|cls_head|seq_relationship)\.",
    "a question-answering head": r"(qa_outputs|start_logits|end_logits)\.",
    "a reward head": r"reward_\w*head\.",
}
# Modules and counters of a training program. The model's output does not depend on them.
TRAINING_STATE = re.compile(
    r"(?=\w*+\Z)(?:\w*(loss|metric|accuracy|perplexity)\w*|criterion|acc|ppl"
    r"|(train|val|valid|test)_(acc|ppl|f1|auc|auroc|score|error|mean|bpb|bpc|bleu|rouge|nll|ce|mae|mse|best|step)\w*"
    r"|n_averaged|num_updates|(global_)?step|epoch|iterations?|initted|decay|_?device\w*|dummy\w*|_float_tensor)"
)
INSIDE_BLOCK = re.compile(rf"(^|\.)({_any_of(BLOCK_LISTS)})\.\d+\.")


def without_wrappers(name: str) -> str:
    """Return a tensor's name without the parts that wrappers insert."""
    return ".".join(part for part in name.split(".") if part not in WRAPPER_PARTS)


def find_slot(name: str) -> tuple[str, TensorSlot] | None:
    """Return a tensor's prefix and its destination, or None if no known layout has its name.

    The prefix ends in a dot unless it is empty. It does not contain the "transformer." of GPT-2's own layout.
    """
    parts = without_wrappers(name).split(".")
    # The shortest prefix is the right one; a known name has at most six parts.
    for start in range(max(0, len(parts) - 6), len(parts)):
        slot = _known_slot(".".join(parts[start:]))
        if slot is not None:
            prefix = parts[:start]
            if prefix and prefix[-1] == "transformer":
                prefix.pop()
            return "".join(f"{part}." for part in prefix), slot
    return None


def _known_slot(name: str) -> TensorSlot | None:
    if match := BLOCK_TENSOR.fullmatch(name):
        block, module, parameter = f"trf_blocks.{int(match['layer'])}", match["module"], PARAMETERS[match["parameter"]]
        if module in QKV_PARTS:
            return TensorSlot(f"{block}.att.qkv.{parameter}", QKV_PARTS[module])
        return TensorSlot(f"{block}.{BLOCK_MODULES[module]}.{parameter}")
    if match := TOP_TENSOR.fullmatch(name):
        return TensorSlot(f"{TOP_MODULES[match['module']]}.{PARAMETERS[match['parameter']]}")
    return None


def is_causal_mask(name: str) -> bool:
    """Return whether a tensor of this name is a causal mask, which GPTModel computes instead of loading."""
    return CAUSAL_MASK.fullmatch(without_wrappers(name)) is not None


def is_position_list(name: str) -> bool:
    """Return whether a tensor of this name lists all positions, which GPTModel computes instead of loading."""
    return POSITION_IDS.fullmatch(without_wrappers(name)) is not None


def is_training_state(name: str) -> bool:
    """Return whether a tensor belongs to a loss or a metric, by the first part of its name."""
    return TRAINING_STATE.fullmatch(name.partition(".")[0]) is not None


def is_inside_block(name: str) -> bool:
    """Return whether a tensor belongs to a transformer block, by its name."""
    return INSIDE_BLOCK.search(name) is not None


def foreign_kind(names: Iterable[str]) -> tuple[str, str] | None:
    """Return the other model or format that tensors belong to, and the name of one of them. Return None if none is known."""
    names = list(names)
    for kind, pattern in FOREIGN.items():
        for name in names:
            if re.search(pattern, name):
                return kind, name
    return None


def head_kind(name: str, kinds: dict[str, str]) -> str | None:
    """Return the kind of output head that a tensor belongs to, or None.

    Args:
        kinds: A pattern for each kind.
    """
    return next((kind for kind, pattern in kinds.items() if re.search(rf"(^|\.){pattern}", name)), None)
