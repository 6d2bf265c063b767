"""A model made ready to decode: one token at a time, each of which reads every weight once.

Shapes: B rows, D emb_dim, V vocab_size.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from gpt_pretrain.model.gpt2 import GPTModel
from gpt_pretrain.model.kernels.matmul_speed import best_seconds
from gpt_pretrain.model.kernels.packed_linear import PackedLinear
from gpt_pretrain.model.kv_cache import KVCache, StaticKVCache

TOKEN_GAIN = 1.2  # how much faster bf16 must decode to be worth its rounding
PRECISIONS = {"32-true": torch.float32, "bf16-mixed": torch.bfloat16}  # Lightning's names, and the dtype of matrix products
GRAPH_MIN_TOKENS = 32  # fewer are done before a CUDA graph is recorded


class DecodingModel:
    """A model for reading alone, whose matrices stand in memory in the order in which decoding reads them.

    Args:
        model: whose weights it has; those that need no other layout are shared, and later changes of the others are not seen.
        dtype: in which matrix products are made, and keys and values kept; None is the model's own. All else is as in the model.
        batch_size: rows to decode at a time, B; others work too.
    """

    def __init__(self, model: GPTModel, *, dtype: torch.dtype | None = None, batch_size: int = 1) -> None:
        self.config = model.config
        self.device = model.tok_emb.weight.device
        self.dtype = model.tok_emb.weight.dtype if dtype is None else dtype
        self._blocks = _packed(model, dtype=self.dtype, n_rows=batch_size)
        self._head = PackedLinear(model.head_weight, None, dtype=self.dtype, n_rows=batch_size)

    def next_logits(self, token_ids: Tensor, cache: KVCache | None = None) -> Tensor:
        """Logits after the last of token_ids.

        Args:
            token_ids: int64, (B, T).
            cache: the positions read before these, to which these are added.

        Returns:
            (B, V), fp32 or wider.
        """
        logits: Tensor = self._head(self._blocks.hidden_states(token_ids, cache=cache)[:, -1])
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def new_cache(self, batch_size: int, *, capacity: int) -> KVCache:
        """An empty cache for so many rows and positions, as far as the context goes."""
        return KVCache(self.config, batch_size, capacity=capacity, device=self.device, dtype=self.dtype)


def pick_decoding_precision(wanted: str, model: GPTModel) -> tuple[str, str]:
    """One of `PRECISIONS` to decode in, and why.

    "auto" takes bf16 where that is clearly faster: on a GPU that has it, and on a CPU if it is for this model's output
    head, which is measured in a moment.
    """
    if wanted != "auto":
        return wanted, "as asked"
    weight = model.head_weight
    if weight.device.type == "cuda":
        has = torch.cuda.is_bf16_supported(including_emulation=False)
        return ("bf16-mixed", "this GPU computes in bf16") if has else ("32-true", "this GPU has no bf16")
    if weight.device.type != "cpu":
        return "32-true", f"the safe choice on {weight.device.type}"
    bf16, fp32 = _row_seconds(weight)
    reason = f"a token in bf16 takes {bf16 / fp32:.2f} of fp32's time on this CPU"
    return ("bf16-mixed" if bf16 * TOKEN_GAIN <= fp32 else "32-true"), reason


def graphed_step(model: DecodingModel, cache: KVCache) -> Callable[[Tensor], Tensor]:
    """One step of decoding on CUDA as a graph: recorded now, played again for each token, without a kernel launched by Python.

    Returns:
        A function from token ids, int64, (B, 1), to the logits after them, (B, V), which the next call overwrites.
    """
    static = StaticKVCache(cache)
    token_ids = torch.zeros(cache.keys.shape[1], 1, dtype=torch.int64, device=model.device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.device(model.device):
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):  # what it writes at the next position is written again by the first real step
                model.next_logits(token_ids, static)
        torch.cuda.current_stream().wait_stream(side)
        with torch.cuda.graph(graph):
            logits = model.next_logits(token_ids, static)

    def step(new: Tensor) -> Tensor:
        token_ids.copy_(new)
        with torch.cuda.device(model.device):
            graph.replay()
        static.advance()
        cache.length = static.length
        return logits

    return step


def _packed(model: GPTModel, *, dtype: torch.dtype, n_rows: int) -> GPTModel:
    """A copy of a model in eval mode, without output head, that shares all weights but those of the linear layers."""
    instead: dict[int, Any] = {id(parameter): parameter for parameter in model.parameters()}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            head = name == "out_head"
            instead[id(module)] = None if head else PackedLinear(module.weight, module.bias, dtype=dtype, n_rows=n_rows)
        instead[id(module._compiled_call_impl)] = None  # each length of text would be compiled anew
    return copy.deepcopy(model, instead).eval()


def _row_seconds(weight: Tensor) -> tuple[float, float]:
    """How long one row's product with a weight takes in bf16, and in fp32."""

    def layer(dtype: torch.dtype) -> Callable[[], Tensor]:
        packed, row = PackedLinear(weight, None, dtype=dtype, n_rows=1), torch.zeros(1, weight.shape[1], dtype=dtype)
        return lambda: packed(row)

    bf16, fp32 = best_seconds([layer(torch.bfloat16), layer(torch.float32)])
    return bf16, fp32
