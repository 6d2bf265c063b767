import dataclasses
import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest

from gpt_pretrain.config.schema import DataSettings, SchedulerSettings
from gpt_pretrain.errors import UserError
from gpt_pretrain.model.costs import matmul_parameters
from gpt_pretrain.tokenizers.build import build_tokenizer
from gpt_pretrain.training import muon
from gpt_pretrain.training.budget import choice, pilot, text_facts, typed
from gpt_pretrain.training.budget.amount import Budget, parse_budget
from gpt_pretrain.training.budget.law import Difficulty, Law, Training, fitted_law
from gpt_pretrain.training.budget.ngrams import frequency_bits, ngram_bits
from gpt_pretrain.training.budget.pace import Pace, read_points
from gpt_pretrain.training.budget.published import published_choice
from gpt_pretrain.training.budget.speed import Speed
from gpt_pretrain.training.callbacks.budget import KeepBudget, RecentLoad
from gpt_pretrain.training.schedule import lr_at
from gpt_pretrain.training.starting_point import _stored_pace

LAW = Law(
    {"a": 0.06, "alpha": 0.24, "b": 0.12, "beta": 0.2, "repeats": 3.5, "ngrams": 0.68, "vocabulary": 0.0},
    error=0.07,
    largest={"matrices": 1e6, "unique_bytes": 1e6, "trained_bytes": 1e6},
)
DIFFICULTY = Difficulty(Training(98_304, 1024, 1e6, 125_000), 2.6, {20_000: 4.1, 125_000: 3.0, 500_000: 2.5})
SPEED = Speed((1e6, 1e8), (2e10, 2e10), fixed=5e-3)
LIMITS = choice.Limits(seconds=120.0, memory=8 << 30, disk=8 << 30)


def text_of(n_bytes: int) -> choice.TextFacts:
    return choice.TextFacts(n_bytes, {512: 2.1, 1024: 2.7, 2048: 3.2, 4096: 3.6}, DIFFICULTY)


def choose(n_bytes: int, budget: Budget, limits: choice.Limits = LIMITS) -> choice.Candidate:
    configs = choice.architectures([512, 1024, 2048, 4096])
    found = list(choice.candidates(text_of(n_bytes), budget, limits, SPEED, LAW, configs=configs))
    return choice.best_of([one for one in found if choice.fits(one, limits) is None])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("90s", Budget(seconds=90)),
        ("20m", Budget(seconds=1200)),
        ("20 min", Budget(seconds=1200)),
        ("1.5h", Budget(seconds=5400)),
        ("2d", Budget(seconds=172800)),
        ("2hours", Budget(seconds=7200)),
        ("1h30m", Budget(seconds=5400)),
        ("20m5s", Budget(seconds=1205)),
        ("1:30:00", Budget(seconds=5400)),
        ("100M tokens", Budget(tokens=1e8)),
        ("1 billion tokens", Budget(tokens=1e9)),
        ("1 PFLOP", Budget(flops=1e15)),
        ("Auto", Budget()),
        ("1e9 tokens", Budget(tokens=1e9)),
        ("1E9 Tokens", Budget(tokens=1e9)),
        ("1e+15flops", Budget(flops=1e15)),
        ("auto", Budget()),
    ],
)
def test_a_budget_is_read(text, expected):
    assert parse_budget(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "20",
        "m",
        "-5m",
        "0s",
        "nan s",
        "1e99 tokens",
        "9999d",
        "20 m 5",
        "20M",
        "5m20m",
        "1:30",
        "٣m",
        "1e9",
        "tokens",
        "0 tokens",
        "1e400s",
    ],
)
def test_what_is_no_budget_is_refused(text):
    with pytest.raises(UserError, match="budget="):
        parse_budget(text)


