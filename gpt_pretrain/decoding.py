"""A model made ready to decode: one token at a time, each of which reads every weight once.

Shapes: B rows, D emb_dim, V vocab_size.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from gpt_pretrain.kernels.packed_linear import PackedLinear
from gpt_pretrain.kernels.products import best_seconds
from gpt_pretrain.kv_cache import KVCache, StaticKVCache
from gpt_pretrain.model import GPTModel

BF16_GAIN = 1.2  # how much faster bf16 must decode to be worth its rounding
PRECISIONS = {"32-true": torch.float32, "bf16-mixed": torch.bfloat16}  # Lightning's names, and the dtype of matrix products
GRAPH_MIN_TOKENS = 32  # fewer are done before a CUDA graph is recorded


class DecodingModel(GPTModel):
    """A GPTModel whose matrices stand in memory in the order in which decoding reads them; made by `for_decoding`.

    Attributes:
        dtype: in which matrix products are made, and keys and values kept; everything else is as in the model.
    """

    dtype: torch.dtype
    packed_head: PackedLinear

    def logits(self, hidden: Tensor) -> Tensor:
        """The output head: (..., D) -> (..., V)."""
        out: Tensor = self.packed_head(hidden)
        return out.float()


def for_decoding(model: GPTModel, *, dtype: torch.dtype | None = None, batch_size: int = 1) -> DecodingModel:
    """A twin of a model that decodes faster, in eval mode; where the layout need not change, it has the model's own weights.

    Args:
        model: what is decoded; later changes of its weights need a new twin.
        dtype: of matrix products; None is the model's own.
        batch_size: rows to decode at a time, B; others work too.
    """
    own = model.tok_emb.weight.dtype
    dtype = own if dtype is None else dtype
    twin = _twin(model, dtype=dtype, batch_size=batch_size)
    twin.__class__ = DecodingModel
    assert isinstance(twin, DecodingModel)
    twin.dtype = dtype
    twin.packed_head = PackedLinear(model.head_weight, None, dtype=dtype, n_rows=batch_size)
    return twin.eval()


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
    seconds = [_row_seconds(weight, dtype) for dtype in (torch.bfloat16, torch.float32)]
    reason = f"a token in bf16 takes {seconds[0] / seconds[1]:.2f} of fp32's time on this CPU"
    return ("bf16-mixed" if seconds[1] >= BF16_GAIN * seconds[0] else "32-true"), reason


def graphed_step(model: GPTModel, cache: KVCache) -> Callable[[Tensor], Tensor]:
    """One step of decoding on CUDA as a graph: recorded now, played again for each token, without a kernel launched by Python.

    Returns:
        A function from token ids, int64, (B, 1), to the logits after them, (B, V), which the next call overwrites.
    """
    static = StaticKVCache(cache)
    token_ids = torch.zeros(cache.keys.shape[1], 1, dtype=torch.int64, device=cache.keys.device)

    def compute() -> Tensor:
        return model.logits(model.hidden_states(token_ids, static)[:, -1])

    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):  # what it writes at the next position is written again by the first real step
            compute()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        logits = compute()

    def step(new: Tensor) -> Tensor:
        token_ids.copy_(new)
        graph.replay()
        static.advance()
        cache.length = static.length
        return logits

    return step


def _twin(module: nn.Module, *, dtype: torch.dtype, batch_size: int) -> nn.Module:
    """A copy of a module that shares all parameters but those of its linear layers, which are packed."""
    if isinstance(module, nn.Linear):
        return PackedLinear(module.weight, module.bias, dtype=dtype, n_rows=batch_size)
    twin = copy.copy(module)
    twin._compiled_call_impl = None  # each length of text would be compiled anew
    twin._modules = {
        name: None if child is None else _twin(child, dtype=dtype, batch_size=batch_size)
        for name, child in module._modules.items()
        if name != "out_head"
    }
    return twin


def _row_seconds(weight: Tensor, dtype: torch.dtype) -> float:
    """How long one row's product with a weight takes."""
    layer, row = PackedLinear(weight, None, dtype=dtype, n_rows=1), torch.zeros(1, weight.shape[1], dtype=dtype)
    return best_seconds(lambda: layer(row))
