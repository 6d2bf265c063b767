"""Read nanochat's own checkpoints: model_*.pt, with the sizes in meta_*.json beside it.

Until 2026-01-11, nanochat computed exactly what the modern model computes. Its later models have further tensors.

Source: karpathy/nanochat, `nanochat/gpt.py`, `nanochat/checkpoint_manager.py` and dev/LOG.md.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpt_pretrain.checkpoints.formats.stated_settings import as_count
from gpt_pretrain.checkpoints.recognition.misfits import name_some
from gpt_pretrain.checkpoints.recognition.tensor_names import find_slot, without_wrappers
from gpt_pretrain.checkpoints.serialization.tensor_files import StoredTensor, read_model_json
from gpt_pretrain.errors import UserError
from gpt_pretrain.model.config import MODERN_VALUES
from gpt_pretrain.system.formatting import format_count
from gpt_pretrain.system.shown_values import short_repr

MODEL_FILE = re.compile(r"model_(\d+)\.pt")
TENSOR = re.compile(r"(?:transformer\.(?:wte|h\.\d{1,6}\.(?:attn\.c_(?:q|k|v|proj)|mlp\.c_(?:fc|proj)))|lm_head)\.weight")
SIZES = {
    "sequence_len": "context_length",
    "vocab_size": "vocab_size",
    "n_layer": "n_layers",
    "n_head": "n_heads",
    "n_kv_head": "n_kv_heads",
    "n_embd": "emb_dim",
}
FULL_ATTENTION = "L"  # in window_pattern, which has a letter for each layer


def read_nanochat_checkpoint(
    path: Path, tensors: Mapping[str, StoredTensor]
) -> tuple[dict[str, StoredTensor], dict[str, Any]] | None:
    """Return the tensors under the modern model's names, and the fields of `GPTConfig`. Return None for any other file.

    Raises:
        UserError: If the modern model cannot be this model.
    """
    config = _stated_config(path)
    if config is None:
        return None
    others = [name for name in tensors if TENSOR.fullmatch(without_wrappers(name)) is None]
    if others:
        raise UserError(
            f"{path} is a nanochat model with {format_count(len(others), 'tensor')} that this program's modern model lacks "
            f"({name_some(sorted(map(without_wrappers, others)))}). nanochat has them since January 2026. transformers' "
            "NanoChatForCausalLM lacks them too, so a converted model would compute something else. Use nanochat itself."
        )
    pattern = config.get("window_pattern") or FULL_ATTENTION
    if not isinstance(pattern, str) or set(pattern.upper()) != {FULL_ATTENTION}:
        raise UserError(
            f"{path} is a nanochat model with window_pattern={short_repr(pattern)}, but this program's modern model attends to "
            "all earlier tokens in each layer. Use nanochat itself."
        )
    sizes = {ours: as_count(config.get(theirs)) for theirs, ours in SIZES.items()}
    if missing := [theirs for theirs, ours in SIZES.items() if sizes[ours] is None]:
        raise UserError(f"{_meta_file(path)} lacks {name_some(missing)}, so the shape of the model is unknown.")
    if sizes["n_kv_heads"] == sizes["n_heads"]:
        sizes["n_kv_heads"] = None
    slots = {name: find_slot(name) for name in tensors}
    renamed = {name: str(slot[1]) for name, slot in slots.items() if slot is not None}
    stored = {new: dataclasses.replace(tensors[name], name=new) for name, new in renamed.items()}
    return stored, sizes | MODERN_VALUES | {"kind": "modern", "init": "modern", "drop_rate": 0.0}


def _meta_file(path: Path) -> Path | None:
    """Return the file with the settings of a checkpoint, by the checkpoint's name."""
    match = MODEL_FILE.fullmatch(path.name)
    return None if match is None else path.with_name(f"meta_{match[1]}.json")


def _stated_config(path: Path) -> Mapping[str, Any] | None:
    """Return the settings of the model in the file beside a checkpoint, or None if there are none of nanochat's."""
    meta = _meta_file(path)
    if meta is None or not meta.is_file():
        return None
    config = read_model_json(meta).get("model_config")
    return config if isinstance(config, dict) and {"sequence_len", "n_kv_head"} <= config.keys() else None
