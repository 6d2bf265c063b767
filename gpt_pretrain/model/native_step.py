"""A decoding step as one call of C code. It reads the weights at the speed of memory, and starts no PyTorch operators.

Shapes: B batch, V vocab_size, L layers, G heads of keys and values, S capacity of a cache, K head_dim.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpt_pretrain.model.kernels.native_linear import TYPES, LayerPointers, NativeLinear
from gpt_pretrain.model.kv_cache import KVCache, RowCaches
from gpt_pretrain.model.language_model import LanguageModel
from gpt_pretrain.model.modern import NORM_EPS, rotation_at
from gpt_pretrain.system.native_code import load_native_code

SOURCE = Path(__file__).parent / "kernels" / "decoding_step.c"
ACTIVATIONS = {"tanh": 0, "none": 1}
SQUARED_RELU = 2
WIDTH = 64  # The code adds up this many inputs at a time,
HEAD_WIDTH = 16  # and this many numbers of a head.
FEWEST_POSITIONS = 256  # rotations to compute together
MODEL_TABLES = ("tok_emb", "pos_emb", "bigram_emb", "cosines", "sines", "norm_weight", "norm_bias")


class _Block(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("norm1_weight", "norm1_bias", "norm2_weight", "norm2_bias")),
        *((name, LayerPointers) for name in ("qkv", "out", "up", "down")),
        ("value_emb", ctypes.c_void_p),
    )


class _Model(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int32) for name in ("weight_type", "cache_type", "activation", "n_layers")),
        *((name, ctypes.c_int64) for name in ("emb_dim", "n_heads", "n_kv_heads", "head_dim")),
        ("norm_eps", ctypes.c_float),
        *((name, ctypes.c_void_p) for name in MODEL_TABLES),
        ("head", LayerPointers),
        ("blocks", ctypes.POINTER(_Block)),
    )


class _Row(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("token_id", "position", "bigram_row")),
        *((name, ctypes.c_void_p) for name in ("keys", "values")),
        *((name, ctypes.c_int64) for name in ("layer_bytes", "head_bytes")),
    )


class NativeStep:
    """A model's decoding step in C.

    A row's logits do not depend on the other rows, to the last bit.

    Args:
        library: The compiled code.
        model: A model supported by `load_step_code`, with a `NativeLinear` for each linear layer.
        head: Its output head.
        dtype: Dtype of the layers' weights.
    """

    def __init__(self, library: ctypes.CDLL, model: LanguageModel, head: NativeLinear, *, dtype: torch.dtype) -> None:
        self._library, self._config, self._dtype = library, model.config, dtype
        self._cache_dtype = torch.float32 if dtype == torch.int8 else dtype
        self._tensors: list[object] = [model, head]  # The structures point to their memory.
        self._rotation: list[Tensor] = []  # rotations of the positions so far, kept for the same reason
        self._bigram_emb: Any = getattr(model, "bigram_emb", None)
        blocks: Any = model.trf_blocks
        self._blocks = (_Block * len(blocks))(*(self._block(block) for block in blocks))
        self._model = self._describe(model, head)

    def logits(self, token_ids: Tensor, cache: KVCache) -> Tensor:
        """Return the logits after one token of each row, fp32, (B, V), and append its keys and values to the cache.

        Args:
            token_ids: int64, (B, 1).
            cache: The cache of the previous positions.
        """
        ids = token_ids[:, 0].tolist()
        if not all(0 <= one < self._config.vocab_size for one in ids):
            raise IndexError(f"token ids must be from 0 to {self._config.vocab_size - 1}: {ids}")
        pairs = [0] * len(ids)
        if self._bigram_emb is not None:
            pairs = self._bigram_emb.rows(cache.preceding_ids(token_ids), token_ids)[:, 0].tolist()
        cache.begin(1)
        rows = (_Row * len(ids))(*_rows(cache, ids, pairs))
        longest = max(row.position for row in rows) + 1
        self._rotate_up_to(longest)
        sizes = [ctypes.c_int64(size) for size in (len(ids), longest, torch.get_num_threads())]
        work = torch.empty(self._library.work_numbers(ctypes.byref(self._model), *sizes), dtype=torch.float32)
        # Rows are multiplied in groups. The last group is filled up with rows, and their logits are written as well.
        out = torch.empty(self._library.padded_rows(sizes[0]), self._config.vocab_size, dtype=torch.float32)
        pointers = (ctypes.c_void_p(one.data_ptr()) for one in (work, out))
        self._library.step(ctypes.byref(self._model), rows, *sizes, *pointers)
        return out[: len(ids)]

    def takes(self, token_ids: Tensor, cache: KVCache | None) -> bool:
        """Return whether there is one token for each row, and the code can read the cache."""
        if token_ids.shape[1] != 1 or type(cache) not in (KVCache, RowCaches):
            return False
        parts = cache.rows if isinstance(cache, RowCaches) else [cache]
        return all(type(one) is KVCache and one.keys.dtype == self._cache_dtype for one in parts)

    def _describe(self, model: LanguageModel, head: NativeLinear) -> _Model:
        config, parts = model.config, dict(model.named_modules())
        is_modern = config.kind == "modern"
        norm, pos_emb = (None if is_modern else parts[name] for name in ("final_norm", "pos_emb"))
        return _Model(
            weight_type=TYPES[self._dtype],
            cache_type=TYPES[self._cache_dtype],
            activation=SQUARED_RELU if is_modern else ACTIVATIONS[config.gelu_approximate],
            n_layers=config.n_layers,
            emb_dim=config.emb_dim,
            n_heads=config.n_heads,
            n_kv_heads=config.kv_heads,
            head_dim=config.head_dim,
            norm_eps=NORM_EPS if norm is None else norm.eps,
            tok_emb=self._pointer(model.tok_emb.weight),
            pos_emb=self._pointer(None if pos_emb is None else pos_emb.weight),
            bigram_emb=self._pointer(None if self._bigram_emb is None else self._bigram_emb.weight),
            norm_weight=self._pointer(None if norm is None else norm.weight),
            norm_bias=self._pointer(None if norm is None else norm.bias),
            head=head.pointers,
            blocks=self._blocks,
        )

    def _rotate_up_to(self, longest: int) -> None:
        """Compute the rotations of at least this many positions. Not all are computed at once: a file may state any context."""
        if self._config.kind != "modern" or (self._rotation and longest <= len(self._rotation[0])):
            return
        positions = torch.arange(min(max(2 * longest, FEWEST_POSITIONS), self._config.context_length))
        self._rotation = [part.contiguous() for part in rotation_at(positions, self._config.head_dim)]
        self._model.cosines, self._model.sines = (part.data_ptr() for part in self._rotation)

    def _block(self, block: Any) -> _Block:
        norms = (block.norm1, block.norm2) if hasattr(block, "norm1") else ()
        vectors = [self._pointer(one) for norm in norms for one in (norm.weight, norm.bias)] or [None] * 4
        layers = (block.att.qkv, block.att.out_proj, block.ff.layers[0], block.ff.layers[2])
        value_emb = getattr(block.att, "value_emb", None)
        added = None if value_emb is None else value_emb.weight
        return _Block(*vectors, *(layer.pointers for layer in layers), self._pointer(added))

    def _pointer(self, tensor: Tensor | None) -> int | None:
        if tensor is None:
            return None
        tensor = tensor.detach().contiguous()
        self._tensors.append(tensor)
        return tensor.data_ptr()


def load_step_code(model: LanguageModel, *, dtype: torch.dtype) -> ctypes.CDLL | None:
    """Load the code of the step if it supports this model and this dtype of weights, and this machine has a C compiler."""
    config = model.config
    fits = config.emb_dim % WIDTH == 0 and config.head_dim % HEAD_WIDTH == 0 and dtype in TYPES
    if not fits or any(one.device.type != "cpu" or one.dtype != torch.float32 for one in model.parameters()):
        return None
    library = load_native_code(SOURCE)
    if library is not None:
        library.work_numbers.restype = library.apply_numbers.restype = library.padded_rows.restype = ctypes.c_int64
        library.step.restype = library.apply.restype = None
    return library


def _rows(cache: KVCache, ids: Sequence[int], bigram_rows: Sequence[int]) -> list[_Row]:
    """Describe each row of a cache. Its keys and values have the shape (L, B, G, S, K)."""
    parts = [(one, 0) for one in cache.rows] if isinstance(cache, RowCaches) else [(cache, row) for row in range(len(ids))]
    rows = []
    for token_id, bigram_row, (one, row) in zip(ids, bigram_rows, parts, strict=True):
        size, (layer, batch, head, *_) = one.keys.element_size(), one.keys.stride()
        starts = [buffer.data_ptr() + row * batch * size for buffer in (one.keys, one.values)]
        rows.append(_Row(token_id, one.length - 1, bigram_row, *starts, layer * size, head * size))
    return rows
