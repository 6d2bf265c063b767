"""Check the user's own optimizer, build it over all parameters, and restore it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer

from gpt_pretrain.config.custom_parts import TARGET
from gpt_pretrain.config.custom_targets import call_target, find_target, parameters_of
from gpt_pretrain.errors import UserError

GROUP = "optimizer"
# Settings that decide how a step is computed. They never come from a checkpoint: some implementations do not check the sizes of
# restored tensors.
IMPLEMENTATION = ("fused", "foreach", "capturable", "differentiable")


def check_optimizer_class(fields: Mapping[str, Any]) -> float | None:
    """Check that an optimizer can train here, as far as its class shows.

    Returns:
        Its default learning rate, if it has one.

    Raises:
        UserError: If it cannot train here.
    """
    name = fields[TARGET]
    target = find_target(name, setting=f"{GROUP}.{TARGET}")
    if isinstance(target, type) and not issubclass(target, Optimizer):
        raise UserError(f"{GROUP}.{TARGET}={name} is not an optimizer: it must derive from torch.optim.Optimizer.")
    if isinstance(target, type):
        _check_step(target, name)
    default = getattr(parameters_of(target).get("lr"), "default", None)
    return float(default) if isinstance(default, int | float) and not isinstance(default, bool) else None


def _check_step(kind: type, name: str) -> None:
    closure = parameters_of(kind.step).get("closure")  # type: ignore[attr-defined]
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise UserError(
            f"{GROUP}.{TARGET}={name} needs a closure, which computes the loss several times in a step. Here, each step "
            "computes it once, so that the logs and a resumed run are exact. Choose an optimizer whose step() needs no argument."
        )
    if callable(getattr(kind, "train", None)) and callable(getattr(kind, "eval", None)):
        raise UserError(
            f"{GROUP}.{TARGET}={name} keeps other weights for evaluation than for training, and has to be switched between them "
            "with train() and eval(), which is not supported. Choose an optimizer with one set of weights."
        )


def build_custom_optimizer(model: nn.Module, fields: Mapping[str, Any]) -> Optimizer:
    """Build the user's optimizer over all trainable parameters, in the order of the model.

    Raises:
        UserError: If it cannot be built, holds other parameters than the model's, or has no learning rate.
    """
    name, parameters = fields[TARGET], [one for one in model.parameters() if one.requires_grad]
    optimizer = call_target(fields, parameters, setting=GROUP)
    if not isinstance(optimizer, Optimizer):
        raise UserError(f"{GROUP}.{TARGET}={name} returned a {type(optimizer).__name__}, not a torch.optim.Optimizer.")
    _check_step(type(optimizer), name)
    own = {id(one) for one in parameters}
    found = [one for group in optimizer.param_groups for one in group["params"]]
    if not found or not {id(one) for one in found} <= own:
        what = "no parameters" if not found else "parameters that are not the model's"
        raise UserError(f"{GROUP}.{TARGET}={name} has {what}. Its first argument must be the parameters to train.")
    if not all("lr" in group for group in optimizer.param_groups):
        raise UserError(f"{GROUP}.{TARGET}={name} has no lr in its parameter groups, which schedules set.")
    return optimizer


def typed_group_settings(groups: Sequence[Mapping[str, Any]], fields: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the settings of each parameter group that a resumed run takes from this start instead of the checkpoint.

    These are the typed settings, and the ones that decide how a step is computed. All others may be state of the optimizer: some
    optimizers estimate their step size and store it there.
    """
    names = {*fields, *IMPLEMENTATION, "lr"}
    return [{name: value for name, value in group.items() if name in names} for group in groups]
