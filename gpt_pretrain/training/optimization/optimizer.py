"""Build the optimizer and its parameter groups, and clip gradients."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import AdamW, Optimizer

from gpt_pretrain.config.custom_parts import CUSTOM
from gpt_pretrain.config.schema import OptimizerSettings, RoleSettings
from gpt_pretrain.errors import UserError
from gpt_pretrain.model.language_model import LanguageModel
from gpt_pretrain.model.roles import ROLES, parameter_roles
from gpt_pretrain.training.optimization.muon import Muon

HIGHEST_RATE = 0.02  # Muon's optimizer.lr, the highest in conf/optimizer/


def build_optimizer(
    model: LanguageModel, settings: OptimizerSettings, *, fused: bool = True, bf16: bool = False, shared: bool = True
) -> Optimizer:
    """Build AdamW or Muon over all parameters. Weight decay acts on matrices only, unless the settings say otherwise.

    Checkpoints store the states of parameters by number. The layout of the groups therefore depends on optimizer.name and
    optimizer.decay only.

    Args:
        fused: Update in one pass over memory. This is several times faster, but impossible with a gradient scaler (fp16).
        bf16: Orthogonalize in bf16 like the model's computations, instead of in fp32.
        shared: Whether all ranks train the model, and share the orthogonalization.
    """
    beta1, beta2 = settings.betas
    if settings.name == "muon":
        roles = parameter_roles(model)
        return Muon(
            _role_groups(model, settings),
            parts={parameter: roles[name].parts for name, parameter in model.named_parameters()},
            lr=settings.lr,
            momentum=settings.momentum,
            betas=(beta1, beta2),
            eps=settings.eps,
            fused=fused,
            dtype=torch.bfloat16 if bf16 else torch.float32,
            shared=shared,
        )
    groups = _role_groups(model, settings) if settings.decay == "roles" else _decay_groups(model, settings)
    return AdamW(groups, lr=settings.lr, betas=(beta1, beta2), eps=settings.eps, fused=fused)


def _decay_groups(model: LanguageModel, settings: OptimizerSettings) -> list[dict[str, Any]]:
    """Return one group of parameters with weight decay, and one without."""
    matrices = [parameter for parameter in model.parameters() if parameter.ndim >= 2 or settings.decay == "all"]
    others = [parameter for parameter in model.parameters() if parameter.ndim < 2 and settings.decay != "all"]
    groups: list[dict[str, Any]] = [{"params": matrices, "weight_decay": settings.weight_decay}]
    if others:
        groups.append({"params": others, "weight_decay": 0.0})
    return groups


def _role_groups(model: LanguageModel, settings: OptimizerSettings) -> list[dict[str, Any]]:
    """Return a group for each role of parameters."""
    roles = parameter_roles(model)
    groups: list[dict[str, Any]] = []
    for name in ROLES:
        role: RoleSettings = getattr(settings, name)
        decay = 0.0 if name == "vectors" and settings.decay != "all" else settings.weight_decay
        members = [parameter for key, parameter in model.named_parameters() if roles[key].name == name]
        group = {
            "params": members,
            "lr": settings.lr if role.lr is None else role.lr,
            "weight_decay": decay if role.weight_decay is None else role.weight_decay,
        }
        if members:
            groups.append(group | ({"orthogonalize": name == "matrices"} if settings.name == "muon" else {}))
    return groups


def first_rate(settings: OptimizerSettings) -> float:
    """Return the highest learning rate of the first parameter group, which holds the matrices."""
    return _rates_of_roles(settings).get("matrices", settings.lr)


def scaled_rates(settings: OptimizerSettings, factor: float) -> str:
    """Return overrides that multiply the learning rates of all roles by a factor. Messages suggest them to the user."""
    rates = {"lr": settings.lr} | {f"{role}.lr": rate for role, rate in _rates_of_roles(settings).items()}
    return " ".join(f"optimizer.{name}={rate * factor:.3g}" for name, rate in rates.items())


def lowered_rates(settings: OptimizerSettings, factor: float) -> str:
    """Return overrides that lower learning rates that are too high: by a factor, and to HIGHEST_RATE at most.

    The usual rates of the user's own optimizer are unknown, so only the factor lowers them.
    """
    highest = settings.lr if settings.name == CUSTOM else HIGHEST_RATE
    return scaled_rates(settings, min(factor, highest / settings.lr))


def _rates_of_roles(settings: OptimizerSettings) -> dict[str, float]:
    """Return the learning rates of the roles that have their own."""
    by_role = settings.name == "muon" or settings.decay == "roles"
    rates = {role: getattr(settings, role).lr for role in ROLES} if by_role else {}
    return {role: rate for role, rate in rates.items() if rate is not None}


def group_settings(optimizer: Optimizer) -> list[dict[str, Any]]:
    """Return the settings of each parameter group, without its parameters."""
    return [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]


def check_optimizer_state(optimizer: Optimizer) -> None:
    """Check that restored averages have the shapes of their parameters.

    The fused AdamW (PyTorch 2.13) does not check this. With the averages of a damaged checkpoint, it writes outside their memory.

    Raises:
        UserError: If an average has another shape.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            state = optimizer.state.get(parameter, {})
            step = state.get("step", 0.0)
            averages = [value for name, value in state.items() if name != "step"]
            if not all(_is_average(value, parameter) for value in averages) or not _is_number(step):
                raise UserError(
                    "The checkpoint's optimizer state does not fit its weights. Start from its weights with init_from=."
                )


