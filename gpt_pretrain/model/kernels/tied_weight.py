"""One weight as token embedding and output head, with one gradient.

Shapes: D emb_dim, V vocab_size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def split_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return a weight for a sparse lookup and for an output head. The lookup's gradient is added to the head's in place.

    Autograd would add them in new memory, since PyTorch (2.13) adds no sparse gradient in place. The head must be used once, by
    a function whose gradient nothing else refers to.

    Args:
        weight: (V, D).
    """
    lookup, head = _SplitWeight.apply(weight)  # type: ignore[no-untyped-call]
    return lookup, head


class _SplitWeight(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        return weight.view_as(weight), weight.view_as(weight)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(_: Any, d_lookup: Tensor | None, d_head: Tensor | None) -> Tensor | None:
        if d_head is None or d_lookup is None:
            return d_lookup if d_head is None else d_head
        return d_head.add_(d_lookup)