def test_the_rate_has_no_jump_where_the_plan_changes():
    settings = SchedulerSettings(name="warmup_stable_decay", warmup_steps=0, decay_steps=0, decay_fraction=0.75, min_lr=0.0)
    pace = Pace(100)

    def rate(step: int) -> float:
        return lr_at(pace.scheduled_step(step), lr=1.0, settings=settings, total_steps=pace.total)

    before = [rate(step) for step in range(60)]
    pace.replan(60, 240)
    after = [rate(step) for step in range(60, 240)]
    assert [rate(step) for step in range(60)] == before
    assert 0 < before[-1] - after[0] < 0.02
    assert all(first >= second for first, second in itertools.pairwise(after))
    assert after[-1] < 0.01
    assert pace.last_step == 240


def test_a_plan_without_changes_is_the_usual_schedule():
    assert [Pace(50).scheduled_step(step) for step in range(50)] == pytest.approx(list(range(50)))


def test_stored_plans_are_restored_and_others_refused():
    pace = Pace(100)
    pace.replan(10, 80)
    pace.replan(40, 45)
    stored = [list(point) for point in pace.points]
    points = read_points(stored)
    assert points == pace.points
    restored = Pace(points[0][2], points)
    assert [restored.progress(step) for step in range(46)] == [pace.progress(step) for step in range(46)]
    for wrong in (
        None,
        [],
        "abc",
        [[0, 0.0]],
        [[0, 0.0, 0]],
        [[0, 0.5, 10]],
        [[0, 0.0, 10], [5, math.nan, 9]],
        [[0, 0.0, 10**15]],
    ):
        assert read_points(wrong) is None
    assert read_points([[0, 0.0, 10], [5, 0.5, 9], [3, 0.6, 9]]) is None
    assert read_points([[0, 0.0, 10]] * 2000) is None


def test_more_time_never_raises_the_expected_loss():
    losses = [
        choose(1_000_000, Budget(seconds=s), dataclasses.replace(LIMITS, seconds=s)).expected for s in (20.0, 60.0, 300.0, 3600.0)
    ]
    assert all(later <= earlier * choice.ENOUGH for earlier, later in itertools.pairwise(losses))
    assert losses[-1] < 0.95 * losses[0]


def test_a_choice_keeps_to_the_time_and_to_tokens():
    for seconds in (20.0, 300.0, 7200.0):
        chosen = choose(1_000_000, Budget(seconds=seconds), dataclasses.replace(LIMITS, seconds=seconds))
        assert chosen.seconds <= seconds * 1.0001
    chosen = choose(1_000_000, Budget(tokens=1e6), dataclasses.replace(LIMITS, seconds=math.inf))
    assert chosen.steps * chosen.batch * chosen.config.context_length <= 1e6


def test_the_batch_suits_the_tokens_that_there_is_time_for():
    for seconds in (10.0, 100.0, 1000.0):
        chosen = choose(50_000_000, Budget(seconds=seconds), dataclasses.replace(LIMITS, seconds=seconds))
        tokens = chosen.steps * chosen.step_tokens
        assert choice.batch_of(tokens) / 2 <= chosen.batch <= 2 * choice.batch_of(tokens)
        assert chosen.steps > 100


def test_little_text_is_not_read_for_ever():
    for limits in (LIMITS, dataclasses.replace(LIMITS, seconds=math.inf)):
        chosen = choose(20_000, Budget(seconds=limits.seconds), limits)
        assert chosen.passes < 30
        assert choice.limit_of(chosen, {}, dataclasses.replace(limits, seconds=1e9), Budget(seconds=1e9)) == "text"


def test_what_does_not_fit_is_not_chosen():
    little = dataclasses.replace(LIMITS, seconds=1e6, memory=150 << 20)
    assert (
        choose(50_000_000, Budget(), little).training.matrices
        < choose(50_000_000, Budget(), dataclasses.replace(LIMITS, seconds=1e6)).training.matrices
    )


@pytest.mark.parametrize("seconds", [0.01, 0.0, -3.0])
def test_a_budget_of_no_step_has_no_candidate(seconds):
    limits = dataclasses.replace(LIMITS, seconds=seconds)
    configs = choice.architectures([1024])
    assert not list(choice.candidates(text_of(10**6), Budget(seconds=10.0), limits, SPEED, LAW, configs=configs))


