"""Linear layers for decoding with weights of 8 bits. If reading the weights is the limit, they take half the time of 16 bits.

Shapes: N rows, I in_features, O out_features.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor, nn

PART_BITS = 7  # of each of the two parts of an input's number
PART_ZERO = 1 << (PART_BITS - 1)
LEVELS = (1 << (2 * PART_BITS - 1)) - PART_ZERO - 1  # steps from 0 to the largest number of a row
MIN_SCALE = torch.finfo(torch.float32).tiny


class Int8Linear(nn.Module):
    """A linear layer with weights rounded to 8 bits, and a scale for each output.

    Inputs keep 14 bits. Each input is the sum of a high and a low part of 7 bits, and both parts are rows of one product of
    integers. The weights are read once for both, so the second row takes little time. Products of integers are exact, so a row's
    result does not depend on other rows.

    Parts of 8 bits are not possible: on processors without VNNI, sums of two products would overflow 16 bits, and oneDNN would
    not report it.

    Args:
        weight: (O, I).
        bias: (O,).
        n_rows: Expected number of rows. Other numbers work but may be slower.

    Attributes:
        rounded: The weights as integers in their own order, int8, (O, I).
        scale: The scale of each output, fp32, (O,).
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, *, n_rows: int) -> None:
        super().__init__()
        numbers = weight.detach().float()
        self.scale = numbers.abs().amax(dim=1).div_(127).clamp_(min=MIN_SCALE)
        self.rounded = rounded = (numbers / self.scale[:, None]).round_().to(torch.int8)
        self.weight = torch.ops.onednn.qlinear_prepack(rounded, [2 * n_rows, rounded.shape[1]])
        self.bias = None if bias is None else bias.detach().float()
        self._zeros = torch.zeros(len(self.scale), dtype=torch.int64)
        self._shifts = torch.tensor([PART_BITS, 0], dtype=torch.int32).view(2, 1, 1)
        self._middle = torch.tensor((PART_ZERO << PART_BITS) + PART_ZERO + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer: (..., I) -> (..., O), in fp32."""
        rows = x.reshape(-1, x.shape[-1]).float()  # (N, I)
        step = torch.linalg.vector_norm(rows, math.inf, dim=1, keepdim=True).div_(LEVELS).clamp_(min=MIN_SCALE)  # (N, 1)
        numbers = torch.addcdiv(self._middle, rows, step).to(torch.int32)  # positive, so that truncation rounds
        parts = (numbers >> self._shifts).bitwise_and_((1 << PART_BITS) - 1).to(torch.uint8)  # (2, N, I)
        high, low = _integer_product(parts.flatten(0, 1), self.weight, self.scale, self._zeros).chunk(2)  # each (N, O)
        sums = low.add_(high, alpha=1 << PART_BITS)
        out = sums.mul_(step) if self.bias is None else torch.addcmul(self.bias, sums, step)
        return out.view(*x.shape[:-1], -1)


@cache
def has_int8_products() -> bool:
    """Return whether this processor and PyTorch compute products of 7-bit and 8-bit integers exactly, even the largest."""
    inputs = torch.arange(4 * 768).view(4, 768) % (1 << PART_BITS)
    inputs[:2] = (1 << PART_BITS) - 1
    weights = torch.arange(40 * 768).view(40, 768) % 255 - 127
    weights[::2] = 127
    try:
        packed = torch.ops.onednn.qlinear_prepack(weights.to(torch.int8), list(inputs.shape))
        out = _integer_product(inputs.to(torch.uint8), packed, torch.ones(40), torch.zeros(40, dtype=torch.int64))
    except (AttributeError, RuntimeError):
        return False
    return torch.equal(out.long(), (inputs - PART_ZERO) @ weights.T)


def _integer_product(inputs: Tensor, weight: Tensor, scale: Tensor, zeros: Tensor) -> Tensor:
    """Multiply inputs of uint8 by packed weights and their scales: (N, I) -> (N, O), fp32. An input of PART_ZERO means 0."""
    out: Tensor = torch.ops.onednn.qlinear_pointwise(
        inputs, 1.0, PART_ZERO, weight, scale, zeros, None, 1.0, 0, torch.float32, "none", [], ""
    )
    return out
