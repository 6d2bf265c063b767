"""The mathematics of an optimizer step: its gradient and its logged loss are means over all counted tokens of the step.

What the start of a run says about its steps is what happens.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from gpt_pretrain.config.conversion import to_settings
from gpt_pretrain.config.schema import TrainSettings
from gpt_pretrain.data.documents import DocumentBoundaries
from gpt_pretrain.training import run_length, summary
from gpt_pretrain.training.callbacks.metrics import TrainMetrics
from gpt_pretrain.training.steps.step_mean import StepMean
from tests.helpers.crash_harness import differences
from tests.helpers.fork_server import ForkServer
from tests.helpers.made_shards import write_shards
from tests.helpers.plans import plan_run
from tests.helpers.training_runs import Printed, Train, checkpoint, machine_going_away, rows, spoilt

# One epoch without dropout and clipping. With so low a learning rate the weights stay as they are, so that the gradients of two
# runs can be compared at any step.
STILL = [
    *("model=tiny", "model.emb_dim=32", "model.n_layers=1", "model.n_heads=2", "model.context_length=32", "model.drop_rate=0"),
    *("tokenizer=byte", "trainer.accelerator=cpu", "trainer.precision=32-true", "trainer.max_epochs=1", "optimizer.lr=1e-12"),
    *("trainer.gradient_clip_val=null", "trainer.log_every_n_steps=1", "callbacks=minimal", "logger=csv", "compile=false"),
    *("eval_freq=1000", "eval_iter=1", "start_context=A"),
]


def logged(run_dir: Path) -> list[tuple[float, float]]:
    """Return the loss and the norm of the gradient of each step of a run."""
    return [(float(row["train/loss"]), float(row["grad_norm"])) for row in rows(run_dir) if row["grad_norm"]]


@pytest.fixture
def steps(train: Train, tmp_path: Path) -> Callable[..., list[tuple[float, float]]]:
    """Train with these overrides and return the loss and the norm of the gradient of each step."""

    def trained(*overrides: str) -> list[tuple[float, float]]:
        folder = tmp_path / f"run{len(list(tmp_path.glob('run*')))}"
        train(*overrides, base=STILL, run_dir=folder)
        return logged(folder)

    return trained


@pytest.fixture
def uneven(tmp_path: Path) -> list[str]:
    """Overrides for a corpus whose windows count between 1 and 32 tokens each when documents are kept apart."""
    documents = [[(number * 31 + n * 7) % 256 for n in range(60 if number % 4 else 2)] for number in range(60)]
    short = [[number % 251] for number in range(900)]  # every other target begins another document
    mixed = [one for number, long in enumerate(documents) for one in (long, *short[number * 15 : number * 15 + 15])]
    write_shards(tmp_path / "corpus", train=mixed[40:], val=mixed[:40])
    return ["data=shards", f"data.path='{tmp_path / 'corpus'}'", "data.respect_documents=true", "data.stride=32"]


@pytest.fixture
def text(tmp_path: Path) -> list[str]:
    """Overrides for a text of 11 training windows."""
    (tmp_path / "text.txt").write_text("".join(chr(97 + n * n % 23) for n in range(400)))
    return [f"data.path='{tmp_path / 'text.txt'}'", "data.train_ratio=0.9"]


@pytest.mark.parametrize(("batches", "full"), [(5, 8), (1, 2), (11, 100), (2, 3)])
def test_accumulating_more_batches_than_an_epoch_has_is_the_same_as_all_of_them(
    steps: Callable[..., list[tuple[float, float]]], text: list[str], batches: int, full: int
) -> None:
    overrides = [*text, "data.batch_size=1", f"trainer.limit_train_batches={batches}"]
    ((loss, norm),) = steps(*overrides, f"trainer.accumulate_grad_batches={batches}")
    assert steps(*overrides, f"trainer.accumulate_grad_batches={full}") == [(pytest.approx(loss), pytest.approx(norm, rel=1e-5))]


def test_the_last_step_of_an_epoch_has_the_gradient_of_its_own_batches(
    steps: Callable[..., list[tuple[float, float]]], text: list[str]
) -> None:
    """The eleventh batch is a step by itself when five batches are accumulated."""
    alone = steps(*text, "data.batch_size=1")
    assert len(alone) == 11
    *_, (loss, norm) = steps(*text, "data.batch_size=1", "trainer.accumulate_grad_batches=5")
    assert (loss, norm) == pytest.approx(alone[-1], rel=1e-5)


def test_one_gradient_whatever_the_number_of_batches(steps: Callable[..., list[tuple[float, float]]], uneven: list[str]) -> None:
    expected = steps(*uneven, "data.batch_size=8", "trainer.max_steps=6")
    for size, batches in ((4, 2), (2, 4), (1, 8)):
        overrides = [*uneven, f"data.batch_size={size}", f"trainer.accumulate_grad_batches={batches}", "trainer.max_steps=6"]
        got = steps(*overrides)
        assert got == [(pytest.approx(loss, rel=1e-6), pytest.approx(norm, rel=2e-5)) for loss, norm in expected]


@pytest.mark.parametrize("clip", ["null", "0.5", "1e3"])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_the_weights_after_some_steps_do_not_depend_on_the_number_of_batches(
    train: Train, tmp_path: Path, uneven: list[str], clip: str, precision: str
) -> None:
    overrides = [*uneven, f"trainer.gradient_clip_val={clip}", f"trainer.precision={precision}", "trainer.max_steps=4"]
    overrides += ["optimizer.lr=1e-2", "optimizer.eps=1e-3"]
    for size, batches in ((8, 1), (1, 8)):
        counts = [f"data.batch_size={size}", f"trainer.accumulate_grad_batches={batches}"]
        train(*overrides, *counts, base=STILL, run_dir=tmp_path / f"run-{size}")
    one, eight = (checkpoint(tmp_path / f"run-{size}")["state_dict"] for size in (8, 1))
    tolerance = 1e-5 if precision == "32-true" else 1e-2
    for name, weights in one.items():
        torch.testing.assert_close(weights, eight[name], rtol=0, atol=tolerance)


@pytest.mark.parametrize("kind", ["tiny", "modern_tiny"])
def test_the_gradient_is_that_of_a_naive_mean_over_all_tokens(train: Train, tmp_path: Path, uneven: list[str], kind: str) -> None:
    """The loss and the gradient of one step of four batches are computed anew from logits, with PyTorch's own loss."""
    batches, begin = [], {}

    def collect(module: object, batch: tuple[torch.Tensor, ...], batch_idx: int) -> torch.Tensor:
        batches.append(batch)
        if not begin:
            begin.update({name: value.clone() for name, value in module.model.state_dict().items()})
            begin["model"] = module.model
        return real(module, batch, batch_idx)

    from gpt_pretrain.training.lit_module import GPTLitModule

    real = GPTLitModule.training_step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GPTLitModule, "training_step", collect)
        overrides = [f"model={kind}", "data.batch_size=2", "trainer.accumulate_grad_batches=4", "trainer.max_steps=1"]
        train(*uneven, *overrides, base=STILL, run_dir=tmp_path / "run")
    model = begin.pop("model")
    model.load_state_dict(begin)
    model.tok_emb.sparse = False
    model.zero_grad()
    nats, counted = torch.zeros(()), 0
    for token_ids, target_ids, positions in batches:
        logits = model.hidden_states(token_ids, positions=positions) @ model.head_weight.T
        if (cap := model.config.logit_cap) is not None:
            logits = cap * torch.tanh(logits / cap)
        nats = nats + F.cross_entropy(logits.flatten(0, 1), target_ids.flatten(), ignore_index=-100, reduction="sum")
        counted += int((target_ids != -100).sum())
    (nats / counted).backward()
    norm = math.sqrt(sum(float(parameter.grad.double().square().sum()) for parameter in model.parameters()))
    ((loss, logged_norm),) = logged(tmp_path / "run")
    assert loss == pytest.approx(float(nats) / counted, rel=1e-5)
    assert logged_norm == pytest.approx(norm, rel=1e-4)


