"""Linear layers whose weights are read as fast as memory gives them: what a decoder does for each token.

Shapes: N rows, I in_features, O out_features.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gpt_pretrain.kernels.products import cpu_bf16_pays

FEW = 64  # rows: up to here reading the weights takes longer than computing with them


class PackedLinear(nn.Module):
    """A linear layer for few rows at a time, computed in a dtype of its own.

    On an x86 CPU the weights are kept in oneDNN's blocked layout, which PyTorch's own compiler uses too: for GPT-2's shapes
    it reads bf16 up to twice as fast as `F.linear` does, and fp32 for eight rows likewise; fp32 for one row is fast as it is.
    Many rows, as of a prompt, are computed with the weights as they were where this CPU gains nothing by bf16.

    Args:
        weight: (O, I).
        bias: (O,).
        dtype: of the products; sums are fp32.
        n_rows: rows to come at a time; more or fewer are computed as well.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, *, dtype: torch.dtype, n_rows: int) -> None:
        super().__init__()
        self.dtype = dtype
        self.own_weight, self.own_bias = weight.detach(), None if bias is None else bias.detach()
        self.weight, self.bias = self.own_weight.to(dtype), None if bias is None else bias.detach().to(dtype)
        self.packed = can_pack(weight) and not (dtype == torch.float32 and n_rows == 1)
        self.plain_for_many = weight.device.type == "cpu" and (dtype == torch.float32 or not cpu_bf16_pays())
        if self.packed:
            self.weight = torch.ops.mkldnn._reorder_linear_weight(self.weight, n_rows)

    def forward(self, x: Tensor) -> Tensor:
        """(..., I) -> (..., O), in dtype."""
        if self.plain_for_many and x.numel() > FEW * x.shape[-1]:
            return F.linear(x.to(self.own_weight.dtype), self.own_weight, self.own_bias).to(self.dtype)
        if not self.packed:
            return F.linear(x.to(self.dtype), self.weight, self.bias)
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x.to(self.dtype), self.weight, self.bias, "none", [], "")
        return out


def can_pack(weight: Tensor) -> bool:
    """Whether this machine's PyTorch has oneDNN's layouts for a weight."""
    return weight.device.type == "cpu" and torch._C._has_mkldnn and hasattr(torch.ops.mkldnn, "_linear_pointwise")
