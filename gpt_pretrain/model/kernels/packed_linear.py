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

    A row's result in this layout is the same to the last bit whatever other rows there are, from two rows on. For some shapes
    a single row is computed in another order; it is then computed twice, which takes little longer, since the weights are read
    once. A text is therefore the same alone and among others that are decoded with it. `F.linear` has no such order.

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
            # A layout for one row is slower than one for two, even for one row.
            self.weight = torch.ops.mkldnn._reorder_linear_weight(self.weight, max(n_rows, 2))
            self._doubles_single_row = not self._computes_single_rows_alike(weight.shape[1])

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer: (..., I) -> (..., O), in dtype."""
        x = x.to(self.dtype)
        if not self.packed:
            return F.linear(x, self.weight, self.bias)
        if self._doubles_single_row and x.numel() == x.shape[-1]:
            return self._product(x.reshape(1, -1).expand(2, -1))[:1].view(*x.shape[:-1], -1)
        return self._product(x)

    def _product(self, x: Tensor) -> Tensor:
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return out

    @torch.inference_mode()
    def _computes_single_rows_alike(self, n_inputs: int) -> bool:
        """Return whether a row has the same result alone and beside another one. In another order few sums would be equal."""
        rows = torch.randn(2, n_inputs, generator=torch.Generator().manual_seed(0)).to(self.dtype)
        return torch.equal(self._product(rows[:1]), self._product(rows)[:1])


def can_pack(device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether oneDNN can pack weights of this dtype here; it needs a CPU, and not every CPU supports bf16."""
    if device.type != "cpu" or not torch._C._has_mkldnn or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32
