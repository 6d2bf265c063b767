import dataclasses
import math

import pytest

from gpt_pretrain.training.budget import plan
from gpt_pretrain.training.budget.amount import Budget
from gpt_pretrain.training.budget.law import Training, fitted_law
from gpt_pretrain.training.budget.own_law import MeasuredTraining, fit_own_law
from tests.helpers.budgets import DIFFICULTY, LAW, choose, conditions


def test_the_law_reproduces_its_pilot_and_falls_with_text_and_size():
    pilot = DIFFICULTY.pilot
    assert LAW.bits_per_byte(pilot, DIFFICULTY) == pytest.approx(DIFFICULTY.bits)
    more = dataclasses.replace(pilot, trained_bytes=500_000)
    larger = dataclasses.replace(pilot, matrices=800_000)
    repeated = dataclasses.replace(more, unique_bytes=125_000)
    assert LAW.bits_per_byte(more, DIFFICULTY) < LAW.bits_per_byte(repeated, DIFFICULTY) < DIFFICULTY.bits
    assert LAW.bits_per_byte(larger, DIFFICULTY) < DIFFICULTY.bits


def test_repeats_of_a_short_text_overfit():
    """Of 100 kB of code, read 20 times, a vocabulary of 2,048 learned less than one of 512; of 900 kB, read once, more."""
    law = fitted_law()
    often = [law.bits_per_byte(Training(3.3e5, size, 1e5, 2e6, length), DIFFICULTY) for size, length in ((512, 2.2), (2048, 3.8))]
    once = [law.bits_per_byte(Training(3.3e5, size, 1e6, 1e6, length), DIFFICULTY) for size, length in ((512, 2.2), (2048, 3.8))]
    assert often[0] < often[1] and once[0] > once[1]


def test_overfitting_grows_with_repeats_and_with_what_is_learned_per_token():
    read = Training(1e6, 2048, 1e6, 1e6, 3.5)
    assert LAW.overfitting(read) == 0
    repeated = dataclasses.replace(read, trained_bytes=1e7)
    more = [dataclasses.replace(repeated, matrices=2e6), dataclasses.replace(repeated, vocab_size=4096)]
    more += [dataclasses.replace(repeated, trained_bytes=2e7), dataclasses.replace(repeated, unique_bytes=5e5)]
    assert all(LAW.overfitting(one) > LAW.overfitting(repeated) > 0 for one in more)


def test_entries_of_any_vocabulary_overfit_as_far_as_the_text_has_them():
    repeated = Training(1e6, 4096, 1e6, 1e7, 3.5)
    typed = dataclasses.replace(repeated, vocab_size=8192)
    assert LAW.overfitting(typed) > LAW.overfitting(repeated)
    ready = dataclasses.replace(repeated, vocab_size=50_257, distinct_tokens=4096)
    assert LAW.overfitting(ready) == LAW.overfitting(repeated)
    short = [Training(1e5, 50_257, 20_000, 200_000, 4.0, distinct) for distinct in (200, 800, 1600)]
    assert LAW.overfitting(short[0]) < LAW.overfitting(short[1]) == LAW.overfitting(short[2])


def test_a_short_text_with_a_ready_vocabulary_has_an_interval_of_its_own():
    pilot = Training(98_304, 50_257, 20_000, 80_000, 4.0)
    text = dataclasses.replace(DIFFICULTY, pilot=pilot)
    low, high = dataclasses.replace(LAW, ready_error=0.03).interval(pilot, text)
    assert math.log(high / low) == pytest.approx(0.06)
    assert 0 < fitted_law().ready_error < 0.15


def test_the_interval_is_wider_where_nothing_was_measured():
    inside, outside = (dataclasses.replace(DIFFICULTY.pilot, matrices=size) for size in (1e6, 1e8))
    widths = [math.log(high / low) for low, high in (LAW.interval(one, DIFFICULTY) for one in (inside, outside))]
    assert widths[1] > 2 * widths[0]


def test_nothing_is_predicted_far_beyond_what_was_measured():
    near, far = (dataclasses.replace(DIFFICULTY.pilot, trained_bytes=size) for size in (9e7, 1.1e8))
    assert LAW.reaches(near) and not LAW.reaches(far)
    found = conditions(1_000_000, Budget())
    chosen = dataclasses.replace(choose(1_000_000, Budget(seconds=120.0)), training=far)
    assert "a loss that cannot be predicted" in plan.expectation(chosen, found, [], "time")
    assert "in nine of ten cases" in plan.expectation(dataclasses.replace(chosen, training=near), found, [], "time")


