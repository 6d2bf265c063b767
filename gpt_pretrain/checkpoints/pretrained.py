"""Weights from elsewhere: whichever file or folder a user holds, one function makes a `GPTModel` of it.

Sources: a model of the Hugging Face hub, a folder that transformers saved, the state dict of chapter 5's model, nanoGPT's
checkpoint, OpenAI's parameters as nested arrays, and this program's own checkpoints and runs.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gpt_pretrain.checkpoints.architecture import by_slot, empty_model, find_misfits, infer_architecture, stored_in_out, thirds
from gpt_pretrain.checkpoints.layouts import TensorSlot, is_linear
from gpt_pretrain.checkpoints.tensor_files import StoredTensor, in_memory
from gpt_pretrain.checkpoints.weight_source import BY_SIZE, WeightSource, find_source
from gpt_pretrain.errors import UserError
from gpt_pretrain.model.config import GPTConfig
from gpt_pretrain.model.gpt2 import GPTModel
from gpt_pretrain.tokenizers.base import Tokenizer
from gpt_pretrain.tokenizers.build import build_tokenizer, fits_vocab_size, tokenizer_by_size


@dataclass(frozen=True)
class Weights:
    """Weights that fit their architecture, still in their files.

    Args:
        name: where they come from, for messages.
        config: the architecture.
        tokenizer: its name, where it is known.
        parts: for each tensor of the model what it is made of: one stored tensor, three (query, key, value), or none where it
            is zero.
        in_out: whether the linear layers are stored (in, out), as OpenAI did, and not (out, in).
        content: everything else that one of this program's checkpoints holds.
    """

    name: str
    config: GPTConfig
    tokenizer: str | None
    parts: dict[str, list[StoredTensor]]
    in_out: bool
    content: Mapping[str, Any]

    def build(
        self,
        *,
        context_length: int | None = None,
        drop_rate: float | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> GPTModel:
        """The model with these weights, in eval mode.

        Tensors go from the file into the model one by one; those of a PyTorch file that fit as they are stay mapped to it.

        Args:
            context_length: cuts the table of positions to the first so many; None keeps all.
            drop_rate: instead of the stored one.
            device: None is the CPU.
            dtype: None is fp32.

        Raises:
            UserError: when the weights hold numbers that are not finite, or the context would have to be longer.
        """
        config = self.config
        if context_length is not None:
            config = dataclasses.replace(config, context_length=context_length)
        if drop_rate is not None:
            config = dataclasses.replace(config, drop_rate=drop_rate)
        if config.context_length > self.config.context_length:
            raise UserError(
                f"model.context_length={config.context_length}: {self.name} has positions for {self.config.context_length} "
                "tokens; the context can be shortened, not lengthened."
            )
        model = empty_model(config)
        state, spoilt = {}, []
        shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
        for name in sorted(shapes, key=lambda name: -math.prod(shapes[name])):  # for a low peak of memory
            tensor = self._tensor(name) if self.parts[name] else torch.zeros(shapes[name])
            if name == "pos_emb.weight":
                tensor = tensor[: config.context_length]
            tensor = tensor.contiguous().to(device=device or "cpu", dtype=dtype or torch.float32)
            if not bool(tensor.isfinite().all()):
                spoilt.append(name)
            part_of_more = tensor.untyped_storage().nbytes() > tensor.nbytes  # which would stay in memory, and be saved, with it
            state[name] = tensor.clone() if part_of_more else tensor
        if spoilt:
            raise UserError(
                f"{self.name} holds numbers that are not finite in {dtype or torch.float32} (NaN or infinity), "
                f"in {len(spoilt)} of {len(state)} tensors: "
                f"{', '.join(sorted(spoilt)[:3])}{' ...' if len(spoilt) > 3 else ''}. Its training diverged, or it is damaged."
            )
        model.load_state_dict(state, assign=True)
        return model.eval()

    def build_tokenizer(self, name: str | None = None) -> Tokenizer:
        """The tokenizer of these weights, or the one of that name if it fits them.

        Raises:
            UserError: when it does not, or none is known.
        """
        size = self.config.vocab_size
        if name is None and self.tokenizer is None:
            raise UserError(f"{self.name}: no known tokenizer has its vocabulary of {size:,} tokens. Name one with tokenizer=...")
        tokenizer = build_tokenizer(name or str(self.tokenizer))
        if not fits_vocab_size(tokenizer.vocab_size, size):
            raise UserError(
                f"{self.name}: its vocabulary has {size:,} tokens, the tokenizer {tokenizer.name} {tokenizer.vocab_size:,}."
            )
        return tokenizer

    def _tensor(self, name: str) -> Tensor:
        """A tensor of the model as its files have it, linear layers (out, in)."""
        tensors = [part.read() for part in self.parts[name]]
        tensor = tensors[0] if len(tensors) == 1 else torch.cat(tensors)
        return tensor.T if self.in_out and is_linear(name) else tensor


def load_pretrained(
    source: str | Path,
    *,
    n_heads: int | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> GPTModel:
    """The model that a file, a folder or a name on the Hugging Face hub holds, in eval mode.

    Args:
        source: a hub id ("gpt2", "gpt2-medium", "someone/model"); a folder with config.json and safetensors; a state dict of
            chapter 5's GPTModel, `.pth` or `.safetensors`; a checkpoint of nanoGPT; a checkpoint or run directory of this
            program, or "latest". What a file is, is seen from its content.
        n_heads: attention heads, where neither the file nor one of GPT-2's four sizes tells.
        device: None is the CPU.
        dtype: None is fp32.

    Raises:
        UserError: when there is no such source, it is damaged or hostile, or its tensors do not make a GPTModel; then all
            tensors that are missing, unexpected or misshapen are named, and nothing is loaded.
    """
    return open_weights(source, n_heads=n_heads).build(device=device, dtype=dtype)


def open_weights(source: str | Path, *, n_heads: int | None = None) -> Weights:
    """Find a source, work out its architecture and check that its tensors fit, reading as little as that takes.

    Raises:
        UserError: as `load_pretrained`.
    """
    found = find_source(source)
    parts, problems = by_slot(found)
    in_out = stored_in_out(parts)
    config, misfits = infer_architecture(found, parts, in_out=in_out, n_heads=n_heads)
    if config is None or problems or misfits:
        raise UserError(problems + misfits)
    names = empty_model(config).state_dict()
    whole = {name: [parts[place] for place in thirds(name) if place in parts] for name in names}
    tokenizer = tokenizer_by_size(config.vocab_size) if found.tokenizer == BY_SIZE else found.tokenizer
    return Weights(found.name, config, tokenizer, whole, in_out, found.content)


def load_weights_into_gpt(model: GPTModel, params: Mapping[str, Any]) -> None:
    """Give a model OpenAI's parameters, as chapter 5 reads them from the original files.

    Args:
        model: what receives them, on whichever device.
        params: arrays as {"wte", "wpe", "blocks": [{"ln_1": {"g", "b"}, "attn": {"c_attn": {"w", "b"}, "c_proj": ...},
            "ln_2", "mlp": {"c_fc", "c_proj"}}], "g", "b"}, the last two also as {"ln_f": {"g", "b"}}; matrices (in, out).

    Raises:
        UserError: naming all arrays that are missing, unexpected or misshapen; then the model is as it was.

    Source: OpenAI's gpt-2 `src/model.py` names them.
    """
    blocks = params.get("blocks") if isinstance(params, Mapping) else None
    if not isinstance(blocks, list | tuple):
        raise UserError("The parameters lack 'blocks', the list of their transformer blocks.")
    flat = _flatten({name: value for name, value in params.items() if name not in ("blocks", "g", "b")})
    flat |= _flatten({name: params[name] for name in ("g", "b") if name in params}, "ln_f.")
    for number, block in enumerate(blocks):
        flat |= _flatten(block, f"h.{number}.")
    endings = {"wte": "wte.weight", "wpe": "wpe.weight", "w": "weight", "g": "weight", "b": "bias"}
    renamed, problems = {}, []
    for name, value in flat.items():
        module, dot, ending = name.rpartition(".")
        try:
            array = np.array(value.detach().cpu().numpy() if isinstance(value, Tensor) else value, dtype=np.float32, copy=True)
            renamed[module + dot + endings.get(ending, ending)] = torch.from_numpy(array)
        except (TypeError, ValueError):
            problems.append(f"The parameters: {name} is no array of numbers.")
    if not model.config.tie_embeddings and "wte.weight" in renamed:
        renamed["lm_head.weight"] = renamed["wte.weight"]  # OpenAI's models have no other
    tensors = {name: in_memory(name, value) for name, value in renamed.items()}
    source = WeightSource("The parameters", tensors)
    parts, unknown = by_slot(source)
    problems += unknown + find_misfits(source, model.config, parts, in_out=True)
    spoilt = [name for name, part in tensors.items() if not part.read().isfinite().all()]
    problems += [f"The parameters: {name} holds numbers that are not finite (NaN or infinity)." for name in spoilt]
    if problems:
        raise UserError(problems)
    with torch.no_grad():
        for name, target in model.state_dict().items():
            value = parts[TensorSlot(name)].read()
            target.copy_(value.T if is_linear(name) else value)


def _flatten(node: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(node, Mapping):
        return {prefix.removesuffix("."): node}
    return {name: value for key, inner in node.items() for name, value in _flatten(inner, f"{prefix}{key}.").items()}
