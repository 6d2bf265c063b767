"""The health monitor on sequences of numbers: each sign is reported when it begins, and not otherwise."""

import math
import random
import time
from collections.abc import Callable, Iterable

import pytest
from omegaconf import DictConfig

from gpt_pretrain.config.conversion import to_settings
from gpt_pretrain.config.schema import TrainSettings
from gpt_pretrain.training.monitoring.health_monitor import BaselineLosses, HealthMonitor

BASELINE = BaselineLosses(uniform=math.log(257), unigram=3.0)
Make = Callable[..., HealthMonitor]


@pytest.fixture
def make_monitor(compose_train: Callable[..., DictConfig]) -> Make:
    """Make a health monitor with the default thresholds."""

    def make(*overrides: str, baseline: BaselineLosses = BASELINE) -> HealthMonitor:
        run = to_settings(compose_train("model=gpt2_124m", "tokenizer=byte", *overrides), TrainSettings)
        assert run.callbacks.doctor is not None
        return HealthMonitor(run, run.callbacks.doctor, baseline)

    return make


def found(monitor: HealthMonitor) -> list[tuple[str, int]]:
    return [(finding.sign, finding.step) for finding in monitor.findings]


def evaluate(monitor: HealthMonitor, *, train: Iterable[float], val: Iterable[float], first: int = 0) -> list[tuple[str, int]]:
    """Return the findings of evaluations every 5 steps."""
    for number, losses in enumerate(zip(train, val, strict=True)):
        monitor.observe_evaluation(first + 5 * number, *losses)
    return found(monitor)


# The losses of a run of experiment=chapter5 on The Verdict, every 5 steps.
CHAPTER5 = (
    [
        9.976,
        8.084,
        6.647,
        5.939,
        5.403,
        4.937,
        4.147,
        3.592,
        2.918,
        2.392,
        1.825,
        1.452,
        1.136,
        0.835,
        0.603,
        0.369,
        0.251,
        0.196,
    ],
    [
        9.941,
        8.268,
        6.983,
        6.533,
        6.397,
        6.323,
        6.200,
        6.173,
        6.182,
        6.277,
        6.266,
        6.313,
        6.322,
        6.381,
        6.459,
        6.565,
        6.610,
        6.719,
    ],
)


def test_the_chapter_5_run_gets_one_gap_and_one_overfitting_finding(make_monitor: Make) -> None:
    monitor = make_monitor("experiment=chapter5", baseline=BaselineLosses(uniform=math.log(50257), unigram=6.0))
    monitor.observe_first_losses(10.97, 10.98)
    assert evaluate(monitor, train=CHAPTER5[0], val=CHAPTER5[1]) == [("gap", 45), ("overfitting", 50)]
    assert "Since about step 35 the validation loss has risen from 6.185 to 6.242" in monitor.findings[1].text
    assert "6.277, is 2.6 times the training loss, 2.392" in monitor.findings[0].text
    assert all("experiment=small_text" in finding.text for finding in monitor.findings)


def test_overfitting_is_reported_again_after_a_new_lowest_loss(make_monitor: Make) -> None:
    monitor = make_monitor("callbacks.doctor.gap=9")
    falling = [2.0 - 0.02 * n for n in range(40)]
    val = [*(2.2 + 0.02 * abs(n - 8) for n in range(20)), *(2.0 + 0.02 * abs(n - 8) for n in range(20))]
    assert evaluate(monitor, train=falling, val=val) == [("overfitting", 65), ("overfitting", 165)]


@pytest.mark.parametrize("seed", range(20))
def test_noise_on_falling_or_flat_losses_is_no_warning_sign(make_monitor: Make, seed: int) -> None:
    """Use noisy losses of small batches that fall to a level, with the validation loss a little higher, as in a healthy run."""
    chance, monitor = random.Random(seed), make_monitor()
    monitor.observe_first_losses(5.6, 5.6)
    for step in range(2000):
        level = 1.5 + 4.0 * math.exp(-step / 60)
        monitor.observe_step(step, level + chance.gauss(0, 0.3), chance.uniform(0.3, 1.1))
        if step % 5 == 0:
            shared = chance.gauss(0, 0.03)
            monitor.observe_evaluation(
                step, level + shared + chance.gauss(0, 0.02), 1.05 * level + shared + chance.gauss(0, 0.02)
            )
    assert found(monitor) == []


