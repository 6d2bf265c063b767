"""Linear layers whose weights are read as fast as memory gives them: what a decoder does for each token.

Shapes: N rows, I in_features, O out_features.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class PackedLinear(nn.Module):
    """A linear layer for few rows at a time, computed in a dtype of its own.

    On an x86 CPU the weights are kept in oneDNN's blocked layout, which PyTorch's own compiler uses too: for GPT-2's shapes
    it reads bf16 up to twice as fast as `F.linear` does, and fp32 for eight rows likewise; fp32 for one row is fast as it is.

    Args:
        weight: (O, I).
        bias: (O,).
        dtype: of the products.
        n_rows: rows to come at a time; more or fewer are computed as well.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, *, dtype: torch.dtype, n_rows: int) -> None:
        super().__init__()
        self.dtype = dtype
        self.weight = weight.detach().to(dtype)
        self.bias = None if bias is None else bias.detach().to(dtype)
        self.packed = can_pack(weight.device, dtype) and not (dtype == torch.float32 and n_rows == 1)
        if self.packed:
            self.weight = torch.ops.mkldnn._reorder_linear_weight(self.weight, n_rows)

    def forward(self, x: Tensor) -> Tensor:
        """(..., I) -> (..., O), in dtype."""
        if not self.packed:
            return F.linear(x.to(self.dtype), self.weight, self.bias)
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x.to(self.dtype), self.weight, self.bias, "none", [], "")
        return out


def can_pack(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether oneDNN has a layout for weights of that dtype here: on a CPU, and for bf16 not on every one."""
    if device.type != "cpu" or not torch._C._has_mkldnn or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32
