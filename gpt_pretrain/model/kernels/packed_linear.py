"""Linear layers for decoding, which read each weight once per token and are limited by memory bandwidth.

Shapes: N rows, I in_features, O out_features.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class PackedLinear(nn.Module):
    """A linear layer for few rows at a time, computed in its own dtype.

    On an x86 CPU the weights are stored in oneDNN's blocked layout, as torch.compile does. For GPT-2's shapes this layout is
    up to twice as fast as `F.linear` in bf16, and in fp32 for eight rows.

    A row's result in this layout is the same to the last bit whatever other rows there are, from two rows on; a single row is
    computed in another order. So a single row is computed with a second one of zeros, which takes no longer, since the weights
    are read once. A text is therefore the same alone and among others that are decoded with it. `F.linear` has no such order.

    Args:
        weight: (O, I).
        bias: (O,).
        dtype: Dtype of the matrix product and of the output.
        n_rows: Expected number of rows. Other numbers work but may be slower.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, *, dtype: torch.dtype, n_rows: int) -> None:
        super().__init__()
        self.dtype = dtype
        self.weight = weight.detach().to(dtype)
        self.bias = None if bias is None else bias.detach().to(dtype)
        self.packed = can_pack(weight.device, dtype)
        if self.packed:
            self.weight = torch.ops.mkldnn._reorder_linear_weight(self.weight, max(n_rows, 2))

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer: (..., I) -> (..., O), in dtype."""
        shape = x.shape
        if not self.packed:
            return F.linear(x.to(self.dtype), self.weight, self.bias)
        if is_single := x.numel() == x.shape[-1]:
            x = torch.cat([x.reshape(1, -1), torch.zeros(1, x.shape[-1], dtype=x.dtype)])
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x.to(self.dtype), self.weight, self.bias, "none", [], "")
        return out[:1].view(*shape[:-1], -1) if is_single else out


def can_pack(device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether oneDNN can pack weights of this dtype here; it needs a CPU, and not every CPU supports bf16."""
    if device.type != "cpu" or not torch._C._has_mkldnn or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32
