import dataclasses
import itertools
import math
from collections.abc import Callable

import pytest
from omegaconf import DictConfig

from gpt_pretrain.config.conversion import to_settings
from gpt_pretrain.config.overrides import full_form
from gpt_pretrain.config.schema import TrainSettings
from gpt_pretrain.errors import UserError
from gpt_pretrain.training.budget import choice
from gpt_pretrain.training.budget.amount import Budget
from gpt_pretrain.training.budget.plan import decide, decided_settings
from gpt_pretrain.training.budget.typed import allowed_architectures, ready_tokenizer
from tests.helpers.budgets import DIFFICULTY, LAW, LIMITS, choose, conditions, text_of


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
        assert (
            choice.limit_of(chosen, {}, conditions(20_000, Budget(seconds=1e9), dataclasses.replace(limits, seconds=1e9)))
            == "text"
        )


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
    assert not list(choice.candidates(conditions(10**6, Budget(seconds=10.0), limits), configs=configs))


def test_a_full_disk_is_what_limits_the_model():
    chosen = choose(50_000_000, Budget(), dataclasses.replace(LIMITS, seconds=1e6))
    assert choice.fits(chosen, dataclasses.replace(LIMITS, disk=1 << 20)) == "disk"
    assert choice.fits(chosen, dataclasses.replace(LIMITS, memory=1 << 20)) == "memory"


def test_a_choice_beyond_the_study_must_be_clearly_better():
    studied = choose(1_000_000, Budget(seconds=100.0))
    assert studied.penalty == 1.0
    far = dataclasses.replace(studied, expected=studied.expected / 1.004, penalty=1.02, seconds=1.0)
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
    assert choice.limit_of(chosen, {}, conditions(50_000_000, Budget(tokens=1e6), limits)) == "the budget"
    assert choice.limit_of(chosen, {}, conditions(50_000_000, Budget(flops=1e30), limits)) == "text"
    timed = choose(50_000_000, Budget(seconds=120.0))
    assert choice.limit_of(timed, {}, conditions(50_000_000, Budget(seconds=120.0))) == "time"


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
                conditions(50_000_000, Budget(seconds=120.0), dataclasses.replace(LIMITS, devices=devices, sharing=devices)),
                configs=choice.architectures([1024]),
            )
        )
        for devices in (1, 2)
    )
    tokens = [max(one.steps * one.step_tokens for one in found) for found in (alone, shared)]
    assert tokens[1] == pytest.approx(tokens[0], rel=0.05)


def test_a_text_is_good_for_some_passes_only():
    for n_bytes in (20_000, 1_000_000, 50_000_000):
        found, chosen = conditions(n_bytes, Budget(seconds=120.0)), choose(n_bytes, Budget(seconds=120.0))
        law = dataclasses.replace(LAW, constants=dict(LAW.constants) | {"overfit_matrices": 0.0, "overfit_vocabulary": 0.0})
        passes = choice.longest_steps(chosen, dataclasses.replace(found, law=law)) * chosen.passes / chosen.steps
        assert passes == pytest.approx(max(choice.MOST_PASSES, chosen.passes), rel=0.1)
        noise = dataclasses.replace(found.text, difficulty=dataclasses.replace(DIFFICULTY, frequencies=2.5))
        assert choice.longest_steps(chosen, dataclasses.replace(found, text=noise)) == chosen.steps


def test_a_run_does_not_fill_its_budget_where_it_would_overfit():
    found, chosen = conditions(100_000, Budget(seconds=3600.0)), choose(100_000, Budget(seconds=60.0))
    steps = choice.longest_steps(chosen, found)
    factors = (1.0, steps / chosen.steps / 1.1, steps / chosen.steps, steps / chosen.steps * 1.1, 64.0)
    first, shorter, longest, longer, far = (
        LAW.bits_per_byte(dataclasses.replace(chosen.training, trained_bytes=chosen.training.trained_bytes * factor), DIFFICULTY)
        for factor in factors
    )
    assert longest < min(shorter, longer) and first < far
    assert steps > chosen.steps


@pytest.mark.parametrize(("batch", "devices"), [(16, 1), (None, 8), (8, 2)])
def test_a_tiny_text_is_read_often_enough_for_the_fewest_steps_of_any_size(batch: int | None, devices: int) -> None:
    text = dataclasses.replace(text_of(4_000), bytes_per_token={50_257: 4.2})
    found = dataclasses.replace(conditions(4_000, Budget(), dataclasses.replace(LIMITS, devices=devices)), text=text)
    lengths = [one.steps for one in choice.candidates(found, configs=choice.architectures([50_257]), batch=batch)]
    assert choice.MIN_STEPS <= max(lengths) <= 1.2 * choice.MIN_STEPS


