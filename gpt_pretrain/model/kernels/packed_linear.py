"""Linear layers for decoding. They read each weight once per token, so memory bandwidth is the limit.

Shapes: N rows, I in_features, O out_features.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class PackedLinear(nn.Module):
    """A linear layer for few rows at a time, computed in its own dtype.

    On an x86 CPU the weights are stored in oneDNN's blocked layout, like in torch.compile. For GPT-2's shapes this layout is up
    to twice as fast as `F.linear` in bf16, and also in fp32 for eight rows.

    With two or more rows, a row's result in this layout does not depend on the other rows, to the last bit. For some shapes, a
    single row is added up in another order. It is then computed twice, which takes little longer, since the weights are read
    once. A text is therefore the same whether it is decoded alone or with others. `F.linear` does not guarantee this.

    Args:
        weight: (O, I).
        bias: (O,).
        dtype: Dtype of the matrix product and of the output.
        n_rows: Expected number of rows. Other numbers work but may be slower. None leaves the weights in plain order, which is
            slower for less than about 64 rows. In the same dtype, they are then shared.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, *, dtype: torch.dtype, n_rows: int | None) -> None:
        super().__init__()
        self.dtype = dtype
        self.weight = weight.detach().to(dtype)
        self.bias = None if bias is None else bias.detach().to(dtype)
        self._has_onednn = can_pack(weight.device, dtype)
        self.packed = self._has_onednn and n_rows is not None
        self._doubles_single_row = False
        if self.packed and n_rows is not None:
            # Even for one row, a layout for one row is slower than a layout for two.
            self.weight = torch.ops.mkldnn._reorder_linear_weight(self.weight, max(n_rows, 2))
            shape = (*weight.shape, dtype, max(n_rows, 2), torch.get_num_threads())
            self._doubles_single_row = not _adds_single_rows_alike(*shape)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer: (..., I) -> (..., O), in dtype."""
        x = x.to(self.dtype)
        if not self._has_onednn:
            return F.linear(x, self.weight, self.bias)
        if self._doubles_single_row and x.numel() == x.shape[-1]:
            return _packed_product(x.reshape(1, -1).expand(2, -1), self.weight, self.bias)[:1].view(*x.shape[:-1], -1)
        return _packed_product(x, self.weight, self.bias)


@cache
@torch.inference_mode()
def _adds_single_rows_alike(n_outputs: int, n_inputs: int, dtype: torch.dtype, n_rows: int, n_threads: int) -> bool:
    """Return whether a packed layer adds up a row in the same order alone and beside another one.

    The compared sums are zero except for their rounding errors. Rounding errors differ between any two orders.

    Args:
        n_rows: Number of rows to pack the layer for.
        n_threads: Number of threads for computing it.
    """
    random, half = torch.Generator().manual_seed(0), n_inputs // 2
    inputs, weights = (torch.randn(half, generator=random) for _ in range(2))
    weights *= torch.exp2(torch.randint(-6, 7, (half,), generator=random))
    order = torch.randperm(half, generator=random)
    row = torch.cat([inputs, inputs[order], torch.zeros(n_inputs % 2)]).to(dtype)
    weight_row = torch.cat([weights, -weights[order], torch.zeros(n_inputs % 2)]).to(dtype)
    n_outputs = min(n_outputs, max(4096, 256 * n_threads))  # More outputs only add blocks that are computed alike.
    packed = torch.ops.mkldnn._reorder_linear_weight(weight_row.expand(n_outputs, -1).contiguous(), n_rows)
    alone, beside = (_packed_product(row.expand(count, -1).contiguous(), packed, None)[0] for count in (1, 2))
    return torch.equal(alone, beside)


def _packed_product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return out


def can_pack(device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether oneDNN can pack weights of this dtype here. It needs a CPU, and not every CPU supports bf16."""
    if device.type != "cpu" or not torch._C._has_mkldnn or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32
