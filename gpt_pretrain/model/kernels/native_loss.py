"""The elementwise part of the loss in C. It passes over a row of logits two or three times; PyTorch needs up to eleven passes.

Shapes: N rows, V vocab_size.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch
from torch import Tensor

from gpt_pretrain.system.native_code import load_native_code

SOURCE = Path(__file__).with_name("loss.c")
TYPES = {torch.float32: 0, torch.bfloat16: 1}  # as numbered in the C code


def load_loss_code(logits: Tensor) -> ctypes.CDLL | None:
    """Load the code if it supports the logits' device and dtype, and this machine has a C compiler."""
    if logits.device.type != "cpu" or logits.dtype not in TYPES:
        return None
    library = load_native_code(SOURCE)
    if library is not None:
        library.softmax_loss.restype = library.sum_products.restype = None
    return library


def native_softmax_loss(
    library: ctypes.CDLL, logits: Tensor, target_ids: Tensor, row_weights: Tensor, *, cap: float | None, with_gradient: bool
) -> Tensor:
    """Compute the cross-entropy of each row in nats. Its sums are added up in the same order by any number of threads.

    Args:
        library: The compiled code.
        logits: (N, V), with adjacent columns. With gradients, they are replaced by the gradient of the weighted sum of losses.
        target_ids: int64 or int32, (N,). Those of rows with a weight of 0 are not read.
        row_weights: fp32, (N,).
        cap: The logits are bent to cap * tanh(logits / cap); None leaves them.
        with_gradient: Whether to compute the gradient.

    Returns:
        The unweighted losses, fp32, (N,); 0 where the weight is 0.

    Raises:
        IndexError: If a target that counts is not from 0 to V - 1.
    """
    assert logits.stride(1) == 1, logits.stride()
    assert target_ids.device == row_weights.device == logits.device, (target_ids.device, row_weights.device, logits.device)
    assert target_ids.shape == row_weights.shape == logits.shape[:1], (target_ids.shape, row_weights.shape, logits.shape)
    targets, weights = target_ids.long().contiguous(), row_weights.float().contiguous()
    if ((targets < 0) | (targets >= logits.shape[1])).logical_and_(weights != 0).any():
        raise IndexError(f"target ids must be from 0 to {logits.shape[1] - 1}")
    losses = torch.empty_like(weights)  # in fp32, whatever PyTorch's default dtype is: bf16-true changes it
    sizes = (ctypes.c_int64(size) for size in (logits.stride(0), *logits.shape))
    pointers = (ctypes.c_void_p(one.data_ptr()) for one in (targets, weights))
    library.softmax_loss(
        TYPES[logits.dtype],
        ctypes.c_void_p(logits.data_ptr()),
        *sizes,
        *pointers,
        ctypes.c_float(cap or 0.0),
        with_gradient,
        ctypes.c_void_p(losses.data_ptr()),
        ctypes.c_int64(torch.get_num_threads()),
    )
    return losses


def sum_products(library: ctypes.CDLL, product: Tensor, total: Tensor, *, is_first: bool) -> None:
    """Add a product in bf16 to a sum in fp32 of the same shape, or write it there if it is the first one. Both are contiguous."""
    assert product.dtype == torch.bfloat16 and product.is_contiguous() and total.is_contiguous()
    pointers = (ctypes.c_void_p(one.data_ptr()) for one in (product, total))
    library.sum_products(*pointers, ctypes.c_int64(product.numel()), is_first, ctypes.c_int64(torch.get_num_threads()))