def test_a_plateau_at_the_unigram_loss_is_healthy_if_the_loss_leaves_it_in_time(make_monitor: Make) -> None:
    plateau = [*(5.5 - 0.25 * n for n in range(10)), *[3.02] * 30, *(3.0 - 0.05 * n for n in range(30))]
    assert evaluate(make_monitor(), train=plateau, val=plateau) == []
    assert evaluate(make_monitor(), train=[*plateau[:15], *[3.02] * 60], val=[*plateau[:15], *[3.02] * 60]) == [("stuck", 210)]


def test_a_flat_low_loss_is_not_stuck_for_any_vocabulary_size(make_monitor: Make) -> None:
    assert evaluate(make_monitor(), train=[2.6] * 200, val=[2.7] * 200) == []
    large = make_monitor(baseline=BaselineLosses(uniform=math.log(50257), unigram=7.5))
    assert evaluate(large, train=[6.5] * 200, val=[6.6] * 200) == []


def test_losses_that_never_fall_are_reported_after_one_window_but_not_during_warmup(make_monitor: Make) -> None:
    high = [5.54 - 0.0001 * n for n in range(100)]
    monitor = make_monitor("optimizer.lr=1e-7")
    assert evaluate(monitor, train=high, val=high) == [("stuck", 40)]
    assert "probably too low: try optimizer.lr=1e-06 (1e-07 now)" in monitor.findings[0].text
    warm = make_monitor("scheduler=warmup_cosine", "scheduler.warmup_steps=200")
    assert evaluate(warm, train=high, val=high) == [("stuck", 240)]
    again = [*high, *(5.5 - 0.1 * n for n in range(25)), *[5.4] * 50]
    assert evaluate(make_monitor(), train=again, val=again) == [("stuck", 40), ("stuck", 665)]


def test_a_lower_learning_rate_is_advised_for_all_roles(make_monitor: Make) -> None:
    monitor = make_monitor("model=modern_tiny", "optimizer.vectors.lr=null")
    for step in range(200):
        monitor.observe_step(step, 4.5 if step >= 150 else 2.5, 0.5)
    assert found(monitor)[0][0] == "spike"
    rates = "optimizer.lr=0.00667 optimizer.embedding.lr=0.1 optimizer.head.lr=0.00333"
    assert f"try {rates} (optimizer.lr=0.02 now)" in monitor.findings[0].text


def test_a_spike_is_reported_once_and_again_after_it_has_passed(make_monitor: Make) -> None:
    chance, monitor = random.Random(1), make_monitor("optimizer.lr=3e-3", "trainer.gradient_clip_val=null")
    for step in range(400):
        high = 150 <= step < 170 or 300 <= step < 320
        monitor.observe_step(step, (4.5 if high else 2.5) + chance.gauss(0, 0.2), 0.5)
    assert [sign for sign, _ in found(monitor)] == ["spike", "spike"]
    assert [step - begin for (_, step), begin in zip(found(monitor), (150, 300), strict=True)] == pytest.approx([3, 3], abs=2)
    assert "try optimizer.lr=0.001 (0.003 now), with scheduler=warmup_cosine" in monitor.findings[0].text
    assert "trainer.gradient_clip_val=1.0" in monitor.findings[0].text


def test_a_far_too_high_rate_is_lowered_to_a_usual_one(make_monitor: Make) -> None:
    monitor = make_monitor("optimizer.lr=10", "trainer.gradient_clip_val=null")
    for step in range(200):
        monitor.observe_step(step, 4.5 if step >= 150 else 2.5, 0.5)
    assert "try optimizer.lr=0.02 (10 now)" in monitor.findings[0].text


def test_one_odd_batch_is_no_spike(make_monitor: Make) -> None:
    monitor = make_monitor()
    for step in range(200):
        monitor.observe_step(step, 4.5 if step == 100 else 2.5, 0.5)
    assert found(monitor) == []


