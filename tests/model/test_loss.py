"""The next-token loss and its gradients equal PyTorch's, in C and by PyTorch's operators."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from gpt_pretrain.model.kernels import chunks, loss, native_loss
from tests.helpers.gradients import gradients


@pytest.fixture(params=["C", "PyTorch"], autouse=True)
def code(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Compute the loss in C if this machine can compile it, or by PyTorch's operators."""
    if request.param == "PyTorch":
        monkeypatch.setattr(native_loss, "load_native_code", lambda source: None)
    return str(request.param)


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


@pytest.mark.parametrize("vocab_size", [1, 5, 16, 17, 257, 2500])
@pytest.mark.parametrize("cap", [None, 15.0])
@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 3e-7), (torch.bfloat16, 4e-3)])
def test_each_row_s_loss_and_gradient_equal_those_in_double_precision(
    vocab_size: int, cap: float | None, dtype: torch.dtype, error: float
) -> None:
    buffer = loss._logits_buffer(9, vocab_size, dtype=dtype, device=torch.device("cpu"))
    logits = buffer[:, :vocab_size].copy_(8 * torch.randn(9, vocab_size)).clone()
    if vocab_size > 1:
        logits[1, 0] = buffer[1, 0] = -math.inf
    targets = torch.full((9,), vocab_size - 1)
    targets[4] = loss.IGNORED
    weights = torch.where(targets == loss.IGNORED, 0.0, torch.linspace(0.1, 1, 9))

    exact = logits.double().requires_grad_()
    losses = F.cross_entropy(exact if cap is None else cap * torch.tanh(exact / cap), targets, reduction="none")
    (expected,) = torch.autograd.grad((losses * weights).sum(), exact)
    total = loss._softmax_gradient(buffer, vocab_size, targets, weights, cap)

    torch.testing.assert_close(total.double(), losses.sum().detach(), rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(buffer[:, :vocab_size].double(), expected, rtol=10 * error, atol=error)
    assert (buffer[4] == 0).all(), "a row without a target has no gradient"
    assert (buffer[:, vocab_size:] == 0).all()


def test_threads_do_not_change_the_result() -> None:
    hidden, weight, targets = head(64, 32, 3000)
    before = torch.get_num_threads()
    found = []
    try:
        for n_threads in (1, 2, 5):
            torch.set_num_threads(n_threads)
            logits = hidden.detach() @ weight.detach().T
            found.append((loss._softmax_gradient(logits, 3000, targets, torch.ones(64), None), logits))
    finally:
        torch.set_num_threads(before)
    for total, gradient in found[1:]:
        torch.testing.assert_close(total, found[0][0], rtol=1e-6, atol=0)
        torch.testing.assert_close(gradient, found[0][1], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_pytorchs_default_dtype_does_not_change_the_loss(dtype: torch.dtype) -> None:
    parts = [part.bfloat16().detach().requires_grad_() for part in head(64, 8, 97)[:2]]
    targets = torch.randint(0, 97, (64,))
    expected = gradients(lambda: loss.linear_cross_entropy(*parts, targets), *parts)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)  # as Lightning does in a step with trainer.precision=bf16-true
    try:
        found = gradients(lambda: loss.linear_cross_entropy(*parts, targets), *parts)
        with torch.no_grad():
            alone = loss.linear_cross_entropy(*parts, targets)
    finally:
        torch.set_default_dtype(before)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    torch.testing.assert_close(alone, expected[0])


def test_targets_may_be_int32_and_need_the_number_of_the_hidden_states() -> None:
    hidden, weight, targets = head(13, 8, 97)
    assert loss.linear_cross_entropy(hidden, weight, targets.int()) == loss.linear_cross_entropy(hidden, weight, targets)
    with pytest.raises((AssertionError, RuntimeError)):
        loss.linear_cross_entropy(hidden, weight, targets[:5])


@pytest.mark.parametrize("target", [97, 10**12])
def test_a_target_outside_of_the_vocabulary_is_an_error(target: int) -> None:
    hidden, weight, targets = head(4, 8, 97)
    targets[2] = target
    with pytest.raises((IndexError, RuntimeError)):
        loss.linear_cross_entropy(hidden, weight, targets)
    with torch.no_grad(), pytest.raises((IndexError, RuntimeError)):
        loss.linear_cross_entropy(hidden, weight, targets)