def _is_average(value: object, parameter: Tensor) -> bool:
    """Return whether a value holds one number for each number of a parameter, in the same order in memory."""
    return (
        isinstance(value, Tensor)
        and (value.shape, value.dtype, value.device) == (parameter.shape, parameter.dtype, parameter.device)
        and (value.is_contiguous() or value.stride() == parameter.stride())
    )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) or (isinstance(value, Tensor) and value.ndim == 0 and value.is_floating_point())


def gradient_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """Return the norm of all gradients together, a scalar. For a sharded model, it covers all ranks."""
    norm = get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def skips_on_device(optimizer: Optimizer) -> bool:
    """Return whether the optimizer obeys the `skip` of `clip_gradients` on the device, without the host."""
    return isinstance(optimizer, AdamW | Muon) and bool(optimizer.defaults["fused"])


def clip_gradients(
    optimizer: Optimizer, norm: Tensor, *, max_norm: float | None, factor: float = 1.0, skip: Tensor | None = None
) -> None:
    """Multiply the gradients by a factor, and then scale them so that their norm is at most max_norm.

    On CPU and CUDA, a fused AdamW scales them while it updates the weights. This saves a pass over memory.

    Args:
        norm: The norm of all gradients together after the multiplication, a scalar on their device.
        max_norm: The largest norm, or None for any.
        skip: Whether the optimizer must leave everything as it is, bool, a scalar on their device; see `skips_on_device`.
    """
    found_inf = None if skip is None else skip.float()  # the name that gradient scalers use
    if isinstance(optimizer, AdamW) and optimizer.defaults["fused"] and norm.device.type in ("cpu", "cuda"):
        if max_norm is None and factor == 1.0 and skip is None:
            vars(optimizer).update(grad_scale=None, found_inf=None)
            return
        divisor = torch.ones_like(norm) if max_norm is None else ((norm + 1e-6) / max_norm).clamp(min=1.0)
        divisor = (divisor if factor == 1.0 else divisor / factor).float()
        vars(optimizer).update(grad_scale=divisor, found_inf=torch.zeros_like(divisor) if found_inf is None else found_inf)
        return
    if isinstance(optimizer, Muon):
        optimizer.found_inf = found_inf
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if factor != 1.0:
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad.mul_(factor)
    if max_norm is not None:
        clip_grads_with_norm_(parameters, max_norm, norm)