def test_a_skipped_batch_leaves_the_mean_of_the_others(steps: Callable[..., list[tuple[float, float]]], text: list[str]) -> None:
    """Of two accumulated batches the first is NaN: the step has the loss and the gradient of the second."""
    alone = steps(*text, "data.batch_size=1", "trainer.max_steps=4")
    with spoilt(steps={1}):
        pairs = steps(*text, "data.batch_size=1", "trainer.accumulate_grad_batches=2", "on_nonfinite=skip", "trainer.max_steps=2")
    assert pairs[1] == pytest.approx(alone[3], rel=1e-5)


def test_a_step_in_which_no_token_counts_changes_nothing(train: Train, tmp_path: Path) -> None:
    """Documents of no tokens: each target begins another document."""
    write_shards(tmp_path / "corpus", train=[[] for _ in range(200)], val=[[1, 2, 3]] * 40)
    overrides = ["data=shards", f"data.path='{tmp_path / 'corpus'}'", "data.respect_documents=true", "data.batch_size=2"]
    train(*overrides, "trainer.max_steps=2", "optimizer.lr=1", base=STILL, run_dir=tmp_path / "run")
    content = checkpoint(tmp_path / "run")
    assert all(value.isfinite().all() for value in content["state_dict"].values())
    assert max(float(value.abs().max()) for value in content["state_dict"].values()) <= 1