def test_a_loss_above_the_first_loss_is_reported_immediately(make_monitor: Make) -> None:
    monitor = make_monitor("optimizer.lr=10")
    monitor.observe_first_losses(5.6, 5.6)
    for step, loss in enumerate([5.6, 40.0, 900.0, 1200.0, 700.0, 800.0, 600.0]):
        monitor.observe_step(step, loss, 0.5)
    assert found(monitor) == [("spike", 4)]
    assert "from at most 5.600 before" in monitor.findings[0].text


def test_a_spike_is_reported_when_the_first_steps_destroy_pretrained_weights(make_monitor: Make) -> None:
    for losses, expected in (([3.4, 3.9, 3.6, 4.2, 3.7, 3.9], []), ([3.4, 4.0, 5.2, 5.5, 5.4, 5.3], [("spike", 5)])):
        monitor = make_monitor("init_from=gpt2", "optimizer.lr=1e-2")
        monitor.observe_first_losses(3.3, 3.4)
        for step, loss in enumerate(losses):
            monitor.observe_step(step, loss, 0.5)
        assert found(monitor) == expected


def test_a_first_loss_far_from_a_uniform_guess_is_reported(make_monitor: Make) -> None:
    for loss, remedy in ((28.0, "A smaller model.emb_dim"), (2.0, "sees the tokens that it should predict")):
        monitor = make_monitor()
        monitor.observe_first_losses(loss, loss)
        assert found(monitor) == [("first_loss", 0)]
        assert remedy in monitor.findings[0].text
    other = make_monitor("model.init=pytorch")
    other.observe_first_losses(28.0, 28.0)
    assert "model.init=gpt2 starts near it" in other.findings[0].text
    loaded = make_monitor("init_from=gpt2")
    loaded.observe_first_losses(3.0, 3.0)
    assert found(loaded) == []


def test_clipping_in_most_steps_is_reported(make_monitor: Make) -> None:
    monitor = make_monitor("trainer.gradient_clip_val=0.5")
    for step in range(300):  # in three of four steps, then in none, then in all
        monitor.observe_step(step, 2.0, 0.2 if step % 4 == 0 or 150 <= step < 200 else 0.8)
    assert [sign for sign, _ in found(monitor)] == ["clipping", "clipping"]
    assert found(monitor)[0] == ("clipping", 79), "the first 40 norms are large in any run and do not count"
    assert "In 30 of the last 40 steps" in monitor.findings[0].text
    assert "trainer.gradient_clip_val=2 limits only outliers" in monitor.findings[0].text
    off = make_monitor("trainer.gradient_clip_val=null")
    for step in range(200):
        off.observe_step(step, 2.0, 100.0)
    assert found(off) == []


def test_numbers_that_are_exactly_zero_are_reported(make_monitor: Make) -> None:
    monitor = make_monitor()
    evaluate(monitor, train=[0.0] * 6, val=[5.0] * 6)
    assert "The validation loss, 5.000, is far above the training loss, 0.000" in monitor.findings[0].text
    clipped = make_monitor("trainer.gradient_clip_val=0.5", "callbacks.doctor.clipping=0.2")
    for step in range(100):
        clipped.observe_step(step, 2.0, 0.8 if step % 4 == 0 else 0.0)
    assert "its median was 0.00" in clipped.findings[0].text
    assert "trainer.gradient_clip_val=1 limits only outliers" in clipped.findings[0].text


def test_waiting_for_batches_is_reported(make_monitor: Make) -> None:
    monitor = make_monitor("data.num_workers=2")
    for step, share in enumerate([0.1, 0.29, 0.5, 0.2, 0.6, 0.1, 0.4]):  # at 0.2 the sign still lasts
        monitor.observe_waiting(step, 10 * share, 10.0)
    assert found(monitor) == [("loading", 2), ("loading", 6)]
    assert "data.num_workers=4 (2 now)" in monitor.findings[0].text


def test_nonfinite_losses_are_reported_once_per_window(make_monitor: Make) -> None:
    monitor = make_monitor("trainer.precision=bf16-mixed")
    monitor.observe_nonfinite(10, "The loss is nan.")
    for step in range(10, 60):
        monitor.observe_step(step, 2.0, 0.5)
        if step in (12, 59):
            monitor.observe_nonfinite(step, "The loss is nan.")
    assert found(monitor) == [("nonfinite", 10), ("nonfinite", 59)]
    assert "or trainer.precision=32-true (bf16-mixed now)" in monitor.findings[0].text