def test_the_law_reproduces_its_pilot_and_falls_with_text_and_size():
    pilot = DIFFICULTY.pilot
    assert LAW.bits_per_byte(pilot, DIFFICULTY) == pytest.approx(DIFFICULTY.bits)
    more = dataclasses.replace(pilot, trained_bytes=500_000)
    larger = dataclasses.replace(pilot, matrices=800_000)
    repeated = dataclasses.replace(more, unique_bytes=125_000)
    assert LAW.bits_per_byte(more, DIFFICULTY) < LAW.bits_per_byte(repeated, DIFFICULTY) < DIFFICULTY.bits
    assert LAW.bits_per_byte(larger, DIFFICULTY) < DIFFICULTY.bits


def test_the_interval_is_wider_where_nothing_was_measured():
    inside, outside = (dataclasses.replace(DIFFICULTY.pilot, matrices=size) for size in (1e6, 1e8))
    widths = [math.log(high / low) for low, high in (LAW.interval(one, DIFFICULTY) for one in (inside, outside))]
    assert widths[1] > 2 * widths[0]


def test_the_stored_law_has_all_constants():
    law = fitted_law()
    assert set(law.constants) == set(LAW.constants)
    assert 0 < law.error < 0.2


def test_counted_ngrams_predict_a_repeated_text_and_not_noise():
    noise = np.random.default_rng(1).integers(0, 256, 20_000, dtype=np.uint8).tobytes()
    assert ngram_bits(b"hello world, " * 1000, b"hello world, " * 50) < 0.2
    assert ngram_bits(noise[:15_000], noise[15_000:]) > 7.5
    assert ngram_bits(b"a", b"b") > 0


def run_with_clock(
    seconds: float,
    step_seconds,
    *,
    planned: int,
    longest: int | None = None,
    epoch_steps: int = 10**9,
    end: float = 0.0,
    validated: float = 0.0,
    cores=None,
) -> tuple[int, float]:
    """Let the callback end a run whose steps take step_seconds(step), and return its steps and seconds.

    Args:
        end: Seconds of the end of an epoch.
        validated: Steps' worth of tokens that are validated there.
        cores: Share of a processor that the process gets, by the time.
    """
    clock = SimpleNamespace(time=0.0)
    pace = Pace(planned)
    clock.work = 0.0
    keep = KeepBudget(
        pace,
        seconds=seconds,
        began=0.0,
        longest=longest,
        validated=validated,
        now=lambda: clock.time,
        worked=lambda: clock.work if cores else clock.time,
    )
    trainer = SimpleNamespace(global_step=0, should_stop=False, is_last_batch=False)
    module = SimpleNamespace(ends_step=lambda batch_idx: True)
    clock.time = 5.0  # the start of the program
    keep.on_train_start(trainer, module)
    while not trainer.should_stop:
        keep.on_train_batch_start(trainer, module, None, 0)
        clock.time += (taken := step_seconds(trainer.global_step))
        clock.work += taken * (cores(clock.time) if cores else 1.0)
        trainer.global_step += 1
        trainer.is_last_batch = trainer.global_step % epoch_steps == 0
        keep.on_train_batch_end(trainer, module, None, None, 0)
        if trainer.is_last_batch and not trainer.should_stop:
            clock.time += end
    return trainer.global_step, clock.time, pace.progress(trainer.global_step)


@pytest.mark.parametrize("factor", [0.3, 1.0, 4.0])
def test_a_run_ends_in_time_with_a_finished_schedule_whatever_was_planned(factor):
    _steps, spent, progress = run_with_clock(120.0, lambda step: 0.05, planned=int(factor * 2200))
    assert 0.93 * 120 < spent <= 120
    assert progress > 0.97


def test_a_short_text_does_not_fill_a_long_time():
    steps, spent, progress = run_with_clock(1200.0, lambda step: 0.05, planned=300, longest=300)
    assert (steps, progress) == (300, 1.0)
    assert spent < 30
    steps, _, _ = run_with_clock(120.0, lambda step: 0.01, planned=2000, longest=5000)  # the machine is faster than it seemed
    assert steps == 5000