def test_the_logged_loss_is_the_mean_over_the_tokens_of_a_row(
    steps: Callable[..., list[tuple[float, float]]], uneven: list[str]
) -> None:
    each = steps(*uneven, "data.batch_size=8", "trainer.max_steps=7")
    rare = ["trainer.log_every_n_steps=3", "trainer.max_steps=7"]
    (one, *_), (many, *_) = (
        [loss for loss, _ in steps(*uneven, *rare, f"data.batch_size={size}", f"trainer.accumulate_grad_batches={8 // size}")]
        for size in (8, 1)
    )
    assert one == pytest.approx(each[0][0], rel=1e-6) == pytest.approx(many, rel=1e-6)


def test_a_run_resumes_exactly_in_the_middle_of_a_row_of_uneven_steps(train: Train, tmp_path: Path, uneven: list[str]) -> None:
    overrides = [
        *uneven, "data.batch_size=3", "trainer.accumulate_grad_batches=4", "trainer.log_every_n_steps=5", "trainer.max_epochs=2",
        "optimizer.lr=1e-3", "checkpoint.every_n_steps=2", "model.drop_rate=0.1", "eval_freq=4", "trainer.gradient_clip_val=1.0",
        "trainer.limit_train_batches=22", "callbacks.samples=true", "sampler.max_new_tokens=2",
    ]  # fmt: skip
    train(*overrides, base=STILL, run_dir=tmp_path / "whole")
    with machine_going_away(at_step=9):  # the checkpoint is of step 8, two steps before a row
        train(*overrides, base=STILL, run_dir=tmp_path / "run")
    train(*overrides, f"resume='{tmp_path / 'run'}'", base=STILL, run_dir=tmp_path / "run")
    assert differences(tmp_path / "whole", tmp_path / "run") == []


def test_the_sums_of_an_older_checkpoint_are_those_of_equal_batches() -> None:
    metrics = TrainMetrics(every_n_steps=5)
    metrics.load_state_dict({"loss": 12.0, "batches": 3})
    module = SimpleNamespace(clock=SimpleNamespace(seconds=lambda: 0.0), tokens_seen=0, record=SimpleNamespace(observers=[]))
    data = SimpleNamespace(global_batch_size=8, context_length=32)
    metrics.on_train_start(SimpleNamespace(global_step=1, datamodule=data), module)  # type: ignore[arg-type]
    assert metrics.state_dict() == {"nats": 12.0 * 256, "tokens": 3 * 256}


# Ranks, and batches of a step: the counted tokens of each rank in each batch.
COUNTS = st.integers(1, 4).flatmap(
    lambda ranks: st.lists(st.lists(st.integers(0, 1000), min_size=ranks, max_size=ranks), min_size=1, max_size=6)
)


@given(counts=COUNTS, more=st.integers(0, 5))
def test_the_weights_of_all_batches_sum_up_to_a_mean(counts: list[list[int]], more: int) -> None:
    """The gradient of a batch's mean loss is taken to be its own number, so that the sum of all is a weighted mean of them."""
    ranks, accumulated = len(counts[0]), len(counts) + more
    slopes = [[10.0 * batch + rank for rank in range(ranks)] for batch in range(len(counts))]
    sums, factors = [0.0] * ranks, []
    for rank in range(ranks):
        mean = StepMean()
        for batch, own in zip(slopes, counts, strict=True):
            weight = mean.add(sum(own), own[rank], n_ranks=ranks)
            sums[rank] += weight * batch[rank] / accumulated
        factors.append(mean.finish(accumulate_grad_batches=accumulated))
        assert mean.tokens == 0
    total = sum(map(sum, counts))
    (factor,) = set(factors)
    assert (factor == 0) == (total == 0)
    expected = sum(slope * count for row, own in zip(slopes, counts, strict=True) for slope, count in zip(row, own, strict=True))
    if total:
        assert factor * sum(sums) / ranks == pytest.approx(expected / total)


