"""The LightningModule: its losses, its evaluation and its learning rate."""

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from gpt_pretrain.config.schema import OptimizerSettings, SchedulerSettings
from gpt_pretrain.data.dataset import Batch
from gpt_pretrain.evaluation.loss import mean_loss, merge_batches, next_token_loss
from gpt_pretrain.training.clock import TrainingClock
from gpt_pretrain.training.lit_module import GPTLitModule
from tests.conftest import tiny_model

OPTIMIZER = OptimizerSettings(name="adamw", lr=1e-3, weight_decay=0.1, betas=[0.9, 0.999], eps=1e-8, decay="matrices")
SCHEDULER = SchedulerSettings(name="constant", warmup_steps=0, decay_steps=0, min_lr=0.0)


@pytest.fixture
def module() -> GPTLitModule:
    token_bytes = torch.arange(97) % 5
    return GPTLitModule(tiny_model(), optimizer=OPTIMIZER, scheduler=SCHEDULER, total_steps=10, token_bytes=token_bytes)


def naive_loss(logits: torch.Tensor, targets: torch.Tensor) -> float:
    """Compute the mean negative log-likelihood of the targets by its definition."""
    total = 0.0
    for row, row_targets in zip(logits.double(), targets, strict=True):
        for scores, target in zip(row, row_targets, strict=True):
            total -= math.log(math.exp(scores[target]) / sum(math.exp(score) for score in scores))
    return total / targets.numel()


def test_the_loss_equals_its_definition() -> None:
    model, token_ids, targets = tiny_model(), torch.randint(0, 97, (2, 3)), torch.randint(0, 97, (2, 3))
    assert next_token_loss(model, token_ids, targets).item() == pytest.approx(naive_loss(model(token_ids), targets), rel=1e-5)


def test_validation_is_the_mean_over_positions_of_unequal_batches(module: GPTLitModule, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "log", lambda *args, **kwargs: None)
    batches = [(torch.randint(0, 97, (n, 16)), torch.randint(0, 97, (n, 16))) for n in (3, 3, 1)]
    module.eval()
    module.on_validation_epoch_start()
    with torch.no_grad():
        for number, batch in enumerate(batches):
            module.validation_step(batch, number)
        logits = torch.cat([module.model(inputs) for inputs, _ in batches])
    module.on_validation_epoch_end()
    targets = torch.cat([batch[1] for batch in batches])
    expected = naive_loss(logits, targets)
    assert module.val_loss == pytest.approx(expected, rel=1e-5)
    n_bytes = sum(int(target) % 5 for target in targets.flatten())
    assert module.val_bits_per_byte == pytest.approx(expected * targets.numel() / math.log(2) / n_bytes, rel=1e-5)


def test_small_batches_are_evaluated_together_and_their_loss_is_the_same() -> None:
    def batch(n: int, length: int) -> Batch:
        return torch.randint(0, 97, (n, length)), torch.randint(0, 97, (n, length))

    batches = [batch(2, 16), batch(2, 16), batch(3, 16), batch(1, 8), batch(9, 16), batch(1, 16)]
    merged = list(merge_batches(iter(batches), max_tokens=64))
    assert [tuple(one[0].shape) for one in merged] == [(4, 16), (3, 16), (1, 8), (9, 16), (1, 16)]
    assert list(merge_batches([])) == []
    model, token_bytes = tiny_model(), torch.ones(97, dtype=torch.int64)
    one_by_one, together = (mean_loss(model, some, token_bytes=token_bytes, all_reduce=lambda x: x) for some in (batches, merged))
    assert together.nats_per_token == pytest.approx(one_by_one.nats_per_token, rel=1e-6)


def test_evaluation_keeps_the_training_mode_and_the_random_state(module: GPTLitModule) -> None:
    from lightning.pytorch.plugins.precision import Precision

    module._trainer = SimpleNamespace(precision_plugin=Precision(), strategy=None)  # type: ignore[assignment]
    batches = [(torch.randint(0, 97, (2, 16)), torch.randint(0, 97, (2, 16)))]
    module.train()
    state = torch.random.get_rng_state()
    first, second = module.mean_loss(batches), module.mean_loss(batches)
    assert first == second, "dropout is off"
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(part.training for part in module.model.modules())
    assert all(parameter.grad is None for parameter in module.parameters())


def test_the_clock_of_training_stands_still_while_it_is_paused(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("time.perf_counter", lambda: now)
    clock = TrainingClock()
    start = clock.seconds()
    now = 103.0
    with clock.paused():
        now = 110.0
    clock.pause()
    now = 120.0
    clock.resume()
    now = 121.0
    assert clock.seconds() - start == 4.0


def test_the_schedule_sets_the_learning_rate_of_each_step(train: Callable[..., float], tmp_path: Path) -> None:
    from gpt_pretrain.training.optimization.schedule import lr_at

    train("scheduler=warmup_cosine", "scheduler.warmup_steps=2", "logger=csv")
    rows = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    columns = rows[0].split(",")
    rates = [float(row.split(",")[columns.index("lr")]) for row in rows[1:] if row.split(",")[columns.index("lr")]]
    settings = SchedulerSettings(name="warmup_cosine", warmup_steps=2, decay_steps=0, min_lr=4e-5)
    expected = [lr_at(step, lr=4e-4, settings=settings, total_steps=6) for step in range(6)]
    assert rates == pytest.approx(expected)
