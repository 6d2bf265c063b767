"""A model prepared for decoding: the generation of one token at a time.

Shapes: B batch, T time, D emb_dim, V vocab_size.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from ctypes import CDLL
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from gpt_pretrain.errors import UserError
from gpt_pretrain.model.custom import CustomModel
from gpt_pretrain.model.kernels.int8_linear import Int8Linear, has_int8_products
from gpt_pretrain.model.kernels.matmul_speed import speedup
from gpt_pretrain.model.kernels.native_linear import NativeLinear
from gpt_pretrain.model.kernels.packed_linear import PackedLinear
from gpt_pretrain.model.kv_cache import KVCache, StaticKVCache
from gpt_pretrain.model.language_model import LanguageModel
from gpt_pretrain.model.native_step import NativeStep, load_step_code
from gpt_pretrain.system.measurements import measured_once

# Lightning's names of precisions, and int8, each with the dtype of weights in matrix products.
PRECISIONS = {"32-true": torch.float32, "bf16-mixed": torch.bfloat16, "int8": torch.int8}
MIN_DECODING_SPEEDUP = 1.2  # A smaller speedup of bf16 decoding is not worth its rounding.
ATTENTION_FOR_ANY_LENGTH = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
PROMPT_ROWS = 128  # positions of a prompt with logits in memory at once
_DecodingLayer = PackedLinear | Int8Linear | NativeLinear
GRAPH_MIN_TOKENS = 32  # For fewer tokens, capturing a CUDA graph takes longer than it saves.


class DecodingModel:
    """A read-only copy of a model. Its matrices are laid out in memory for fast decoding.

    Args:
        model: The model to decode with. Weights that need no other layout or dtype are shared with it. After changing them, make
            a new decoding model.
        dtype: Dtype of matrix products and of cached keys and values. None means the model's own. int8 rounds the weights of
            matrix products, and everything else stays in fp32.
        batch_size: Expected number of rows. Other numbers work but may be slower.

    Attributes:
        has_cache: Whether keys and values can be cached.
    """

    has_cache = True

    def __init__(self, model: LanguageModel, *, dtype: torch.dtype | None = None, batch_size: int = 1) -> None:
        self.config = model.config
        self.device = model.device
        weight_dtype = model.tok_emb.weight.dtype if dtype is None else dtype
        self.dtype = torch.float32 if weight_dtype == torch.int8 else weight_dtype
        code = load_step_code(model, dtype=weight_dtype)

        def layer(weight: Tensor, bias: Tensor | None) -> _DecodingLayer:
            return _decoding_layer(weight, bias, dtype=weight_dtype, n_rows=batch_size, code=code)

        self._blocks, self._head = _replace_linear_layers(model, layer), layer(model.head_weight, None)
        self._native = None
        if code is not None and isinstance(self._head, NativeLinear):
            self._native = NativeStep(code, self._blocks, self._head, dtype=weight_dtype)

    def next_logits(self, token_ids: Tensor, *, cache: KVCache | None = None) -> Tensor:
        """Return the logits after the last of token_ids.

        Args:
            token_ids: int64, (B, T).
            cache: Keys and values of the positions before token_ids. This call appends the keys and values of token_ids.

        Returns:
            (B, V), fp32 or wider.
        """
        if cache is not None and self._native is not None and self._native.takes(token_ids, cache):
            return self._blocks.cap_logits(self._native.logits(token_ids, cache))
        with _attention_for_any_length(self.device):
            hidden = self._blocks.hidden_states(token_ids, cache=cache)  # (B, T, D)
        return self._logits(hidden[:, -1])

    def prompt_logits(self, token_ids: Tensor, *, cache: KVCache | None = None) -> Iterator[Tensor]:
        """Yield the logits after each token of a single row, in order, (up to PROMPT_ROWS, V). The last logits come alone.

        Args:
            token_ids: int64, (1, T).
            cache: As in `next_logits`.
        """
        with _attention_for_any_length(self.device):
            hidden = self._blocks.hidden_states(token_ids, cache=cache)[0]  # (T, D)
        for start in range(0, len(hidden) - 1, PROMPT_ROWS):
            yield self._logits(hidden[start : min(start + PROMPT_ROWS, len(hidden) - 1)])
        yield self._logits(hidden[-1:])

    def _logits(self, hidden: Tensor) -> Tensor:
        logits: Tensor = self._head(hidden)  # (..., V)
        return self._blocks.cap_logits(logits.to(torch.promote_types(logits.dtype, torch.float32)))

    def new_cache(self, batch_size: int, *, capacity: int) -> KVCache:
        """Return an empty cache for this many rows and at most this many positions."""
        return KVCache(self.config, batch_size, capacity=capacity, device=self.device, dtype=self.dtype)


class WindowDecodingModel(DecodingModel):
    """The user's own model, prepared for decoding. It has no cache, and reads the whole window for each token.

    Args:
        model: The model.
        dtype: bf16 for autocast; None and other dtypes have no effect.
    """

    has_cache = False

    def __init__(self, model: CustomModel, *, dtype: torch.dtype | None = None) -> None:
        self.config, self.device = model.config, model.device
        self.dtype = next(model.parameters()).dtype if dtype is None else dtype
        self._model = model

    def prompt_logits(self, token_ids: Tensor, *, cache: KVCache | None = None) -> Iterator[Tensor]:
        for end in range(1, token_ids.shape[1] + 1):
            yield self.next_logits(token_ids[:, :end])

    def next_logits(self, token_ids: Tensor, *, cache: KVCache | None = None) -> Tensor:
        assert cache is None
        modes = [(part, part.training) for part in self._model.modules()]
        try:
            self._model.eval()
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16):
                logits: Tensor = self._model(token_ids)[:, -1]  # (B, V)
        finally:
            for part, mode in modes:
                part.training = mode
        return logits.to(torch.promote_types(logits.dtype, torch.float32))


def decoding_model(model: LanguageModel, *, dtype: torch.dtype | None = None, batch_size: int = 1) -> DecodingModel:
    """Prepare a model for decoding, with a cache if it is one of the built-in ones."""
    if isinstance(model, CustomModel):
        return WindowDecodingModel(model, dtype=dtype)
    return DecodingModel(model, dtype=dtype, batch_size=batch_size)


def pick_decoding_precision(precision: str, model: LanguageModel) -> tuple[str, str]:
    """Return the precision to decode in, one of `PRECISIONS`, and the reason.

    "auto" chooses bf16 if it is clearly faster. On a GPU, this is the case if the GPU supports it. On a CPU, a short measurement
    with an output head of this size decides. It is made at the first start.

    Raises:
        UserError: If int8 is configured but cannot be computed here.
    """
    if precision == "int8":
        _check_int8(model)
    if precision != "auto":
        return precision, "as configured"
    if isinstance(model, CustomModel):
        return "32-true", "the safe choice for your own model"
    weight = model.head_weight
    if weight.device.type == "cuda":
        supported = torch.cuda.is_bf16_supported(including_emulation=False)
        return ("bf16-mixed", "this GPU supports bf16") if supported else ("32-true", "this GPU does not support bf16")
    if weight.device.type != "cpu":
        return "32-true", f"the safe choice on {weight.device.type}"
    faster = (times := _bf16_row_speedup(model)) >= MIN_DECODING_SPEEDUP
    reason = f"bf16 decodes {times:g} times as fast as fp32 on this CPU"
    return ("bf16-mixed", reason) if faster else ("32-true", f"{reason}; bf16-mixed needs {MIN_DECODING_SPEEDUP:g}")


def _check_int8(model: LanguageModel) -> None:
    if isinstance(model, CustomModel):
        problem = "your own model is decoded as it is, and only the built-in ones can be rounded"
    elif model.device.type != "cpu":
        problem = f"this works on a CPU only (device=cpu), and the model is on {model.device.type}"
    elif not has_int8_products():
        problem = "PyTorch cannot multiply integers of 8 bits exactly on this processor"
    else:
        return
    raise UserError(f"precision=int8: {problem}. Choose auto, 32-true or bf16-mixed.")


def capture_step(model: DecodingModel, cache: KVCache) -> Callable[[Tensor], Tensor]:
    """Capture one decoding step as a CUDA graph. Each token replays it, so that Python launches no kernels.

    Returns:
        A function from token ids, int64, (B, 1), to the logits after them, (B, V). The next call overwrites the logits.
    """
    static = StaticKVCache(cache)
    token_ids = torch.zeros(cache.keys.shape[1], 1, dtype=torch.int64, device=model.device)  # (B, 1)
    graph, last_ids = torch.cuda.CUDAGraph(), cache.last_ids.clone()
    try:
        with torch.cuda.device(model.device):
            side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                # The warm-up writes keys and values at the next position. The first real step overwrites them.
                for _ in range(3):
                    model.next_logits(token_ids, cache=static)
            torch.cuda.current_stream().wait_stream(side)
            with torch.cuda.graph(graph):
                logits = model.next_logits(token_ids, cache=static)
    finally:  # After a failed capture, too, the cache is used further.
        cache.last_ids.copy_(last_ids)

    def step(new: Tensor) -> Tensor:
        token_ids.copy_(new)
        with torch.cuda.device(model.device):
            graph.replay()
        static.advance()
        cache.length = static.length
        return logits

    return step


def _attention_for_any_length(device: torch.device) -> AbstractContextManager[None]:
    """Keep attention from using cuDNN. PyTorch (2.11) prefers it on an H100, but it takes 40 ms to plan each new length."""
    return sdpa_kernel(ATTENTION_FOR_ANY_LENGTH) if device.type == "cuda" else nullcontext()


def _replace_linear_layers(model: LanguageModel, layer: Callable[[Tensor, Tensor | None], nn.Module]) -> LanguageModel:
    """Copy a model in eval mode, without its output head and hooks. Share all weights except the weights of linear layers.

    Args:
        layer: Makes a layer for decoding from a weight and a bias.
    """
    replacements: dict[int, Any] = {id(parameter): parameter for parameter in model.parameters()}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            replacements[id(module)] = None if name == "out_head" else layer(module.weight, module.bias)
        # Torch would recompile a compiled block for each length of the text.
        replacements[id(module._compiled_call_impl)] = None
        # A profiler's hooks contain records that cannot be copied.
        replacements |= {id(hooks): OrderedDict() for hooks in (module._forward_pre_hooks, module._forward_hooks)}
    return copy.deepcopy(model, replacements).eval()


def _decoding_layer(weight: Tensor, bias: Tensor | None, *, dtype: torch.dtype, n_rows: int, code: CDLL | None) -> _DecodingLayer:
    """Prepare a linear layer for this number of rows. If C code computes the steps, the layer serves prompts only."""
    if dtype == torch.int8:
        rounded = Int8Linear(weight, bias, n_rows=n_rows)
        return rounded if code is None else NativeLinear(code, rounded)
    if code is None:
        return PackedLinear(weight, bias, dtype=dtype, n_rows=n_rows)
    return NativeLinear(code, PackedLinear(weight, bias, dtype=dtype, n_rows=None))


def _bf16_row_speedup(model: LanguageModel) -> float:
    """Return the speedup of bf16 over fp32 for the product of one row with the output head."""
    weight = model.head_weight

    def product(dtype: torch.dtype) -> Callable[[], Tensor]:
        code = load_step_code(model, dtype=dtype)
        layer = _decoding_layer(weight, None, dtype=dtype, n_rows=1, code=code)
        row = torch.zeros(1, weight.shape[1], dtype=dtype)
        return lambda: layer(row)

    kind = "" if load_step_code(model, dtype=torch.bfloat16) is None else ", in C"
    name = f"row of {weight.shape[1]} times {weight.shape[0]}, bf16 over fp32{kind}"
    return measured_once(name, lambda: speedup(product(torch.bfloat16), product(torch.float32)))
