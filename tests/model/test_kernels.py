"""Each kernel equals the plain operation that it replaces."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils import clip_grad_norm_, get_total_norm
from torch.utils._python_dispatch import TorchDispatchMode

from gpt_pretrain.evaluation.loss import next_token_loss
from gpt_pretrain.model.kernels import attention, chunks, dropout, loss
from gpt_pretrain.training.optimization.optimizer import clip_gradients
from tests.conftest import tiny_model


class LargestTensor(TorchDispatchMode):
    """Record the number of elements of the largest tensor that any operation creates."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor):
            self.elements = max(self.elements, out.untyped_storage().nbytes() // out.itemsize)
        return out


@contextmanager
def chunk_bytes(n_bytes: int) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(chunks.LOGITS_BYTES, "cpu", n_bytes)
        yield


def head(n: int, d: int, v: int) -> tuple[Tensor, Tensor, Tensor]:
    hidden, weight = torch.randn(n, d, requires_grad=True), torch.randn(v, d, requires_grad=True)
    return hidden, weight, torch.randint(0, v, (n,))


def gradients(compute: Callable[[], Tensor], *inputs: Tensor) -> tuple[Tensor, ...]:
    value = compute()
    return value.detach(), *torch.autograd.grad(value, inputs)


@pytest.mark.parametrize("rows", [1, 3, 7, 100])
@pytest.mark.parametrize("vocab_size", [5, 64, 97])
def test_the_loss_and_its_gradients_equal_pytorch(rows: int, vocab_size: int) -> None:
    hidden, weight, targets = head(13, 8, vocab_size)
    with chunk_bytes(rows * 4 * vocab_size):
        fast = gradients(lambda: loss.linear_cross_entropy(hidden, weight, targets) * 3, hidden, weight)
    plain = gradients(lambda: F.cross_entropy(hidden @ weight.T, targets) * 3, hidden, weight)
    for actual, expected in zip(fast, plain, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("cap", [None, 3.0])
@pytest.mark.parametrize("block_bytes", [1, 4 * 97 * 5, 1 << 21])
def test_blocks_of_the_loss_and_the_loss_without_gradients_equal_pytorch(
    block_bytes: int, cap: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden, weight, targets = head(13, 8, 97)
    targets[[2, 5]] = loss.IGNORED
    monkeypatch.setattr(chunks, "BLOCK_BYTES", block_bytes)

    def plain() -> Tensor:
        logits = hidden @ weight.T
        return F.cross_entropy(logits if cap is None else cap * torch.tanh(logits / cap), targets)

    with chunk_bytes(7 * 4 * 97):
        fast = gradients(lambda: loss.linear_cross_entropy(hidden, weight, targets, cap=cap), hidden, weight)
        with torch.no_grad():
            alone = loss.linear_cross_entropy(hidden, weight, targets, cap=cap)
            assert loss.linear_cross_entropy(hidden * torch.nan, weight, targets, cap=cap).isnan()
            assert loss.linear_cross_entropy(hidden, weight, torch.full((13,), loss.IGNORED), cap=cap) == 0
    for actual, expected in zip(fast, gradients(plain, hidden, weight), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(alone, plain().detach(), rtol=1e-6, atol=1e-6)


def test_logits_of_any_size_are_bent_as_by_tanh() -> None:
    x = torch.tensor([-math.inf, -1e30, -700.0, -20.0, -1e-3, 0.0, 1e-7, 0.3, 14.0, 1e4, math.inf])
    torch.testing.assert_close(loss._tanh_of_ratio(x.clone(), 15.0), torch.tanh(x / 15), rtol=1e-6, atol=2e-7)
    assert loss._tanh_of_ratio(torch.tensor([math.nan]), 15.0).isnan().all()


def test_capped_logits_of_any_size_have_the_loss_of_tanh() -> None:
    logits = torch.tensor([[-math.inf, -1e30, -20.0, 0.3], [1e4, math.inf, 14.0, 1e-7], [-1e4, -1e4, -1e4, -1e4]])
    targets = torch.tensor([3, 0, 2])
    expected = F.cross_entropy(15 * torch.tanh(logits.double() / 15), targets, reduction="sum")

    torch.testing.assert_close(loss._loss_sum(logits.clone(), targets, 15.0).double(), expected, rtol=1e-6, atol=2e-6)
    assert loss._loss_sum(torch.full((1, 3), math.nan), torch.tensor([0]), 15.0).isnan()


def test_powers_of_e_equal_those_of_pytorch_down_to_the_smallest() -> None:
    x = torch.tensor([-math.inf, -1e38, -200.0, -80.0, -20.3, -1.0, -1e-7, 0.0])
    torch.testing.assert_close(loss._exp_in_place(x.clone()), torch.exp(x), rtol=1e-5, atol=0)
    assert loss._exp_in_place(torch.tensor([math.nan])).isnan().all()


def test_the_loss_survives_large_logits_and_propagates_nan() -> None:
    hidden, weight, targets = head(4, 8, 97)
    big = (hidden * 1e4).detach()
    torch.testing.assert_close(loss.linear_cross_entropy(big, weight, targets), F.cross_entropy(big @ weight.T, targets))
    assert loss.linear_cross_entropy(hidden * torch.nan, weight, targets).isnan()


def test_the_bf16_loss_differs_from_fp32_only_by_rounding() -> None:
    hidden, weight, targets = head(64, 32, 1000)
    exact = gradients(lambda: F.cross_entropy(hidden @ weight.T, targets), hidden, weight)
    with torch.autocast("cpu", torch.bfloat16), chunk_bytes(17 * 4 * 1000):
        rounded = gradients(lambda: loss.linear_cross_entropy(hidden, weight, targets), hidden, weight)
        plain = gradients(lambda: F.cross_entropy(F.linear(hidden, weight), targets), hidden, weight)
    assert rounded[0].dtype == torch.float32
    for fast, other, reference in zip(rounded, plain, exact, strict=True):
        assert (fast - reference).norm() <= 1.5 * (other - reference).norm() + 1e-3 * reference.norm()


@pytest.mark.parametrize(("dtype", "error"), [(torch.bfloat16, 0.02), (torch.float16, 0.003)])
def test_gradients_of_many_positions_do_not_underflow_in_half_precision(dtype: torch.dtype, error: float) -> None:
    hidden, weight, targets = head(8192, 8, 500)
    exact = gradients(lambda: F.cross_entropy(hidden @ weight.T, targets), hidden, weight)
    with torch.autocast("cpu", dtype):
        rounded = gradients(lambda: loss.linear_cross_entropy(hidden, weight, targets), hidden, weight)
    for fast, reference in zip(rounded, exact, strict=True):
        assert fast.dtype == torch.float32
        assert (fast - reference).norm() < error * reference.norm()


def test_large_sums_of_gradients_do_not_overflow_in_fp16() -> None:
    hidden, weight, targets = torch.full((4096, 16), 20.0, requires_grad=True), torch.zeros(50, 16, requires_grad=True), 7
    with torch.autocast("cpu", torch.float16):
        fast = gradients(lambda: loss.linear_cross_entropy(hidden, weight, torch.full((4096,), targets)), hidden, weight)
    plain = gradients(lambda: F.cross_entropy(hidden @ weight.T, torch.full((4096,), targets)), hidden, weight)
    torch.testing.assert_close(fast[2], plain[2], rtol=1e-2, atol=1e-3)


def test_memory_that_held_nan_does_not_reach_the_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *shape, **settings: empty(*shape, **settings).fill_(math.nan))
    hidden, weight, targets = head(100, 8, 50)
    with torch.autocast("cpu", torch.bfloat16):
        found = gradients(lambda: loss.linear_cross_entropy(hidden, weight, targets), hidden, weight)
    assert all(torch.isfinite(one).all() for one in found)


def test_gradients_of_bf16_weights_are_summed_in_fp32() -> None:
    hidden, weight, targets = (part.detach() for part in head(2048, 16, 50))
    exact = gradients_of(hidden, weight, targets)
    half = [part.bfloat16() for part in (hidden, weight)]
    with chunk_bytes(16 * 4 * 50):
        many = gradients_of(*half, targets)
    assert many.dtype == torch.bfloat16
    assert (many.float() - exact).norm() < 0.006 * exact.norm(), "the error grows over 128 chunks"


def gradients_of(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    weight = weight.clone().requires_grad_()
    return gradients(lambda: loss.linear_cross_entropy(hidden, weight, targets), weight)[1]


def test_a_second_backward_pass_is_refused() -> None:
    hidden, weight, targets = head(3, 4, 5)
    value = loss.linear_cross_entropy(hidden, weight, targets)
    value.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="a single backward pass"):
        value.backward()


@pytest.mark.parametrize("training", [True, False])
def test_the_logits_of_all_positions_never_exist_together(training: bool) -> None:
    hidden, weight, targets = head(256, 4, 500)
    with chunk_bytes(64 * 4 * 500), torch.set_grad_enabled(training), LargestTensor() as largest:
        value = loss.linear_cross_entropy(hidden, weight, targets)
        if training:
            value.backward()
    assert largest.elements <= 64 * 512, "a chunk has 64 rows and 500 columns, padded to 512"
    with LargestTensor() as largest:
        F.cross_entropy(hidden @ weight.T, targets)
    assert largest.elements >= 256 * 500, "the plain loss holds all logits, so the measurement works"


@pytest.mark.parametrize(("n", "rows"), [(512, 256), (1, 1), (333, 333), (334, 167)])
def test_chunks_have_equal_sizes(n: int, rows: int) -> None:
    assert chunks.chunk_rows(n, 50257, "cpu") == rows


@pytest.mark.parametrize("n_tokens", [1, 5, chunks.QUERY_BLOCK, chunks.QUERY_BLOCK + 1, 2 * chunks.QUERY_BLOCK + 3])
def test_attention_with_dropout_equals_plain_attention_with_the_same_masks(
    n_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Tensor] = []

    def recording(shape: tuple[int, ...], drop_rate: float, *, dtype: torch.dtype) -> Tensor:
        drawn.append(dropout.keep_mask(shape, drop_rate, dtype=dtype))
        return drawn[-1]

    monkeypatch.setattr(attention, "keep_mask", recording)
    queries, keys, values = (torch.randn(2, 3, n_tokens, 4, requires_grad=True) for _ in range(3))
    weighted = torch.randn(2, 3, n_tokens, 4)
    fast = gradients(
        lambda: (attention.causal_attention(queries, keys, values, drop_rate=0.3) * weighted).sum(), queries, keys, values
    )
    mask = torch.zeros(6, n_tokens, n_tokens)
    for start, block in zip(range(0, n_tokens, chunks.QUERY_BLOCK), drawn, strict=True):
        mask[:, start : start + block.shape[1], : block.shape[2]] = block

    def plain() -> Tensor:
        scores = (queries @ keys.transpose(2, 3) / 2).masked_fill(torch.ones(n_tokens, n_tokens).triu(1).bool(), -torch.inf)
        return ((torch.softmax(scores, dim=-1) * mask.view(2, 3, n_tokens, n_tokens)) @ values * weighted).sum()

    for actual, expected in zip(fast, gradients(plain, queries, keys, values), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_that_are_computed_again_have_the_same_dropout(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = [torch.randn(2, 3, chunks.QUERY_BLOCK + 3, 4, dtype=dtype, requires_grad=True) for _ in range(3)]

    def results(kept_queries: int) -> tuple[list[Tensor], int]:
        monkeypatch.setattr(chunks, "KEPT_QUERIES", kept_queries)
        saved: list[int] = []
        torch.manual_seed(1)
        with torch.autograd.graph.saved_tensors_hooks(lambda one: saved.append(one.numel()) or one, lambda one: one):
            context = attention.causal_attention(*inputs, drop_rate=0.3)
        later = torch.rand(1)  # another layer draws numbers between the two passes
        found = torch.autograd.grad((context * torch.linspace(-1, 1, 4)).sum(), inputs)
        return [context, later, *found, torch.rand(1)], sum(saved)

    (kept, most), (again, least) = results(chunks.QUERY_BLOCK + 3), results(chunks.QUERY_BLOCK + 2)
    assert all(torch.equal(one, other) for one, other in zip(kept, again, strict=True))
    assert least < most / 4


@pytest.mark.parametrize("n_tokens", [2, 5, chunks.QUERY_BLOCK, chunks.QUERY_BLOCK + 1, 2 * chunks.QUERY_BLOCK + 3])
@pytest.mark.parametrize("masked", ["no mask", "one mask", "a mask for each text"])
@pytest.mark.parametrize("autocast", [False, True])
def test_attention_in_bf16_is_as_close_to_plain_attention_as_the_fused_kernel(n_tokens: int, masked: str, autocast: bool) -> None:
    torch.manual_seed(0)  # Of so few numbers, some draws have larger roundings than others.
    exact = [torch.randn(2, n_tokens, 3, 16).bfloat16().float().requires_grad_() for _ in range(3)]
    narrow = [one.detach().bfloat16().requires_grad_() for one in exact]
    weighted = torch.randn(2, 3, n_tokens, 16)
    seen = torch.ones(n_tokens, n_tokens).tril().bool()
    if masked != "no mask":
        seen[n_tokens // 2 :, : n_tokens // 2] = False  # another document
    mask = {"no mask": None, "one mask": seen, "a mask for each text": seen.expand(2, 1, -1, -1)}[masked]

    def fused(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(queries, keys, values, attn_mask=seen)

    def ours(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            result = attention.causal_attention(queries, keys, values, mask=mask)
        assert result.grad_fn is not None and "BlockAttention" in result.grad_fn.name()
        return result

    def results(compute: Callable[..., Tensor], inputs: list[Tensor]) -> list[Tensor]:
        context = compute(*(one.transpose(1, 2) for one in inputs))
        return [context.detach().float(), *(one.float() for one in torch.autograd.grad((context * weighted).sum(), inputs))]

    for plain, kernel, actual in zip(results(fused, exact), results(fused, narrow), results(ours, narrow), strict=True):
        assert (actual - plain).square().mean() <= 4 * (kernel - plain).square().mean() + 1e-7


@pytest.mark.parametrize("drop_rate", [0.0001, 0.1, 0.5, 0.99999])
def test_a_mask_drops_its_share_and_preserves_the_mean(drop_rate: float) -> None:
    mask = dropout.keep_mask((1000, 1001), drop_rate, dtype=torch.float32)
    share = float((mask == 0).double().mean())
    assert abs(share - drop_rate) < 4 * (drop_rate * (1 - drop_rate) / mask.numel()) ** 0.5 + 1 / dropout.LEVELS
    assert len(mask.unique()) <= 2
    if drop_rate < 0.9:
        assert float(mask.double().mean()) == pytest.approx(1, abs=0.01)
    repeated = (mask[:-1] == mask[1:]).double().mean()  # Neighboring rows are independent.
    assert float(repeated) == pytest.approx(1 - 2 * share * (1 - share), abs=0.003)


def test_dropout_depends_on_the_generator_and_is_off_in_eval_mode() -> None:
    layer, x = dropout.Dropout(0.5), torch.randn(50, 7)
    torch.manual_seed(5)
    first = layer(x)
    second = layer(x)
    torch.manual_seed(5)
    assert torch.equal(layer(x), first)
    assert not torch.equal(first, second)
    assert torch.equal(layer.eval()(x), x)


@pytest.mark.parametrize("max_norm", [0.1, 100.0])
def test_clipping_in_the_optimizer_equals_clipping_before_it(max_norm: float) -> None:
    ends = []
    for within in (True, False):
        model = tiny_model(drop_rate=0.0)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=within, eps=1e-3)
        for step in range(3):
            torch.manual_seed(step)
            F.cross_entropy(model(torch.randint(0, 97, (2, 8))).flatten(0, 1), torch.randint(0, 97, (16,))).backward()
            if within:
                norm = get_total_norm([parameter.grad for parameter in model.parameters() if parameter.grad is not None])
                clip_gradients(optimizer, norm, max_norm=max_norm)
            else:
                clip_grad_norm_(model.parameters(), max_norm)
            optimizer.step()
            optimizer.zero_grad()
        ends.append(model.state_dict())
    for name in ends[0]:
        torch.testing.assert_close(ends[0][name], ends[1][name], rtol=1e-5, atol=1e-6)


def test_a_tied_embedding_adds_its_rows_to_the_gradient_of_the_head() -> None:
    model, token_ids, targets = tiny_model(), torch.tensor([[1, 5, 5, 96]]), torch.tensor([[5, 5, 96, 0]])
    ends = []
    for sparse in (False, True):
        model.tok_emb.sparse = sparse
        model.zero_grad()
        (lookup_gradient,) = torch.autograd.grad(model.tok_emb(token_ids).sum(), [model.tok_emb.weight])
        assert lookup_gradient.is_sparse is sparse
        next_token_loss(model, token_ids, targets).backward()
        assert model.tok_emb.weight.grad is not None
        assert not model.tok_emb.weight.grad.is_sparse
        ends.append(model.tok_emb.weight.grad.clone())
    torch.testing.assert_close(*ends)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("group", [1, 3])
@pytest.mark.parametrize("n_keys", [1, 2, 37])
def test_attention_of_a_single_query_equals_softmax_attention(dtype: torch.dtype, group: int, n_keys: int) -> None:
    queries, keys, values = (torch.randn(2, heads, T, 8) for heads, T in ((2 * group, 1), (2, n_keys + 5), (2, n_keys + 5)))
    queries, keys, values = (one.to(dtype) for one in (queries, keys[:, :, :n_keys], values[:, :, :n_keys]))
    k, v = (one.double().repeat_interleave(group, dim=1) for one in (keys, values))
    expected = torch.softmax(queries.double() @ k.transpose(2, 3) / math.sqrt(8), dim=-1) @ v
    context = attention.single_query_attention(queries, keys, values)
    assert context.dtype == dtype
    torch.testing.assert_close(context, expected.to(dtype))
