"""Document boundaries: with data.respect_documents each document trains as if it were alone."""

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from gpt_pretrain.checkpoints.pretrained import load_pretrained
from gpt_pretrain.data.documents import DocumentBoundaries
from gpt_pretrain.errors import UserError
from gpt_pretrain.evaluation.loss import next_token_loss
from gpt_pretrain.model.kernels import attention, chunks, loss
from tests.conftest import tiny_model
from tests.helpers.made_shards import random_documents, stream, write_llmc, write_nanogpt, write_shards
from tests.helpers.training_runs import Train, checkpoint, same_weights

EOS = 96  # of tiny_model's vocabulary of 97


def block_of(*rows: Sequence[int]) -> np.ndarray:
    return np.array(rows, dtype=np.int64)


def test_documents_with_the_end_of_text_last_have_their_own_positions_and_targets() -> None:
    inputs, targets, positions = DocumentBoundaries(9).separate(block_of([5, 6, 9, 1, 9, 9, 2, 3]))
    assert inputs.tolist() == [[5, 6, 9, 1, 9, 9, 2]]
    assert targets.tolist() == [[6, 9, -100, 9, -100, -100, 3]]
    assert positions.tolist() == [[0, 1, 2, 0, 1, 0, 0]]


def test_documents_with_the_end_of_text_first_have_their_own_positions_and_targets() -> None:
    inputs, targets, positions = DocumentBoundaries(9, eos_first=True).separate(block_of([5, 6, 9, 1, 9, 9, 2, 3]))
    assert inputs.tolist() == [[5, 6, 9, 1, 9, 9, 2]]
    assert targets.tolist() == [[6, -100, 1, -100, -100, 2, 3]]
    assert positions.tolist() == [[0, 1, 0, 1, 0, 0, 1]]


def pieces(row: list[int], *, eos_first: bool) -> list[list[int]]:
    """Return the tokens of a window, including its last target, divided into documents."""
    cuts = [i + (not eos_first) for i, token in enumerate(row) if token == EOS]
    edges = [0, *cuts, len(row)]
    return [row[a:b] for a, b in pairwise(edges) if b > a]


def loss_of_separate_documents(model: torch.nn.Module, rows: list[list[int]], *, eos_first: bool) -> Tensor:
    """Return the mean loss when the model reads each document separately."""
    losses = []
    for piece in [piece for row in rows for piece in pieces(row, eos_first=eos_first) if len(piece) > 1]:
        ids = torch.tensor(piece)
        losses.append(F.cross_entropy(model(ids[None, :-1])[0], ids[1:], reduction="none"))
    return torch.cat(losses).mean()


@pytest.mark.parametrize("eos_first", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_losses_and_gradients_equal_those_of_separate_documents(eos_first: bool, tied: bool) -> None:
    model = tiny_model(drop_rate=0.0, tie_embeddings=tied).train()
    ids = stream(random_documents(30, seed=4, longest=9, vocab_size=96), EOS, eos_first=eos_first)
    rows = [ids[start : start + 17] for start in range(0, 102, 17)]
    batch = DocumentBoundaries(EOS, eos_first=eos_first).separate(block_of(*rows))
    assert (batch[1] == loss.IGNORED).sum() > 5
    together = next_token_loss(model, *batch)
    together.backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad()
    one_by_one = loss_of_separate_documents(model, rows, eos_first=eos_first)
    one_by_one.backward()
    torch.testing.assert_close(together, one_by_one)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, msg=name, rtol=1e-4, atol=1e-6)


def test_ignoring_document_boundaries_changes_the_loss() -> None:
    model = tiny_model(drop_rate=0.0)
    ids = stream(random_documents(30, seed=4, longest=9, vocab_size=96), EOS)[:17]
    inputs, targets, positions = DocumentBoundaries(EOS).separate(block_of(ids))
    with torch.no_grad():
        assert not torch.isclose(next_token_loss(model, inputs, targets, positions), next_token_loss(model, inputs, targets))


def test_a_window_with_one_document_equals_a_window_without_boundaries() -> None:
    model = tiny_model()
    ids = torch.randint(0, 96, (3, 16))
    positions = torch.arange(16).expand(3, 16)
    with torch.no_grad():
        torch.testing.assert_close(model.hidden_states(ids, positions=positions), model.hidden_states(ids))