def test_a_resumed_run_knows_where_its_text_ends():
    first = KeepBudget(Pace(100), seconds=120.0, began=0.0, longest=130, now=lambda: 1.0, worked=lambda: 1.0)
    second = KeepBudget(Pace(1), seconds=120.0, began=0.0)
    second.load_state_dict(first.state_dict())
    assert second.longest == 130
    state = first.state_dict()
    del state["longest"]  # as in checkpoints of earlier versions
    third = KeepBudget(Pace(1), seconds=120.0, began=0.0)
    third.load_state_dict(state)
    assert third.longest is None


@pytest.mark.parametrize("change", [0.5, 3.0])
def test_a_machine_that_changes_its_speed_is_followed(change):
    _, spent, progress = run_with_clock(300.0, lambda step: 0.05 * (change if step > 2000 else 1.0), planned=5500)
    assert 0.93 * 300 < spent <= 300
    assert progress > 0.9


def test_the_ends_of_epochs_count():
    _, spent, progress = run_with_clock(200.0, lambda step: 0.05, planned=3800, epoch_steps=100, end=2.0)
    assert 0.9 * 200 < spent <= 200 - 2.0
    assert progress > 0.95


def test_a_resumed_run_goes_on_with_what_is_left():
    clock = SimpleNamespace(time=70.0)
    first = KeepBudget(Pace(100), seconds=120.0, began=0.0, now=lambda: clock.time, worked=lambda: 1.0)
    state = first.state_dict()
    second = KeepBudget(Pace(1), seconds=120.0, began=1000.0, now=lambda: 1010.0, worked=lambda: 1.0)
    second.load_state_dict(state)
    assert second.elapsed() == 80.0
    assert second.pace.last_step == 100


@pytest.mark.parametrize(
    "state", [{}, {"points": [[0, 0.0, 5]]}, {"points": [[0, 0.0, 5]], "spent": -1.0}, {"points": 3, "spent": 1.0}], ids=range(4)
)
def test_a_damaged_plan_is_refused(state):
    with pytest.raises(UserError, match="plan of the budget"):
        KeepBudget(Pace(1), seconds=1.0, began=0.0).load_state_dict(state)


def test_a_first_validation_at_the_end_of_the_run_is_kept_time_for():
    _, spent, progress = run_with_clock(200.0, lambda step: 0.05, planned=3800, validated=500)
    assert 200 - 2.0 * 500 * 0.05 < spent < 200 - 0.3 * 500 * 0.05
    assert progress > 0.95


def test_more_time_is_kept_for_the_end_if_the_machine_became_busy_late():
    step_seconds = lambda step: 0.05 if step < 1500 else 0.25  # noqa: E731
    _, spent, _ = run_with_clock(200.0, step_seconds, planned=3800, cores=lambda moment: 1.0 if moment < 80.0 else 0.2)
    assert 200 - 20 < spent <= 200 - 4 * 1.6


def test_the_load_is_that_of_the_last_seconds():
    load = RecentLoad(4.0)
    for moment, worked in ((0.0, 0.0), (100.0, 100.0), (101.0, 100.2), (104.0, 100.8)):
        load.watch(moment, worked)
    assert load.slowness == pytest.approx(5.0)
    for moment, worked in ((108.0, 104.8), (112.0, 108.8)):
        load.watch(moment, worked)
    assert load.slowness == 1.0
    load.watch(1000.0, 108.9)
    assert load.slowness == 12.0


TEXT = "".join(f"{number} boats lay at the shore, and {number * number % 89} more came.\n" for number in range(3000))


def test_a_pilot_without_time_is_short_and_says_so():
    tokenizer = build_tokenizer("byte")
    small, bits = pilot.run_pilot(tokenizer, TEXT[:100_000], TEXT[100_000:110_000], unique_bytes=100_000, seconds=0.0)
    assert small.trained_bytes == pilot.FEWEST_STEPS * pilot.BATCH * pilot.CONTEXT
    assert 1.0 < bits < 8.0


