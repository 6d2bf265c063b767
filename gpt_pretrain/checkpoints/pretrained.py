"""Load pretrained weights. One function turns any known file, folder or hub name into a `GPTModel`.

Sources: a model on the Hugging Face hub, a folder that transformers saved, the state dict of chapter 5's model, nanoGPT's
checkpoint, OpenAI's parameters as nested arrays, and this program's own checkpoints and runs.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gpt_pretrain.checkpoints.checkpoint_file import newest_readable
from gpt_pretrain.checkpoints.formats.layouts import TensorSlot, is_linear, possible_slots
from gpt_pretrain.checkpoints.recognition.architecture import (
    find_misfits,
    has_norms_without_bias,
    has_transposed_linears,
    infer_architecture,
)
from gpt_pretrain.checkpoints.recognition.tensor_groups import EMBEDDING, group_tensors
from gpt_pretrain.checkpoints.serialization.tensor_files import is_finite_tensor, loaded_tensor
from gpt_pretrain.checkpoints.weight_averages import TRAINED, choose_weights
from gpt_pretrain.checkpoints.weight_source import WeightSource, find_source
from gpt_pretrain.checkpoints.weights import Weights
from gpt_pretrain.errors import UserError
from gpt_pretrain.model.build import empty_model
from gpt_pretrain.model.config import CUSTOM_KIND, GPTConfig
from gpt_pretrain.model.language_model import LanguageModel
from gpt_pretrain.system.argument_types import check_type
from gpt_pretrain.system.reading_cost import explained_by_size

log = logging.getLogger(__name__)


def load_pretrained(
    source: str | Path,
    *,
    n_heads: int | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    custom: Mapping[str, Any] | None = None,
) -> LanguageModel:
    """Load the model in a file, in a folder or on the Hugging Face hub, in eval mode.

    Args:
        source: A hub id ("gpt2", "gpt2-medium", "someone/model"); a folder with config.json and safetensors; a state dict of
            chapter 5's GPTModel as `.pth` or `.safetensors`; a checkpoint of nanoGPT; a checkpoint or run folder of this
            program, or "latest". Files are recognized by their content.
        n_heads: Attention heads; needed if the source does not state them and is not one of GPT-2's four sizes.
        device: None means the CPU.
        dtype: None means fp32.
        custom: Your own class, whose weights the source holds, as {"_target_": "package.Class"} with its arguments.

    Raises:
        UserError: If the source does not exist, is damaged or hostile, or is not a GPTModel. One message names the cause, and
            nothing is loaded.
    """
    check_type("source", source, (str, Path), "a path, a model on the hub such as 'gpt2', or 'latest'")
    return open_weights(source, n_heads=n_heads, custom=custom).build(device=device, dtype=dtype)


def open_checkpoint(name: str, *, kind: str = TRAINED, custom: Mapping[str, Any] | None = None) -> Weights:
    """Open the weights of a run, a checkpoint or "latest". Of a run, the newest checkpoint that can be read is opened.

    Args:
        kind: As in `open_weights`.
        custom: As in `open_weights`.

    Raises:
        UserError: As in `load_pretrained`.
    """
    return newest_readable(name, partial(open_weights, kind=kind, custom=custom))


def open_weights(
    source: str | Path, *, n_heads: int | None = None, kind: str = TRAINED, custom: Mapping[str, Any] | None = None
) -> Weights:
    """Find a source, infer its architecture, and check that its tensors fit. As little as possible is read.

    Args:
        kind: Which weights of a checkpoint: "trained", "ema" or "average", see `choose_weights`.
        custom: The class of the user's own model, if the user has named one, with the arguments that were typed.

    Raises:
        UserError: As in `load_pretrained`.
    """
    found = choose_weights(find_source(source), kind)
    if found.declared.get("kind") == CUSTOM_KIND:
        from gpt_pretrain.checkpoints.custom_weights import custom_weights  # loads OmegaConf

        return custom_weights(found, GPTConfig(**found.declared), custom)
    with explained_by_size(found.name):
        return _fit_architecture(found, n_heads=n_heads)


def _fit_architecture(found: WeightSource, *, n_heads: int | None) -> Weights:
    groups = group_tensors(found.name, found.tensors)
    slots = groups.slots
    transposed = has_transposed_linears(slots)
    config = infer_architecture(found, slots, groups.misfits, transposed=transposed, n_heads=n_heads)
    for note in groups.notes():
        log.warning("%s: %s", found.name, note)
    if not transposed and "gelu_approximate" not in found.declared and slots[EMBEDDING].name.endswith("wte.weight"):
        log.info("%s does not state its form of GELU. GPT-2's approximate GELU is used, not nanoGPT's exact one.", found.name)
    if has_norms_without_bias(slots):
        log.warning(
            "%s has linear layers with a bias, but norms without one, which are taken for LayerNorm. If they are RMSNorm, the "
            "model computes something else here.",
            found.name,
        )
    names = empty_model(config).state_dict()
    parts = {name: [slots[slot] for slot in possible_slots(name) if slot in slots] for name in names}
    return Weights(found.name, config, parts, transposed, found.content, found.find_tokenizer, found.has_tokenizer_files)


def load_weights_into_gpt(model: LanguageModel, params: Mapping[str, Any]) -> None:
    """Copy OpenAI's parameters, as chapter 5 reads them from the original files, into a model.

    Args:
        model: The model, on any device.
        params: Arrays as {"wte", "wpe", "blocks": [{"ln_1": {"g", "b"}, "attn": {"c_attn": {"w", "b"}, "c_proj": ...},
            "ln_2", "mlp": {"c_fc", "c_proj"}}], "g", "b"}, the last two also as {"ln_f": {"g", "b"}}; matrices (in, out).

    Raises:
        UserError: If arrays are missing, unexpected or misshapen. All of them are listed, and the model is unchanged.

    Source: OpenAI's gpt-2 `src/model.py` has these names.
    """
    renamed, problems = _gpt2_state_dict(params)
    # OpenAI's models always tie the output head.
    if not model.config.tie_embeddings and "wte.weight" in renamed:
        renamed["lm_head.weight"] = renamed["wte.weight"]
    groups = group_tensors("params", {name: loaded_tensor(name, value) for name, value in renamed.items()})
    if misfits := groups.misfits + find_misfits(model.config, groups.slots, transposed=True):
        problems.append(misfits.message("params"))
    not_finite = [name for name, value in renamed.items() if not is_finite_tensor(value)]
    problems += [f"params: {name} holds NaN or infinity." for name in not_finite]
    if problems:
        raise UserError(problems)
    with torch.no_grad():
        for name, target in model.state_dict().items():
            slot = TensorSlot(name)
            value = groups.slots[slot].read() if slot in groups.slots else torch.zeros(target.shape)
            target.copy_(value.T if is_linear(name) else value)


def _gpt2_state_dict(params: Mapping[str, Any]) -> tuple[dict[str, Tensor], list[str]]:
    """Return OpenAI's nested arrays as tensors under GPT-2's names, and the problems with values that are not arrays."""
    blocks = params.get("blocks") if isinstance(params, Mapping) else None
    if not isinstance(blocks, list | tuple):
        raise UserError("params lacks 'blocks', the list of transformer blocks.")
    flat = _flatten({name: value for name, value in params.items() if name not in ("blocks", "g", "b")})
    flat |= _flatten({name: params[name] for name in ("g", "b") if name in params}, "ln_f.")
    for index, block in enumerate(blocks):
        flat |= _flatten(block, f"h.{index}.")
    endings = {"wte": "wte.weight", "wpe": "wpe.weight", "w": "weight", "g": "weight", "b": "bias"}
    renamed, problems = {}, []
    for name, value in flat.items():
        module, dot, ending = name.rpartition(".")
        try:
            array = np.array(value.detach().cpu().numpy() if isinstance(value, Tensor) else value, dtype=np.float32, copy=True)
            renamed[module + dot + endings.get(ending, ending)] = torch.from_numpy(array)
        except (TypeError, ValueError):
            problems.append(f"params: {name} is not an array of numbers.")
    return renamed, problems


def _flatten(node: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(node, Mapping):
        return {prefix.removesuffix("."): node}
    return {name: value for key, inner in node.items() for name, value in _flatten(inner, f"{prefix}{key}.").items()}
