"""The doctor, on histories of numbers: each sign, when it is told, and when it is not."""

import math
import random
import time
from collections.abc import Callable, Iterable

import pytest
from omegaconf import DictConfig

from gpt_pretrain.config.conversion import to_settings
from gpt_pretrain.config.schema import TrainSettings
from gpt_pretrain.training.monitoring.health import Baseline, HealthMonitor

USUAL = Baseline(chance=math.log(257), frequencies=3.0)
Make = Callable[..., HealthMonitor]


@pytest.fixture
def doctor(compose_train: Callable[..., DictConfig]) -> Make:
    """A doctor with the thresholds that conf/ has."""

    def made(*overrides: str, usual: Baseline = USUAL) -> HealthMonitor:
        run = to_settings(compose_train("tokenizer=byte", *overrides), TrainSettings)
        assert run.callbacks.doctor is not None
        return HealthMonitor(run, run.callbacks.doctor, usual)

    return made


def told(doctor: HealthMonitor) -> list[tuple[str, int]]:
    return [(finding.sign, finding.step) for finding in doctor.findings]


def show(doctor: HealthMonitor, *, train: Iterable[float], val: Iterable[float], first: int = 0) -> list[tuple[str, int]]:
    """What is told of loss lines every 5 steps."""
    for number, losses in enumerate(zip(train, val, strict=True)):
        doctor.line(first + 5 * number, *losses)
    return told(doctor)


# The loss lines of a run of experiment=chapter5 on The Verdict, every 5 steps.
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


def test_chapter_5_s_run_is_told_its_overfitting_once_each(doctor: Make) -> None:
    watching = doctor("experiment=chapter5", usual=Baseline(chance=math.log(50257), frequencies=6.0))
    watching.before(10.97, 10.98)
    assert show(watching, train=CHAPTER5[0], val=CHAPTER5[1]) == [("gap", 45), ("overfitting", 50)]
    assert "Since about step 35 the validation loss has risen, from 6.185 to 6.242" in watching.findings[1].text
    assert "6.277, is 2.6 times the training loss, 2.392" in watching.findings[0].text


def test_overfitting_may_come_back_after_a_new_lowest_loss(doctor: Make) -> None:
    watching = doctor("callbacks.doctor.gap=9")
    falling = [2.0 - 0.02 * n for n in range(40)]
    val = [*(2.2 + 0.02 * abs(n - 8) for n in range(20)), *(2.0 + 0.02 * abs(n - 8) for n in range(20))]
    assert show(watching, train=falling, val=val) == [("overfitting", 65), ("overfitting", 165)]


@pytest.mark.parametrize("seed", range(20))
def test_noise_on_falling_or_level_losses_is_no_sign(doctor: Make, seed: int) -> None:
    """Losses of noisy small batches that fall to a level, validation a little above, as a healthy run has them."""
    chance, watching = random.Random(seed), doctor()
    watching.before(5.6, 5.6)
    for step in range(2000):
        level = 1.5 + 4.0 * math.exp(-step / 60)
        watching.step(step, level + chance.gauss(0, 0.3), chance.uniform(0.3, 1.1))
        if step % 5 == 0:
            shared = chance.gauss(0, 0.03)
            watching.line(step, level + shared + chance.gauss(0, 0.02), 1.05 * level + shared + chance.gauss(0, 0.02))
    assert told(watching) == []


def test_a_plateau_at_the_tokens_frequencies_is_healthy_when_it_is_left_in_time(doctor: Make) -> None:
    plateau = [*(5.5 - 0.25 * n for n in range(10)), *[3.02] * 30, *(3.0 - 0.05 * n for n in range(30))]
    assert show(doctor(), train=plateau, val=plateau) == []
    assert show(doctor(), train=[*plateau[:15], *[3.02] * 60], val=[*plateau[:15], *[3.02] * 60]) == [("stuck", 210)]


def test_a_level_low_loss_is_not_stuck_whatever_the_vocabulary(doctor: Make) -> None:
    assert show(doctor(), train=[2.6] * 200, val=[2.7] * 200) == []
    large = doctor(usual=Baseline(chance=math.log(50257), frequencies=7.5))
    assert show(large, train=[6.5] * 200, val=[6.6] * 200) == []


def test_losses_that_stay_where_they_began_are_told_after_a_window_and_not_during_the_warm_up(doctor: Make) -> None:
    high = [5.54 - 0.0001 * n for n in range(100)]
    watching = doctor("optimizer.lr=1e-7")
    assert show(watching, train=high, val=high) == [("stuck", 40)]
    assert "probably too low: try optimizer.lr=1e-06 (1e-07 now)" in watching.findings[0].text
    warm = doctor("scheduler=warmup_cosine", "scheduler.warmup_steps=200")
    assert show(warm, train=high, val=high) == [("stuck", 240)]
    again = [*high, *(5.5 - 0.1 * n for n in range(25)), *[5.4] * 50]
    assert show(doctor(), train=again, val=again) == [("stuck", 40), ("stuck", 665)]


def test_a_jump_of_the_loss_is_told_once_and_again_after_it_has_passed(doctor: Make) -> None:
    chance, watching = random.Random(1), doctor("optimizer.lr=3e-3", "trainer.gradient_clip_val=null")
    for step in range(400):
        high = 150 <= step < 170 or 300 <= step < 320
        watching.step(step, (4.5 if high else 2.5) + chance.gauss(0, 0.2), 0.5)
    assert [sign for sign, _ in told(watching)] == ["spike", "spike"]
    assert [step - begin for (_, step), begin in zip(told(watching), (150, 300), strict=True)] == pytest.approx([3, 3], abs=2)
    assert "try optimizer.lr=0.001 (0.003 now), with scheduler=warmup_cosine" in watching.findings[0].text
    assert "trainer.gradient_clip_val=1.0" in watching.findings[0].text


