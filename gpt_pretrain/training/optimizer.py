"""AdamW's parameter groups, and learning-rate schedules as pure functions of the step."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_
from torch.optim import AdamW, Optimizer

from gpt_pretrain.config.schema import OptimizerSettings


def build_optimizer(model: nn.Module, settings: OptimizerSettings, *, fused: bool = True) -> AdamW:
    """AdamW over all parameters of model; weight decay acts on matrices alone unless settings say otherwise.

    Args:
        fused: update in one pass over memory, several times faster; not with a gradient scaler (fp16).
    """
    matrices = [parameter for parameter in model.parameters() if parameter.ndim >= 2 or settings.decay == "all"]
    others = [parameter for parameter in model.parameters() if parameter.ndim < 2 and settings.decay != "all"]
    groups = [{"params": matrices, "weight_decay": settings.weight_decay}]
    if others:
        groups.append({"params": others, "weight_decay": 0.0})
    beta1, beta2 = settings.betas
    return AdamW(groups, lr=settings.lr, betas=(beta1, beta2), eps=settings.eps, fused=fused)


def clip_gradients(optimizer: Optimizer, norm: Tensor, *, max_norm: float) -> None:
    """Scale an optimizer's gradients so that their norm is at most max_norm.

    A fused AdamW does that on its way through them, which spares a pass over memory; that of MPS leaves it out.

    Args:
        norm: of all gradients together, a scalar on their device.
    """
    if isinstance(optimizer, AdamW) and optimizer.defaults["fused"] and norm.device.type in ("cpu", "cuda"):
        divisor = ((norm + 1e-6) / max_norm).clamp(min=1.0).float()
        vars(optimizer).update(grad_scale=divisor, found_inf=torch.zeros_like(divisor))  # as a gradient scaler would
        return
    clip_grads_with_norm_([parameter for group in optimizer.param_groups for parameter in group["params"]], max_norm, norm)