def test_a_restored_monitor_continues_as_if_nothing_had_happened(make_monitor: Make) -> None:
    def feed(monitor: HealthMonitor, steps: range) -> None:
        chance = random.Random(steps.start)
        for step in steps:
            monitor.observe_step(step, (5.0 if step % 100 < 20 else 2.5) + chance.gauss(0, 0.2), chance.uniform(0.4, 1.8))
            if step % 5 == 0:
                monitor.observe_evaluation(step, 2.5 - 0.003 * step, 2.5 + 0.001 * step)

    whole, parts = make_monitor(), [make_monitor() for _ in range(6)]
    before = {}
    for number, part in enumerate(parts):
        if before:
            part.load_state_dict(before)
        for monitor in (whole, part):
            feed(monitor, range(number * 47, number * 47 + 47))
        before = part.state_dict()
    assert found(whole) == found(parts[-1])
    assert {"overfitting", "gap", "spike", "clipping"} <= {sign for sign, _ in found(whole)}
    assert whole.state_dict() == before


@pytest.mark.serial
def test_state_and_cost_per_step_do_not_grow_with_the_run(make_monitor: Make) -> None:
    monitor = make_monitor("eval_freq=1")

    def seconds(first: int, count: int) -> float:
        start = time.perf_counter()
        for step in range(first, first + count):
            monitor.observe_step(step, 2.0, 0.5)
        return (time.perf_counter() - start) / count

    for step in range(1000):
        monitor.observe_evaluation(step, 2.0, 2.0)
    seconds(0, 1000)
    size = len(str(monitor.state_dict()))
    cost = min(seconds(1000 + 2000 * n, 2000) for n in range(5))
    assert len(str(monitor.state_dict())) == size
    assert cost < 1e-3, "a training step takes milliseconds; this should take about 10 microseconds"


def test_unknown_norms_are_ignored(make_monitor: Make) -> None:
    monitor = make_monitor()
    for step in range(100):
        monitor.observe_step(step, 2.0, None)
    assert found(monitor) == []


@pytest.mark.parametrize(
    ("overrides", "advice"),
    [
        (
            ["model.drop_rate=0"],
            "model.drop_rate=0.1 (as budget= chooses where a model memorizes its text; model.drop_rate=0 now)",
        ),
        (
            ["model.drop_rate=0", "optimizer=muon"],
            "optimizer.matrices.weight_decay=0.1 optimizer.head.weight_decay=0.5 (as budget=",
        ),
        (["model.drop_rate=0.1"], "model.drop_rate=0.2 (as budget= chooses"),
        (["model.drop_rate=0.3"], "a higher model.drop_rate (0.3 now)"),
        (
            ["model.drop_rate=0.3", "optimizer=muon", "optimizer.head.weight_decay=1"],
            "a smaller model or optimizer.matrices.weight_decay=0.2 (as budget= chooses where a model memorizes its text; "
            "optimizer.matrices.weight_decay=0 now) narrows",
        ),
        (["model.drop_rate=0.1", "optimizer=muon_many_epochs"], "a smaller model or model.drop_rate=0.2 (as budget="),
        (["model.drop_rate=0.2", "optimizer=muon_many_epochs"], "a higher model.drop_rate (0.2 now)"),
    ],
    ids=range(7),
)
def test_the_advice_against_overfitting_is_what_a_budget_chooses(make_monitor: Make, overrides: list[str], advice: str) -> None:
    monitor = make_monitor("experiment=chapter5", *overrides)
    evaluate(monitor, train=CHAPTER5[0], val=CHAPTER5[1])
    assert any(advice in finding.text for finding in monitor.findings)


@pytest.mark.parametrize(("optimizer", "named"), [("adamw", False), ("muon", True), ("muon_many_epochs", False)])
def test_the_recipe_is_named_where_its_dropout_or_weight_decay_is_missing(
    make_monitor: Make, optimizer: str, named: bool
) -> None:
    monitor = make_monitor("experiment=chapter5", "model.drop_rate=0.1", "data.shift_windows=true", f"optimizer={optimizer}")
    evaluate(monitor, train=CHAPTER5[0], val=CHAPTER5[1])
    assert any("experiment=small_text" in finding.text for finding in monitor.findings) == named