def test_a_text_with_fewer_tokens_than_the_vocabulary_has_is_read_less_often():
    text = dataclasses.replace(text_of(20_000), bytes_per_token={50_257: 4.2})
    assert text.most_passes(50_257) == choice.FEW_TOKENS_PASSES < choice.MOST_PASSES
    found = choice.candidates(
        dataclasses.replace(conditions(20_000, Budget()), text=text), configs=choice.architectures([50_257])
    )
    assert max(one.passes for one in found) <= choice.FEW_TOKENS_PASSES
    tiny = dataclasses.replace(text, train_bytes=2000)
    assert 1 < tiny.most_passes(50_257) * 2000 / 4.2 / (choice.MIN_STEPS * choice.SMALLEST_STEP) < 1.2
    assert dataclasses.replace(text, train_bytes=200).most_passes(50_257) == choice.MOST_PASSES
    assert (
        text_of(20_000).most_passes(512)
        == dataclasses.replace(text, train_bytes=300_000).most_passes(50_257)
        == choice.MOST_PASSES
    )


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ([], "gpt2"),
        (["tokenizer.vocab_size=512"], None),
        (["model=tiny", "tokenizer.vocab_size=512"], None),
        (["tokenizer=bpe"], None),
        (["tokenizer=byte"], "byte"),
    ],
)
def test_a_ready_tokenizer_is_taken_unless_a_size_or_bpe_is_typed(
    typed: list[str], name: str | None, compose_train: Callable[..., DictConfig]
) -> None:
    settings = to_settings(compose_train(*typed, "budget=10s"), TrainSettings)
    overridden = {full_form(override, script="train").partition("=")[0] for override in typed}
    tokenizer = ready_tokenizer(settings, overridden)
    assert (None if tokenizer is None else tokenizer.name) == name


def test_the_reason_for_a_ready_tokenizer_is_true_for_the_kind_of_model() -> None:
    text = dataclasses.replace(text_of(1_000_000), tokenizer="gpt2")
    chosen = choose(1_000_000, Budget(seconds=120.0))
    older = dataclasses.replace(chosen, config=dataclasses.replace(chosen.config, kind="gpt2", init="gpt2"))
    for one, reason in ((chosen, "a short text alone makes a vocabulary of few words"), (older, "usual for model.kind=gpt2")):
        assert decided_settings(one, text, "time")["tokenizer.name"].reason.endswith(f"bytes per token; {reason}")


def test_a_run_uses_its_budget_as_far_as_its_text_is_good_for_it():
    limits = dataclasses.replace(LIMITS, seconds=600.0)
    chosen = choose(100_000, Budget(seconds=600.0), limits)
    filled = choice.filled(chosen, conditions(100_000, Budget(seconds=600.0), limits))
    assert chosen.seconds < 0.5 * 600
    assert filled.steps > chosen.steps and filled.seconds <= 600 and filled.passes <= 64.1
    assert filled.expected <= chosen.expected
    endless = dataclasses.replace(limits, seconds=math.inf)
    auto = conditions(100_000, Budget(), endless)
    assert choice.filled(chosen, auto).steps == choice.longest_steps(chosen, auto) > chosen.steps
    tokens = 1.2 * chosen.steps * chosen.step_tokens
    found = choice.filled(chosen, conditions(100_000, Budget(tokens=tokens), endless))
    assert chosen.steps < found.steps <= tokens / chosen.step_tokens
    assert choice.filled(chosen, conditions(100_000, Budget(tokens=tokens / 2), endless)) is chosen


@pytest.mark.parametrize(
    ("left", "message"),
    [
        (0.01, r"smallest model: the start, with reading the text and measuring, takes 10\.0 s, so 0\.0 s are left\. Give"),
        (-2.5, r"smallest model: the start, with reading the text and measuring, takes 12\.5 s\. Give a larger budget\."),
    ],
)
def test_a_budget_that_the_start_uses_up_is_refused_with_the_time_of_the_start(left: float, message: str) -> None:
    limits = dataclasses.replace(LIMITS, seconds=left)
    with pytest.raises(UserError, match="budget='10s' is too small for 20 optimizer steps of the " + message):
        decide(TrainSettings(budget="10s"), set(), conditions(1_000_000, Budget(seconds=10.0), limits))


def test_a_run_that_is_lengthened_to_the_end_of_its_time_is_limited_by_time(compose_train: Callable[..., DictConfig]) -> None:
    found = conditions(100_000, Budget(seconds=40.0), dataclasses.replace(LIMITS, seconds=40.0))
    chosen = choose(100_000, Budget(seconds=40.0), found.limits)
    assert choice.limit_of(chosen, {}, found) == "text"
    lines = decide(to_settings(compose_train("budget=40s"), TrainSettings), set(), found)["lines"]
    assert sum(line.endswith("limited by time") for line in lines) == 2


def test_typed_tables_belong_to_all_models_of_a_budget_and_are_named_as_unstudied(
    compose_train: Callable[..., DictConfig],
) -> None:
    typed = ["model.value_embeddings=true", "model.bigram_rows=4096"]
    settings = to_settings(compose_train("budget=40s", *typed), TrainSettings)
    found = conditions(1_000_000, Budget(seconds=40.0), dataclasses.replace(LIMITS, seconds=40.0))
    overridden = {"model.value_embeddings", "model.bigram_rows"}
    configs = allowed_architectures(settings, overridden, found.text)
    assert len(configs) > 1 and {(one.value_embeddings, one.bigram_rows) for one in configs} == {(True, 4096)}
    lines = decide(settings, overridden, found)["lines"]
    assert any("not measured with model.value_embeddings=true, model.bigram_rows=4096" in line for line in lines)