def test_a_token_does_not_see_other_documents() -> None:
    model = tiny_model()
    ids = torch.tensor([[1, 2, EOS, 3, 4, 5]])
    _, _, positions = DocumentBoundaries(EOS).separate(np.array([[1, 2, EOS, 3, 4, 5, 6]]))
    other = torch.tensor([[7, 8, EOS, 3, 4, 5]])
    with torch.no_grad():
        a, b = (model.hidden_states(tokens, positions=positions) for tokens in (ids, other))
    assert torch.equal(a[:, 3:], b[:, 3:])
    assert not torch.isclose(a[:, :3], b[:, :3]).all()


@given(ignored=st.lists(st.booleans(), min_size=13, max_size=13), rows=st.integers(1, 14))
def test_ignored_targets_do_not_affect_loss_or_gradients(ignored: list[bool], rows: int) -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(13, 8, requires_grad=True), torch.randn(31, 8, requires_grad=True)
    targets = torch.randint(0, 31, (13,)).masked_fill(torch.tensor(ignored), -100)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(chunks.LOGITS_BYTES, "cpu", rows * 4 * 31)
        value = loss.linear_cross_entropy(hidden, weight, targets)
    found = torch.autograd.grad(value, (hidden, weight))
    if all(ignored):
        assert value.item() == 0
        assert all(not gradient.any() for gradient in found)
        return
    plain = F.cross_entropy(hidden @ weight.T, targets, ignore_index=-100)
    for one, other in zip((value, *found), (plain, *torch.autograd.grad(plain, (hidden, weight))), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_ignored_targets_work_in_half_precision(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(512, 8, requires_grad=True), torch.randn(50, 8, requires_grad=True)
    targets = torch.randint(0, 50, (512,)).masked_fill(torch.rand(512) < 0.3, -100)
    exact = torch.autograd.grad(F.cross_entropy(hidden @ weight.T, targets), (hidden, weight))
    with torch.autocast("cpu", dtype):
        rounded = torch.autograd.grad(loss.linear_cross_entropy(hidden, weight, targets), (hidden, weight))
    for fast, reference in zip(rounded, exact, strict=True):
        assert (fast - reference).norm() < 0.02 * reference.norm()


def test_attention_with_dropout_respects_the_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    """With nothing dropped, the block-wise attention equals PyTorch's, including gradients."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, 40, 8, requires_grad=True) for _ in range(3))
    starts = torch.tensor([[0] * 13 + [13] * 27, [0] * 30 + [30] * 10])
    positions = torch.arange(40)
    mask = ((positions <= positions[:, None]) & (positions >= starts[:, :, None]))[:, None]
    monkeypatch.setattr(chunks, "QUERY_BLOCK", 16)
    monkeypatch.setattr(attention, "keep_mask", lambda shape, rate, dtype: torch.ones(shape, dtype=dtype))
    weights = torch.randn(2, 3, 40, 8)
    fast = attention.causal_attention(q, k, v, mask=mask, drop_rate=0.5)
    plain = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    torch.testing.assert_close(fast, plain)
    for one, other in zip(*(torch.autograd.grad((out * weights).sum(), (q, k, v)) for out in (fast, plain)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


TEXT = "<|endoftext|>".join(
    f"Tale {n}. The keeper of Harrow Point went down to the water{' again' * (n % 7)}." for n in range(300)
)
OVERRIDES = ["data.respect_documents=true", "data.stride=32", "data.batch_size=16", "model.drop_rate=0.0", "eval_iter=1000"]


def expected_val_loss(run_dir: Path, ids: list[int]) -> tuple[float, float]:
    """Return nats per token and bits per byte of separate documents, computed independently from a run's saved weights."""
    model = load_pretrained(run_dir / "checkpoints" / "last.ckpt")
    nats, tokens, n_bytes = 0.0, 0, 0
    for start in range(0, len(ids) - 32, 32):
        row = ids[start : start + 33]
        edges = [0, *(i + 1 for i, token in enumerate(row) if token == 256), 33]
        for piece in (row[a:b] for a, b in pairwise(edges)):
            if len(piece) > 1:
                with torch.no_grad():
                    found = F.cross_entropy(model(torch.tensor([piece[:-1]]))[0], torch.tensor(piece[1:]), reduction="sum")
                nats, tokens = nats + found.item(), tokens + len(piece) - 1
                n_bytes += sum(token != 256 for token in piece[1:])
    return nats / tokens, nats / math.log(2) / n_bytes


def test_all_losses_of_a_text_respect_documents(train: Train, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    best = train("data=text", f"data.path='{tmp_path / 'text.txt'}'", *OVERRIDES, "trainer.max_steps=3", "logger=csv")
    ids = [
        token
        for n, part in enumerate(TEXT[int(0.9 * len(TEXT)) :].split("<|endoftext|>"))
        for token in ([256] * (n > 0) + list(part.encode()))
    ]
    loss_of_val, bits = expected_val_loss(tmp_path / "run", ids)
    assert best == pytest.approx(loss_of_val, abs=1e-5)
    last = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    row = dict(zip(last[0].split(","), last[-1].split(","), strict=True))
    assert float(row["val/bits_per_byte"]) == pytest.approx(bits, abs=1e-4)
    content = checkpoint(tmp_path / "run")
    assert content["eval_steps"][-1] == content["global_step"] - 1
    assert content["val_losses"][-1] == pytest.approx(loss_of_val, abs=1e-5)


def test_the_same_documents_train_alike_in_all_formats(train: Train, tmp_path: Path) -> None:

    documents = [list(part.encode()) for part in TEXT.split("<|endoftext|>")]
    ours = write_shards(tmp_path / "ours", train=documents[:200], val=documents[200:])
    nano = write_nanogpt(tmp_path / "nano", train=stream(documents[:200]), val=stream(documents[200:]))
    overrides = [
        "data=shards",
        *OVERRIDES,
        "trainer.max_steps=3",
        "trainer.limit_val_batches=2",
        "logger=none",
        "callbacks=minimal",
    ]
    for name, folder in (("a", ours), ("b", nano)):
        train(*overrides, f"data.path='{folder}'", run_dir=tmp_path / name)
    assert same_weights(checkpoint(tmp_path / "a"), checkpoint(tmp_path / "b"))
    train(*overrides, "data.respect_documents=false", f"data.path='{ours}'", run_dir=tmp_path / "c")
    assert not same_weights(checkpoint(tmp_path / "a"), checkpoint(tmp_path / "c"))


def test_documents_in_llm_c_shards_begin_with_the_end_of_text(train: Train, tmp_path: Path) -> None:
    documents = [list(part.encode()) for part in TEXT.split("<|endoftext|>")]
    folder = write_llmc(
        tmp_path / "c", train=[stream(documents[:250], eos_first=True)], val=stream(documents[250:], eos_first=True)
    )
    best = train("data=shards", f"data.path='{folder}'", *OVERRIDES, "trainer.max_steps=3", "logger=none")
    ids = stream(documents[250:], eos_first=True)
    model = load_pretrained(tmp_path / "run" / "checkpoints" / "last.ckpt")
    nats, tokens = 0.0, 0
    for start in range(0, len(ids) - 32, 32):
        row = ids[start : start + 33]
        edges = sorted({0, *(i for i, token in enumerate(row) if token == 256), 33})
        for piece in (row[a:b] for a, b in pairwise(edges)):
            if len(piece) > 1:
                with torch.no_grad():
                    nats += F.cross_entropy(model(torch.tensor([piece[:-1]]))[0], torch.tensor(piece[1:]), reduction="sum").item()
                tokens += len(piece) - 1
    assert best == pytest.approx(nats / tokens, abs=1e-5)


def test_a_resumed_run_cannot_change_respect_documents(train: Train, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    overrides = ["data=text", f"data.path='{tmp_path / 'text.txt'}'", "logger=none", "callbacks=minimal"]
    train(*overrides, "trainer.max_epochs=1")
    with pytest.raises(UserError, match="respect_documents was false, is true now"):
        train(*overrides, "data.respect_documents=true", f"resume='{tmp_path / 'run'}'")
