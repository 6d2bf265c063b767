"""Linear layers with C code for few rows. It runs at the speed of reading memory.

Shapes: N rows, I in_features, O out_features.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor, nn

from gpt_pretrain.model.kernels.int8_linear import Int8Linear
from gpt_pretrain.model.kernels.packed_linear import PackedLinear

TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2}  # as numbered in the C code
MAX_ROWS = 8  # More rows are faster as a product of matrices.


class LayerPointers(ctypes.Structure):
    """A layer in the form for the C code."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("weight", "bias", "scale")),
        *((name, ctypes.c_int64) for name in ("outputs", "inputs")),
    )


class NativeLinear(nn.Module):
    """A linear layer that leaves up to MAX_ROWS rows to C code, and more rows to another layer.

    Args:
        library: The compiled code.
        layer: The layer for more rows, with weights in plain order. Their memory is shared.
    """

    def __init__(self, library: ctypes.CDLL, layer: PackedLinear | Int8Linear) -> None:
        super().__init__()
        self.layer = layer
        self._library = library
        weight, scale = (layer.rounded, layer.scale) if isinstance(layer, Int8Linear) else (layer.weight, None)
        bias = None if layer.bias is None else layer.bias.float()
        # The structure points to the memory of these tensors.
        self._tensors = [None if one is None else one.contiguous() for one in (weight, bias, scale)]
        self.pointers = LayerPointers(*(None if one is None else one.data_ptr() for one in self._tensors), *weight.shape)
        self._type, self._dtype = TYPES[weight.dtype], torch.float32 if scale is not None else weight.dtype

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer: (..., I) -> (..., O), in the dtype of the other layer's outputs."""
        rows = x.reshape(-1, x.shape[-1])  # (N, I)
        if not 0 < len(rows) <= MAX_ROWS:
            many: Tensor = self.layer(x)
            return many
        rows = rows.float().contiguous()
        n_rows, n_inputs, n_threads = (ctypes.c_int64(size) for size in (*rows.shape, torch.get_num_threads()))
        work = torch.empty(self._library.apply_numbers(self._type, n_rows, n_inputs, n_threads), dtype=torch.float32)
        out = torch.empty(self._library.padded_rows(n_rows), self.pointers.outputs, dtype=torch.float32)
        buffers = (ctypes.c_void_p(one.data_ptr()) for one in (rows, work, out))
        self._library.apply(self._type, ctypes.byref(self.pointers), n_rows, n_threads, *buffers)
        return out[: len(rows)].to(self._dtype).view(*x.shape[:-1], -1)