def test_full_steps_of_equal_batches_are_not_scaled_at_all() -> None:
    for ranks, batches in ((1, 1), (3, 1), (7, 3), (8, 49)):
        mean = StepMean()
        assert [mean.add(4095 * ranks, 4095, n_ranks=ranks) for _ in range(batches)] == [1.0] * batches
        assert mean.finish(accumulate_grad_batches=batches) == 1.0


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_ranks_with_different_numbers_of_counted_tokens_agree_with_one_large_batch(
    steps: Callable[..., list[tuple[float, float]]],
    fork_server: ForkServer,
    tmp_path: Path,
    uneven: list[str],
    strategy: str,
) -> None:
    """Of three batches for two ranks, the last step has only one, and its gradient is that of this batch."""

    def on_two_ranks(name: str, *overrides: str) -> list[tuple[float, float]]:
        ranks = [f"trainer.strategy={strategy}", "trainer.devices=2", f"hydra.run.dir={name}", "data.cache_dir=cache"]
        environment = dict(os.environ) | {"OMP_NUM_THREADS": "1"}
        done = fork_server.run(["train.py", *STILL, *uneven, *ranks, *overrides], cwd=tmp_path, environment=environment, ranks=2)
        assert done.returncode == 0, done.stderr
        return logged(tmp_path / name)

    whole = steps(*uneven, "data.batch_size=8", "trainer.max_steps=2")
    both = on_two_ranks("both", "data.batch_size=2", "trainer.accumulate_grad_batches=2", "trainer.max_steps=2")
    assert both == [(pytest.approx(loss, rel=1e-6), pytest.approx(norm, rel=2e-5)) for loss, norm in whole]
    *_, (loss, norm) = single = steps(*uneven, "data.batch_size=40")
    *_, last = odd = on_two_ranks("odd", "data.batch_size=40")
    assert (len(single), len(odd)) == (3, 2)
    assert last == (pytest.approx(loss, rel=1e-6), pytest.approx(norm, rel=2e-5))


@pytest.mark.parametrize(
    ("overrides", "said", "windows"),
    [
        (["trainer.accumulate_grad_batches=100"], "of 11 windows each", [11]),
        (["trainer.accumulate_grad_batches=5"], "of 5 windows each, but 1 in the last step of an epoch", [5, 5, 1]),
        (["trainer.accumulate_grad_batches=11"], "of 11 windows each", [11]),
        (["data.batch_size=2"], "of 2 windows each", [2] * 5),
        (["data.batch_size=3", "trainer.accumulate_grad_batches=2"], "of 6 windows each, but 3 in the last", [6, 3]),
        (["trainer.limit_train_batches=4", "trainer.accumulate_grad_batches=3"], "of 3 windows each, but 1 in the last", [3, 1]),
        (["trainer.max_tokens=500", "trainer.accumulate_grad_batches=5"], "of 5 windows each, but 1", [5, 5, 1, 5]),
    ],
)
def test_the_start_says_how_many_windows_the_steps_have(
    train: Train, tmp_path: Path, text: list[str], printed: Printed, overrides: list[str], said: str, windows: list[int]
) -> None:
    train(*text, "data.batch_size=1", *overrides, base=STILL, run_dir=tmp_path / "run")
    (length,) = (line for line in printed() if line.startswith("length"))
    (plan,) = (line for line in printed() if line.startswith("plan"))
    assert length.startswith(f"length  {len(windows)} optimizer step") and said in length
    assert length.endswith("each") or "but" in said
    seen = [round(float(row["tokens_seen"])) // 32 for row in rows(tmp_path / "run") if row["grad_norm"]]
    assert seen == [sum(windows[: n + 1]) for n in range(len(windows))]
    assert f" {32 * sum(windows):,} tokens" in plan


def test_the_tokens_of_the_rest_of_a_run_are_exact(compose_train: Callable[..., object], text: list[str]) -> None:
    overrides = [*STILL, *text, "data.batch_size=1", "trainer.accumulate_grad_batches=5", "trainer.max_epochs=3"]
    settings = to_settings(compose_train(*overrides), TrainSettings)
    data, _, _ = plan_run(settings)
    assert [run_length.tokens_after(steps, data, settings.trainer) // 32 for steps in range(8)] == [0, 5, 10, 11, 16, 21, 22, 27]
    assert "3 per epoch, of 5 windows each, but 1 in" in "\n".join(summary.run_facts(settings, data, SimpleNamespace(
        config=SimpleNamespace(n_layers=1, n_heads=1, emb_dim=1, context_length=32, vocab_size=257, kind="gpt2"), num_parameters=lambda: 1
    )))  # fmt: skip


def test_a_window_can_have_no_counted_target() -> None:
    """Check what the tests above rely on."""
    import numpy as np

    _, targets, _ = DocumentBoundaries(eos_id=0).separate(np.zeros((1, 5), np.int64))
    assert (targets == -100).all()