def test_nothing_is_predicted_with_a_large_vocabulary_of_the_text():
    chosen, found = choose(1_000_000, Budget(seconds=120.0)), conditions(1_000_000, Budget())
    large = dataclasses.replace(chosen, config=dataclasses.replace(chosen.config, vocab_size=8192))
    assert "cannot be predicted: the rules were not measured with a vocabulary of 8,192" in plan.expectation(
        large, found, [], "time"
    )
    ready = dataclasses.replace(found, text=dataclasses.replace(found.text, tokenizer="gpt2"))
    assert "cannot be predicted" not in plan.expectation(large, ready, [], "time")


def test_a_text_that_repeats_long_passages_has_no_interval():
    """The documentation of a program, once as Markdown and once as HTML, reached half of what the law expected."""
    chosen, found = choose(1_000_000, Budget(seconds=120.0)), conditions(1_000_000, Budget())
    assert "in nine of ten cases" in plan.expectation(chosen, found, [], "time")
    repetitive = dataclasses.replace(DIFFICULTY, ngrams={20_000: 4.1, 125_000: 2.2, 500_000: 1.5})
    assert LAW.is_repetitive(repetitive) and not LAW.is_repetitive(DIFFICULTY)
    found = dataclasses.replace(found, text=dataclasses.replace(found.text, difficulty=repetitive))
    assert "expect  less than" in plan.expectation(chosen, found, [], "time")


def test_the_stored_law_has_all_constants():
    law = fitted_law()
    assert set(law.constants) == set(LAW.constants)
    assert 0 < law.error(dataclasses.replace(DIFFICULTY.pilot, trained_bytes=500_000)) < law.error(DIFFICULTY.pilot) < 0.2


def test_little_is_expected_of_noise():
    noise = dataclasses.replace(DIFFICULTY, bits=6.01, ngrams={20_000: 7.4, 500_000: 6.9}, frequencies=6.0)
    larger = Training(1e6, 1024, 1e6, 4e6, 2.7)
    assert LAW.bits_per_byte(larger, noise) > 0.97 * 6.01
    assert LAW.bits_per_byte(larger, dataclasses.replace(noise, frequencies=9.0)) < 0.9 * 6.01
    assert dataclasses.replace(DIFFICULTY, frequencies=4.6).gain == 1.0
    assert 0 < dataclasses.replace(DIFFICULTY, frequencies=0.0).gain < 1


def test_a_small_model_gains_less_from_very_much_text():
    small, large = (dataclasses.replace(DIFFICULTY.pilot, matrices=size, unique_bytes=1e8) for size in (1e5, 1e7))

    def gain(one: Training) -> float:
        bits = [LAW.bits_per_byte(dataclasses.replace(one, trained_bytes=n), DIFFICULTY) for n in (1e7, 1e8)]
        return bits[0] / bits[1]

    assert gain(large) > gain(small) + 0.05


def test_whole_runs_are_predicted_by_their_own_factor_and_a_ladder_measures_its_own():
    pilot = DIFFICULTY.pilot
    better = dataclasses.replace(LAW, run_factor=0.9)
    assert better.bits_per_byte(pilot, DIFFICULTY) == pytest.approx(0.9 * LAW.bits_per_byte(pilot, DIFFICULTY))
    assert better.interval(pilot, DIFFICULTY)[0] == pytest.approx(0.9 * LAW.interval(pilot, DIFFICULTY)[0])
    ready = dataclasses.replace(DIFFICULTY, pilot=dataclasses.replace(pilot, vocab_size=50_257))
    assert better.bits_per_byte(ready.pilot, ready) == LAW.bits_per_byte(ready.pilot, ready), "not measured with them"
    measured = [MeasuredTraining(dataclasses.replace(pilot, trained_bytes=size), 2.2) for size in (2e5, 4e5)]
    own, plain = (fit_own_law(law, DIFFICULTY, measured) for law in (better, LAW))
    for one in measured:
        assert own.bits_per_byte(one.training, DIFFICULTY) == pytest.approx(2.2, rel=0.05)
        assert own.bits_per_byte(one.training, DIFFICULTY) == pytest.approx(
            plain.bits_per_byte(one.training, DIFFICULTY), rel=0.05
        )