def test_one_odd_batch_is_no_jump(doctor: Make) -> None:
    watching = doctor()
    for step in range(200):
        watching.step(step, 4.5 if step == 100 else 2.5, 0.5)
    assert told(watching) == []


def test_a_loss_above_the_first_is_told_at_once(doctor: Make) -> None:
    watching = doctor("optimizer.lr=10")
    watching.before(5.6, 5.6)
    for step, loss in enumerate([5.6, 40.0, 900.0, 1200.0, 700.0, 800.0, 600.0]):
        watching.step(step, loss, 0.5)
    assert told(watching) == [("spike", 4)]
    assert "from at most 5.600 before" in watching.findings[0].text


def test_pretrained_weights_that_are_lost_in_the_first_steps(doctor: Make) -> None:
    for losses, expected in (([3.4, 3.9, 3.6, 4.2, 3.7, 3.9], []), ([3.4, 4.0, 5.2, 5.5, 5.4, 5.3], [("spike", 5)])):
        watching = doctor("init_from=gpt2", "optimizer.lr=1e-2")
        watching.before(3.3, 3.4)
        for step, loss in enumerate(losses):
            watching.step(step, loss, 0.5)
        assert told(watching) == expected


def test_a_first_loss_far_from_chance(doctor: Make) -> None:
    for losses, remedy in ((28.0, "A smaller model.emb_dim"), (2.0, "sees the tokens that it is to predict")):
        watching = doctor()
        watching.before(losses, losses)
        assert told(watching) == [("first_loss", 0)]
        assert remedy in watching.findings[0].text
    other = doctor("model.init=pytorch")
    other.before(28.0, 28.0)
    assert "model.init=gpt2 begins near it" in other.findings[0].text
    loaded = doctor("init_from=gpt2")
    loaded.before(3.0, 3.0)
    assert told(loaded) == []


def test_clipping_on_most_steps(doctor: Make) -> None:
    watching = doctor("trainer.gradient_clip_val=0.5")
    for step in range(300):  # on three steps of four, then on none, then on all
        watching.step(step, 2.0, 0.2 if step % 4 == 0 or 150 <= step < 200 else 0.8)
    assert [sign for sign, _ in told(watching)] == ["clipping", "clipping"]
    assert told(watching)[0] == ("clipping", 79), "the first 40 norms, which are large in any run, do not count"
    assert "In 30 of the last 40 steps" in watching.findings[0].text
    assert "trainer.gradient_clip_val=2 would" in watching.findings[0].text
    off = doctor("trainer.gradient_clip_val=null")
    for step in range(200):
        off.step(step, 2.0, 100.0)
    assert told(off) == []


def test_waiting_for_batches(doctor: Make) -> None:
    watching = doctor("data.num_workers=2")
    for step, share in enumerate([0.1, 0.29, 0.5, 0.2, 0.6, 0.1, 0.4]):  # 0.2 is not clearly over
        watching.waited(step, 10 * share, 10.0)
    assert told(watching) == [("loading", 2), ("loading", 6)]
    assert "data.num_workers=4 (2 now)" in watching.findings[0].text


def test_what_is_not_a_number(doctor: Make) -> None:
    watching = doctor("trainer.precision=bf16-mixed")
    watching.nonfinite(10, "The loss is nan.")
    for step in range(10, 60):
        watching.step(step, 2.0, 0.5)
        if step in (12, 59):
            watching.nonfinite(step, "The loss is nan.")
    assert told(watching) == [("nonfinite", 10), ("nonfinite", 59)]
    assert "or trainer.precision=32-true (bf16-mixed now)" in watching.findings[0].text


def test_a_doctor_put_together_again_goes_on_as_if_nothing_had_been(doctor: Make) -> None:
    def day(watching: HealthMonitor, steps: range) -> None:
        chance = random.Random(steps.start)
        for step in steps:
            watching.step(step, (5.0 if step % 100 < 20 else 2.5) + chance.gauss(0, 0.2), chance.uniform(0.4, 1.8))
            if step % 5 == 0:
                watching.line(step, 2.5 - 0.003 * step, 2.5 + 0.001 * step)

    whole, parts = doctor(), [doctor() for _ in range(6)]
    before = {}
    for number, part in enumerate(parts):
        if before:
            part.load_state_dict(before)
        for watching in (whole, part):
            day(watching, range(number * 47, number * 47 + 47))
        before = part.state_dict()
    assert told(whole) == told(parts[-1])
    assert {"overfitting", "gap", "spike", "clipping"} <= {sign for sign, _ in told(whole)}
    assert whole.state_dict() == before


def test_what_is_kept_and_done_does_not_grow_with_the_run(doctor: Make) -> None:
    watching = doctor("eval_freq=1")

    def seconds(first: int, count: int) -> float:
        start = time.perf_counter()
        for step in range(first, first + count):
            watching.step(step, 2.0, 0.5)
        return (time.perf_counter() - start) / count

    for step in range(1000):
        watching.line(step, 2.0, 2.0)
    seconds(0, 1000)
    size = len(str(watching.state_dict()))
    cost = min(seconds(1000 + 2000 * n, 2000) for n in range(5))
    assert len(str(watching.state_dict())) == size
    assert cost < 1e-3, "a step of training takes milliseconds; this took some 10 microseconds where it was written"


def test_norms_that_are_not_known_are_not_judged(doctor: Make) -> None:
    watching = doctor()
    for step in range(100):
        watching.step(step, 2.0, None)
    assert told(watching) == []
