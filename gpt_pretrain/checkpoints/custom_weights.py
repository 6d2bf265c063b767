"""Load weights of the user's own model into its class, which the user names again."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from gpt_pretrain.checkpoints.custom_model import GROUP, build_custom_model
from gpt_pretrain.checkpoints.recognition.misfits import name_some
from gpt_pretrain.checkpoints.serialization.tensor_files import StoredTensor, is_finite_tensor, loaded_tensor
from gpt_pretrain.checkpoints.weight_source import WeightSource
from gpt_pretrain.checkpoints.weights import Weights
from gpt_pretrain.config.checkpoint_settings import has_signed_settings
from gpt_pretrain.config.custom_parts import CUSTOM, TARGET, resume_custom_parts
from gpt_pretrain.errors import UserError
from gpt_pretrain.model.config import GPTConfig
from gpt_pretrain.model.custom import CustomModel
from gpt_pretrain.system.terminal import escape_line

log = logging.getLogger(__name__)

Shapes = Mapping[str, tuple[int, ...]]


PREFIX = "custom."  # of the class's own names within a CustomModel


@dataclass(frozen=True)
class CustomWeights(Weights):
    """Weights of the user's own model, which are still in their file.

    Args:
        named: The class that the user has named, with the arguments that were typed; None if no class was named.
    """

    named: Mapping[str, Any] | None = None

    @cached_property
    def fields(self) -> dict[str, Any]:
        """The class and its arguments. Arguments come from the checkpoint if this user made it; typed ones take precedence.

        Raises:
            UserError: If the class is not named, or if somebody else's checkpoint has arguments that are not typed.
        """
        stored = self.content.get("config")
        before = stored.get(CUSTOM) if isinstance(stored, dict) else None
        model = {GROUP: before[GROUP]} if isinstance(before, dict) and isinstance(before.get(GROUP), dict) else {}
        if not self.named and not model:
            raise UserError(f"{self.name} holds weights of a custom model, but not its class. Name the class: {GROUP}.{TARGET}=")
        parts, problems, changes = resume_custom_parts(
            model, {GROUP: self.named} if self.named else {}, own=has_signed_settings(self.content), origin=escape_line(self.name)
        )
        if problems:
            raise UserError(problems)
        for change in changes:
            log.warning("Changed since the checkpoint: %s", change)
        return parts[GROUP]

    def build(
        self,
        *,
        context_length: int | None = None,
        drop_rate: float | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> CustomModel:
        """Return the model with these weights, in eval mode. `drop_rate` is ignored: the class has its own dropout."""
        config = self.config if context_length is None else dataclasses.replace(self.config, context_length=context_length)
        model = build_custom_model(self.fields, config)
        parts = dict(self.parts) | self._beside_average(model)
        shapes = {name: stored.shape for name, (stored,) in parts.items()}
        if (problem := misfit_of(model, shapes)) is not None:
            raise UserError(f"{self.name} does not fit {GROUP}.{TARGET}={self.fields[TARGET]}: {problem}. Nothing was loaded.")
        state = {name: stored.read() for name, (stored,) in parts.items()}
        if wrong := [name.removeprefix(PREFIX) for name, value in state.items() if not is_finite_tensor(value)]:
            raise UserError(f"{self.name} holds NaN or infinity, in {name_some(wrong)}. Its training diverged.")
        model.load_state_dict(state)
        return model.to(device=device, dtype=dtype).eval()

    def _beside_average(self, model: CustomModel) -> dict[str, list[StoredTensor]]:
        """Return the tensors that a moving average lacks: other names of shared weights, and the checkpoint's buffers."""
        trained, found = self.content["state_dict"], dict[str, list[StoredTensor]]()
        first = {id(value): name for name, value in model.named_parameters()}
        names = {name: first[id(value)] for name, value in model.named_parameters(remove_duplicate=False)}
        for name in model.state_dict().keys() - self.parts.keys():
            if names.get(name) in self.parts:
                found[name] = self.parts[names[name]]
            elif name not in names and f"model.{name}" in trained:
                found[name] = [loaded_tensor(name, trained[f"model.{name}"])]
        return found


def custom_weights(source: WeightSource, config: GPTConfig, named: Mapping[str, Any] | None) -> CustomWeights:
    """Return the weights in a checkpoint of the user's own model."""
    parts = {name.removeprefix("model."): [stored] for name, stored in source.tensors.items()}
    return CustomWeights(source.name, config, parts, False, source.content, source.find_tokenizer, False, named)


def misfit_of(model: CustomModel, shapes: Shapes) -> str | None:
    """Return clauses that say how stored tensors differ from a model's, or None if they fit.

    Args:
        shapes: The shapes of the stored tensors, by the names that they have in the model.
    """
    own = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    groups = {
        "the file lacks": own.keys() - shapes.keys(),
        "the class lacks": shapes.keys() - own.keys(),
        "other shapes have": {name for name in own.keys() & shapes.keys() if own[name] != tuple(shapes[name])},
    }
    clauses = [
        f"{what} {name_some([name.removeprefix(PREFIX) for name in sorted(names)])}" for what, names in groups.items() if names
    ]
    return "; ".join(clauses) or None
