"""Compute a value and its gradients."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def gradients(compute: Callable[[], Tensor], *inputs: Tensor) -> tuple[Tensor, ...]:
    """Return a value and its gradient for each input."""
    value = compute()
    return value.detach(), *torch.autograd.grad(value, inputs)
