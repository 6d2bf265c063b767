"""Each kernel equals the plain operation that it replaces."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils import clip_grad_norm_, get_total_norm

from gpt_pretrain.evaluation.loss import next_token_loss
from gpt_pretrain.model.kernels import attention, chunks, dropout
from gpt_pretrain.training.optimization.optimizer import clip_gradients
from tests.conftest import tiny_model
from tests.helpers.gradients import gradients


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
