"""Gradients of the next-token loss, summed chunk by chunk.

Shapes: N positions, D emb_dim, V vocab_size.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gpt_pretrain.model.kernels.chunks import gradient_rows
from gpt_pretrain.model.kernels.native_loss import load_loss_code, sum_products


class LossGradients:
    """The gradients of the hidden states and of the head's weight, summed chunk by chunk.

    Half-precision gradients are summed in fp32. In fp16, the small gradients of a mean would underflow, so each chunk adds the
    gradients of a sum. The sums over the rows of a chunk could overflow, so x is scaled down first.

    Args:
        x: Hidden states, (N, D).
        n_rows: Rows of the weight in products.
        rows: Rows of a chunk.
        count: Number of positions in the mean.
    """

    def __init__(self, x: Tensor, n_rows: int, rows: int, count: Tensor) -> None:
        self.x, self.count = x, count
        self.fp16 = x.dtype == torch.float16
        self.scale = 0.5 ** math.ceil(math.log2(rows)) if self.fp16 else 1.0
        wide = torch.promote_types(x.dtype, torch.float32)
        self.d_weight = torch.empty(n_rows, x.shape[1], dtype=wide, device=x.device)
        self.d_hidden = torch.empty_like(x)
        self.is_first = True

    def add(self, d_logits: Tensor, w: Tensor, chunk: slice) -> None:
        """Add the gradients of a chunk.

        Args:
            d_logits: (rows, V, possibly with more columns of zeros).
            w: Weight, (V, D), possibly with more rows of zeros.
        """
        torch.mm(d_logits, w, out=self.d_hidden[chunk])
        x = self.x[chunk] * self.scale if self.fp16 else self.x[chunk]
        if x.dtype != self.d_weight.dtype:
            self._add_in_fp32(d_logits.T, x)
        elif self.is_first:
            torch.mm(d_logits.T, x, out=self.d_weight)
        else:
            self.d_weight.addmm_(d_logits.T, x)
        self.is_first = False

    def _add_in_fp32(self, d_logits_t: Tensor, x: Tensor) -> None:
        """Add a product in half precision by blocks. A CPU needs memory for each product and its copy in fp32 beside the sum."""
        rows, library = gradient_rows(len(self.d_weight), x.device.type), None if self.fp16 else load_loss_code(x)
        for start in range(0, len(self.d_weight), rows):
            product, total = d_logits_t[start : start + rows] @ x, self.d_weight[start : start + rows]
            if library is not None:
                sum_products(library, product, total, is_first=self.is_first)
            else:
                total.copy_(product) if self.is_first else total.add_(product)

    def finish(self, hidden_dtype: torch.dtype, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradients of the hidden states and of the weight, without rows beyond the vocabulary."""
        assert not self.is_first
        d_hidden = self.d_hidden.to(hidden_dtype)
        if self.fp16:
            d_hidden = d_hidden / self.count.to(hidden_dtype)
            self.d_weight /= self.scale * self.count
        return d_hidden, self.d_weight[: len(weight)].to(weight.dtype)
