"""Load pretrained weights: one function turns any known file, folder or hub name into a `GPTModel`.

Sources: a model on the Hugging Face hub, a folder that transformers saved, the state dict of chapter 5's model, nanoGPT's
checkpoint, OpenAI's parameters as nested arrays, and this program's own checkpoints and runs.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gpt_pretrain.checkpoints.architecture import find_misfits, has_norms_without_bias, has_transposed_linears, infer_architecture
from gpt_pretrain.checkpoints.layouts import TensorSlot, is_linear, possible_slots
from gpt_pretrain.checkpoints.tensor_files import StoredTensor, is_finite_tensor, loaded_tensor
from gpt_pretrain.checkpoints.tensor_groups import EMBEDDING, group_tensors
from gpt_pretrain.checkpoints.weight_averages import TRAINED, choose_weights
from gpt_pretrain.checkpoints.weight_source import find_source
from gpt_pretrain.checkpoints.weight_tokenizers import FindTokenizer, no_tokenizer
from gpt_pretrain.errors import UserError
from gpt_pretrain.model.build import empty_model
from gpt_pretrain.model.config import CUSTOM_KIND, GPTConfig
from gpt_pretrain.model.language_model import LanguageModel
from gpt_pretrain.tokenizers.base import Tokenizer
from gpt_pretrain.tokenizers.build import build_tokenizer, same_tokenizer, tokenizer_by_size
from gpt_pretrain.tokenizers.fitting import TooManyTokensError, fit_to_rows

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Weights:
    """Weights that fit their architecture and are still in their files.

    Args:
        name: The source, for messages.
        config: The architecture.
        parts: For each tensor of the model, the stored tensors that it consists of: one, three (query, key, value), or none if
            it is zero.
        transposed: Linear layers are stored as (in, out), as OpenAI did, not (out, in).
        content: Everything else in one of this program's checkpoints.
        find_tokenizer: Returns the tokenizer that the weights bring, or None if they bring none.
        has_tokenizer_files: In the format of the weights, the files of the tokenizer belong to the model.
    """

    name: str
    config: GPTConfig
    parts: dict[str, list[StoredTensor]]
    transposed: bool
    content: Mapping[str, Any]
    find_tokenizer: FindTokenizer = no_tokenizer
    has_tokenizer_files: bool = False

    @cached_property
    def own_tokenizer(self) -> Tokenizer | None:
        """The tokenizer that the weights bring, or None if they bring none.

        Raises:
            UserError: If its files cannot be fetched or used, or it has more tokens than the weights have rows.
        """
        return None if self._found_tokenizer is None else self._fit(self._found_tokenizer)

    @cached_property
    def _found_tokenizer(self) -> Tokenizer | None:
        return self.find_tokenizer()

    @property
    def tokenizer(self) -> str | None:
        """The name of the tokenizer that the weights bring, or that has as many tokens; None if none is known."""
        own = self._found_tokenizer
        return tokenizer_by_size(self.config.vocab_size) if own is None else own.name

    @property
    def has_likely_tokenizer(self) -> bool:
        """True if the weights bring a tokenizer, or are in a format without one, of which its size is a good sign."""
        return self.own_tokenizer is not None or (not self.has_tokenizer_files and self.tokenizer is not None)

    def build(
        self,
        *,
        context_length: int | None = None,
        drop_rate: float | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> LanguageModel:
        """Return the model with these weights, in eval mode.

        Tensors are moved from the file to the model one by one. Tensors of a PyTorch file that fit unchanged stay mapped to it.

        Args:
            context_length: Tokens; keeps only the first position embeddings. None keeps all.
            drop_rate: Replaces the stored drop rate.
            device: None means the CPU.
            dtype: None means fp32.

        Raises:
            UserError: If the weights are not finite, or context_length exceeds the stored one.
        """
        config = self.config
        if context_length is not None:
            config = dataclasses.replace(config, context_length=context_length)
        if drop_rate is not None:
            config = dataclasses.replace(config, drop_rate=drop_rate)
        if config.context_length > self.config.context_length:
            raise UserError(
                f"model.context_length={config.context_length} exceeds the {self.config.context_length} positions of "
                f"{self.name}. The context can be shortened, not lengthened."
            )
        model = empty_model(config)
        model.load_state_dict(self._state_dict(model, device=device or "cpu", dtype=dtype or torch.float32), assign=True)
        return model.eval()

    def build_tokenizer(self, name: str | None = None) -> Tokenizer:
        """Build the named tokenizer, by default that of the weights, or a known one with as many tokens.

        Raises:
            UserError: If no tokenizer is known, or it does not fit the vocabulary.
        """
        if name is not None:
            return self._fit_named(name)
        if (own := self.own_tokenizer) is not None:
            return own
        size = self.config.vocab_size
        if (guess := tokenizer_by_size(size)) is None:
            raise UserError(
                f"{self.name} does not name a tokenizer, and no known tokenizer has {size:,} tokens. Give a folder or file "
                "with its vocabulary: tokenizer=FOLDER"
            )
        log.warning(
            "%s does not name a tokenizer. %s is used, because the vocabulary has %s tokens. If the text is garbled, give the "
            "right tokenizer: tokenizer=FOLDER",
            self.name,
            guess,
            f"{size:,}",
        )
        return build_tokenizer(guess)

    def _fit_named(self, name: str) -> Tokenizer:
        """Build the named tokenizer, and warn if the weights bring another one.

        Raises:
            UserError: If it does not fit the vocabulary; the remedy is the tokenizer of the weights, if they bring one.
        """
        try:
            fitted = self._fit(build_tokenizer(name))
        except TooManyTokensError as error:
            if self.own_tokenizer is None:
                raise
            raise UserError(f"{error.finding}. The weights bring their own tokenizer: leave out tokenizer={name}") from error
        with suppress(UserError):  # The user may name one because the weights' own cannot be used.
            if (own := self.own_tokenizer) is not None and not same_tokenizer(own, fitted):
                log.warning(
                    "%s brings the tokenizer %s, but tokenizer= names %s, whose ids stand for other text. Leave out tokenizer=, "
                    "unless the weights' own tokenizer is wrong.",
                    self.name,
                    own.name[:100],
                    fitted.name[:100],
                )
        return fitted

    def _fit(self, tokenizer: Tokenizer) -> Tokenizer:
        return fit_to_rows(tokenizer, self.config.vocab_size, origin=self.name)

    def _state_dict(self, model: LanguageModel, *, device: torch.device | str, dtype: torch.dtype) -> dict[str, Tensor]:
        """Read the model's tensors, the largest first to keep the memory peak low."""
        state, not_finite = {}, []
        shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
        for name in sorted(shapes, key=lambda name: -math.prod(shapes[name])):
            tensor = self._read(name) if self.parts[name] else torch.zeros(shapes[name])
            if name == "pos_emb.weight":
                tensor = tensor[: model.config.context_length]
            tensor = tensor.contiguous().to(device=device, dtype=dtype)
            if not is_finite_tensor(tensor):
                not_finite.append(name)
            # A view would keep the larger storage in memory, and save it with the model.
            is_view = tensor.untyped_storage().nbytes() > tensor.nbytes
            state[name] = tensor.clone() if is_view else tensor
        if not_finite:
            raise UserError(
                f"{self.name} holds NaN or infinity in {dtype}, in {len(not_finite)} of {len(state)} tensors: "
                f"{', '.join(sorted(not_finite)[:3])}{' ...' if len(not_finite) > 3 else ''}. "
                "Its training diverged, or the file is damaged."
            )
        return state

    def _read(self, name: str) -> Tensor:
        """Read a tensor of the model, with linear layers as (out, in)."""
        turned = self.transposed and is_linear(name)
        tensors = [part.read().T if turned else part.read() for part in self.parts[name]]
        return tensors[0] if len(tensors) == 1 else torch.cat(tensors)


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
    return open_weights(source, n_heads=n_heads, custom=custom).build(device=device, dtype=dtype)


def open_weights(
    source: str | Path, *, n_heads: int | None = None, kind: str = TRAINED, custom: Mapping[str, Any] | None = None
) -> Weights:
    """Find a source, infer its architecture and check that its tensors fit, reading as little as possible.

    Args:
        kind: Which weights of a checkpoint: "trained", "ema" or "average", see `choose_weights`.
        custom: The class that the user has named for a model of the user's own, with the arguments that are typed.

    Raises:
        UserError: As in `load_pretrained`.
    """
    found = choose_weights(find_source(source), kind)
    if found.declared.get("kind") == CUSTOM_KIND:
        from gpt_pretrain.checkpoints.custom_weights import custom_weights  # it is a kind of these weights

        return custom_weights(found, GPTConfig(**found.declared), custom)
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