def test_counting_stops_where_time_is_short():
    assert len(text_facts.counted(TEXT, TEXT[:5000])) == 3
    assert [*text_facts.counted(TEXT, TEXT[:5000], seconds=0.0)] == [20_000]


def test_a_sample_comes_from_all_parts_of_a_text():
    text = "".join(chr(ord("a") + number // 1000) for number in range(16_000))
    assert set(text_facts.spread(text, 4000)) == set(text)
    assert len(text_facts.spread(text, 4000)) == 4000
    assert text_facts.spread(text, 20_000) == text


def test_measuring_alone_does_not_wait_for_other_ranks(monkeypatch):
    monkeypatch.delattr(muon, "_orthogonalize_together")
    tokenizer = build_tokenizer("byte")
    pilot.run_pilot(tokenizer, TEXT[:20_000], TEXT[20_000:22_000], unique_bytes=20_000, seconds=0.0)


@pytest.mark.parametrize(
    ("name", "words", "expected"),
    [
        ("trainer.max_steps", {"trainer"}, False),
        ("data.batch_size", {"data"}, False),
        ("data.batch_size", {"data.batch_size"}, True),
        ("model.emb_dim", {"model"}, True),
        ("optimizer.head.weight_decay", {"optimizer"}, True),
        ("eval_freq", set(), False),
    ],
    ids=range(6),
)
def test_what_counts_as_typed(name, words, expected):
    assert typed.is_typed(name, words) is expected


def stored(**state) -> dict:
    return {
        "config": {"budget": state.pop("budget", "20m")},
        "callbacks": {"KeepBudget": {"points": [[0, 0.0, 50]], "spent": 60.0, "ended": False} | state},
    }


def test_a_resumed_run_may_get_another_time():
    assert _stored_pace("20m", stored()).last_step == 50
    assert _stored_pace("40m", stored()).last_step == 50
    assert _stored_pace("auto", stored(budget="auto")).last_step == 50


@pytest.mark.parametrize(
    ("typed", "content", "message"),
    [
        ("50s", stored(), "has spent 1 min 0 s already"),
        ("1e6 tokens", stored(), "only a time can be changed"),
        ("2e6 tokens", stored(budget="1e6 tokens"), "only a time can be changed"),
        ("20m", stored(spent=None), "is damaged"),
        ("20m", stored(spent=math.nan), "is damaged"),
        ("20m", {"config": {}, "callbacks": {}}, "a setting of a whole run"),
    ],
    ids=range(6),
)
def test_a_budget_that_a_resumed_run_cannot_have_is_refused(typed, content, message):
    with pytest.raises(UserError, match=message):
        _stored_pace(typed, content)


def test_a_full_disk_is_what_limits_the_model():
    chosen = choose(50_000_000, Budget(), dataclasses.replace(LIMITS, seconds=1e6))
    assert choice.fits(chosen, dataclasses.replace(LIMITS, disk=1 << 20)) == "disk"
    assert choice.fits(chosen, dataclasses.replace(LIMITS, memory=1 << 20)) == "memory"


def test_a_run_that_no_longer_improves_decays_and_ends():
    def validate(keep, losses, *, per_epoch=100):
        for number, loss in enumerate(losses, start=1):
            trainer = SimpleNamespace(global_step=number * per_epoch, sanity_checking=False)
            keep.on_validation_end(trainer, SimpleNamespace(val_loss=loss))

    keep = KeepBudget(Pace(5000), seconds=math.inf, began=0.0, while_useful=True)
    validate(keep, [5.0, 4.0, 3.999, 4.1])
    assert keep.pace.last_step == 5000
    again = KeepBudget(Pace(1), seconds=math.inf, began=0.0, while_useful=True)
    again.load_state_dict(keep.state_dict())
    again.on_validation_end(SimpleNamespace(global_step=500, sanity_checking=False), SimpleNamespace(val_loss=4.0))
    assert again.pace.last_step == 550
    assert again.pace.progress(500) == pytest.approx(0.1)
    assert again.pace.progress(550) == 1.0
    timed = KeepBudget(Pace(5000), seconds=60.0, began=0.0)
    validate(timed, [4.0, 4.0, 4.0, 4.0, 4.0])
    assert timed.pace.last_step == 5000


def test_a_choice_beyond_the_study_must_be_clearly_better():
    studied = choose(1_000_000, Budget(seconds=100.0))
    assert studied.doubt == 1.0
    far = dataclasses.replace(studied, expected=studied.expected / 1.004, doubt=1.02, seconds=1.0)
    assert choice.best_of([studied, far]) is studied
    better = dataclasses.replace(far, expected=studied.expected / 1.1)
    assert choice.best_of([studied, better]) is better


def test_a_step_has_as_many_tokens_with_longer_windows():
    for tokens in (10_000, 1e6, 1e8):
        assert choice.batch_of(tokens, 1024) * 1024 == pytest.approx(choice.batch_of(tokens) * 128, rel=0.01, abs=600)
    assert choice.batch_of(1.0, 4096) == 1


def test_a_budget_of_tokens_is_what_limits_a_run():
    limits = dataclasses.replace(LIMITS, seconds=math.inf)
    chosen = choose(50_000_000, Budget(tokens=1e6), limits)
    assert choice.limit_of(chosen, {}, limits, Budget(tokens=1e6)) == "the budget"
    assert choice.limit_of(chosen, {}, limits, Budget(flops=1e30)) == "text"
    timed = choose(50_000_000, Budget(seconds=120.0))
    assert choice.limit_of(timed, {}, LIMITS, Budget(seconds=120.0)) == "time"


def test_dropout_and_processes_on_one_machine_count_for_the_memory():
    read_once = choose(50_000_000, Budget(seconds=120.0))
    training = dataclasses.replace(read_once.training, unique_bytes=read_once.training.trained_bytes / 20)
    often = dataclasses.replace(read_once, training=training)
    least = min(size for size in range(1, 4000) if choice.fits(read_once, dataclasses.replace(LIMITS, memory=size << 20)) is None)
    assert choice.fits(often, dataclasses.replace(LIMITS, memory=least << 20)) == "memory"
    assert choice.fits(read_once, dataclasses.replace(LIMITS, memory=least << 20, devices=2)) == "memory"


def test_processes_that_share_a_processor_are_not_faster_together():
    alone, shared = (
        list(
            choice.candidates(
                text_of(50_000_000),
                Budget(seconds=120.0),
                dataclasses.replace(LIMITS, devices=devices, sharing=devices),
                SPEED,
                LAW,
                configs=choice.architectures([1024]),
            )
        )
        for devices in (1, 2)
    )
    tokens = [max(one.steps * one.step_tokens for one in found) for found in (alone, shared)]
    assert tokens[1] == pytest.approx(tokens[0], rel=0.05)


def test_little_is_expected_of_noise():
    noise = dataclasses.replace(DIFFICULTY, bits=6.01, ngrams={20_000: 7.4, 500_000: 6.9}, frequencies=6.0)
    larger = Training(1e6, 1024, 1e6, 4e6)
    assert LAW.bits_per_byte(larger, noise) > 0.97 * 6.01
    assert LAW.bits_per_byte(larger, dataclasses.replace(noise, frequencies=9.0)) < 0.9 * 6.01
    assert dataclasses.replace(DIFFICULTY, frequencies=4.6).gain == 1.0
    assert 0 < dataclasses.replace(DIFFICULTY, frequencies=0.0).gain < 1


def test_frequencies_of_bytes_are_their_entropy():
    assert frequency_bits(b"abcd" * 50_000, b"abcd" * 10) == pytest.approx(2.0, abs=0.02)
    assert 8 <= frequency_bits(b"", b"x") < 8.1


GPU = choice.Limits(seconds=3600.0, memory=70 << 30, disk=1 << 40, device="cuda", precision="bf16-mixed")
FAST = Speed((1e7, 1e9), (1e14, 2e14))


def test_published_rules_choose_for_budgets_far_beyond_the_study():
    found = published_choice(text_of(20_000_000_000), Budget(seconds=3600.0), GPU, FAST, LAW)
    assert found is not None and found.config.n_layers >= 8
    parameters = matmul_parameters(found.config)
    assert 12 * parameters <= found.steps * found.step_tokens < 40 * parameters
    assert found.seconds <= 3600.0
    assert found.step_tokens == found.batch * found.accumulate * 1024
    assert 2**17 <= found.step_tokens <= 2**20
    assert found.lr_factor == pytest.approx(math.sqrt(found.step_tokens / 2**19))


@pytest.mark.parametrize(
    ("n_bytes", "budget", "limits", "speed"),
    [
        (20_000_000_000, Budget(seconds=7200.0), dataclasses.replace(LIMITS, seconds=7200.0), SPEED),
        (5_000_000, Budget(seconds=3600.0), GPU, FAST),
        (20_000_000_000, Budget(), dataclasses.replace(GPU, seconds=math.inf), FAST),
        (20_000_000_000, Budget(seconds=3600.0), dataclasses.replace(GPU, memory=100 << 20), FAST),
        (20_000_000_000, Budget(seconds=3600.0), dataclasses.replace(GPU, seconds=-1.0), FAST),
    ],
    ids=["slow", "little text", "auto", "little memory", "no time"],
)
def test_published_rules_are_not_for_less(n_bytes, budget, limits, speed):
    assert published_choice(text_of(n_bytes), budget, limits, speed, LAW) is None


@pytest.mark.parametrize("text", ["a", "ab", "short text"], ids=range(3))
def test_a_text_too_short_to_be_described_is_refused(tmp_path, text):
    (tmp_path / "text.txt").write_text(text)
    settings = DataSettings(
        name="text", path=str(tmp_path / "text.txt"), url=None, sha256=None, cache_dir=str(tmp_path), train_ratio=0.9
    )
    with pytest.raises(UserError, match="too few to learn from"):
        text_facts.describe_text(settings, [512])


def test_a_start_that_takes_the_whole_time_is_said(caplog):
    steps, _, progress = run_with_clock(5.5, lambda step: 0.2, planned=400)
    assert steps == 1 and progress < 0.1
    assert "The time ended at 0% of the schedule" in caplog.text and "5.0 s had passed before the first step" in caplog.text
    caplog.clear()
    run_with_clock(120.0, lambda step: 0.05, planned=2200)
    assert not caplog.text


def test_a_text_is_good_for_some_passes_only():
    for n_bytes in (20_000, 1_000_000, 50_000_000):
        chosen = choose(n_bytes, Budget(seconds=120.0))
        passes = choice.longest_steps(chosen, DIFFICULTY) * chosen.passes / chosen.steps
        assert passes == pytest.approx(max(choice.MOST_PASSES, chosen.passes), rel=0.02)
        noise = dataclasses.replace(DIFFICULTY, frequencies=min(DIFFICULTY.ngrams.values()))
        assert choice.longest_steps(chosen, noise) == chosen.steps


def test_a_run_uses_its_budget_as_far_as_its_text_is_good_for_it():
    limits, text = dataclasses.replace(LIMITS, seconds=600.0), text_of(100_000)
    chosen = choose(100_000, Budget(seconds=600.0), limits)
    filled = choice.filled(chosen, text, Budget(seconds=600.0), limits, LAW)
    assert chosen.seconds < 0.5 * 600
    assert filled.steps > chosen.steps and filled.seconds <= 600 and filled.passes <= 64.1
    assert filled.expected <= chosen.expected
    endless = dataclasses.replace(limits, seconds=math.inf)
    assert choice.filled(chosen, text, Budget(), endless, LAW).passes == pytest.approx(64, rel=0.02)
    tokens = 1.2 * chosen.steps * chosen.step_tokens
    found = choice.filled(chosen, text, Budget(tokens=tokens), endless, LAW)
    assert chosen.steps < found.steps <= tokens / chosen.step_tokens
    assert choice.filled(chosen, text, Budget(tokens=tokens / 2), endless, LAW) is chosen
