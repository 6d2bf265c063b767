"""The study of losses trains what it says, and its fit finds a known law."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest

from benchmarks.scaling.runs import describe_run, read_runs
from benchmarks.scaling.short_texts import short_texts
from benchmarks.scaling.texts import python_code, split_text
from benchmarks.scaling.trial import Trial, run_trial
from benchmarks.scaling.trials import all_trials
from gpt_pretrain.training.budget.law import Difficulty, Law, Training, fitted_law


def test_a_trial_trains_and_is_measured() -> None:
    text = split_text("numbers", "".join(f"{number} boats lay at the shore.\n" for number in range(1500)))
    found = run_trial(Trial("numbers", 20_000, 30_000, 300, 32, 1, batch=4, context=32), text)
    assert found["trained_bytes"] == pytest.approx(found["tokens"] * found["bytes_per_token"], rel=0.05)
    assert found["matrices"] == 12 * 32 * 32
    assert 0 < found["bits_per_byte"] < 2


def test_a_text_is_split_without_loss_and_has_no_more_than_it_has() -> None:
    text = split_text("one", "é" * 1000)
    assert text.text + text.held_out == "é" * 1000
    with pytest.raises(ValueError, match="has 1,800 bytes to train on, not 5,000"):
        text.training(5000)


def test_parts_of_a_short_text_are_held_out(tmp_path: Path) -> None:
    (tmp_path / "story.txt").write_text("".join(f"{number} boats.\n" for number in range(1000)), encoding="utf-8")
    found = short_texts({"story": tmp_path / "story.txt", "other": tmp_path / "story.txt"})
    assert "other" not in found
    held_out = found["story"].held_out
    assert len(held_out) == pytest.approx(0.25 * len(found["story"].text), abs=10)
    assert "90 boats." in held_out and "990 boats." in held_out and "950 boats." not in held_out


def test_no_trial_is_there_twice() -> None:
    assert len(set(all_trials())) == len(all_trials()) > 50


def test_the_study_takes_files_that_every_python_has() -> None:
    code = python_code(50_000)
    assert 49_900 < len(code.encode()) <= 50_000
    assert code == python_code(50_000)


@pytest.mark.slow
def test_the_interval_holds_nine_of_ten_results_of_texts_that_the_law_has_not_seen() -> None:
    pytest.importorskip("scipy")
    from benchmarks.scaling.fit import PILOTS, check_runs, leave_texts_out, read_cases, width

    cases = read_cases()
    left_out = leave_texts_out(cases)
    found = np.abs(np.concatenate([*left_out.values()]))
    read = np.array([case.difficulty.pilot.trained_bytes for text in left_out for case in cases if case.text == text])
    run_factor, run_error = check_runs(dataclasses.replace(fitted_law(), run_factor=1.0))
    assert fitted_law().run_factor == pytest.approx(run_factor, abs=0.001)
    for pilot in PILOTS:
        error = fitted_law().errors[pilot]
        assert max(width(cases, left_out, pilot), run_error) == pytest.approx(error, abs=0.005)
        assert np.mean(found[read == pilot] <= error) >= 0.9


def test_whole_runs_are_described_by_their_log(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("".join(f"{number} boats lay at the shore.\n" for number in range(2000)), encoding="utf-8")
    (tmp_path / "train.log").write_text(
        "model   1.8M parameters: 4 layers, 4 heads, emb_dim 128, context 128, vocabulary 1,024 (bpe-1024@5029d550692b)\n"
        "data    text.txt: 62,890 characters; 20,000 training tokens in 156 windows, 2,000 validation tokens in 15 windows\n"
        "Done: 2 epochs, 80 steps, 40,000 tokens seen in 9 s (5,000 tokens/s while training)\n"
        "Best validation loss: 3.469 nats per token (perplexity 32.1, 1.347 bits per byte), in epoch 2, step 79; last: 3.469\n",
        encoding="utf-8",
    )
    found = describe_run(tmp_path / "text.txt", tmp_path, budget="2m")
    training = Training(**found["training"])
    assert training.matrices == 12 * 4 * 128 * 128 and training.vocab_size == 1024
    assert training.passes == pytest.approx(2.0) and found["bits_per_byte"] == 1.347
    assert found["difficulty"]["pilot"]["unique_bytes"] == training.unique_bytes


def test_the_stored_law_predicts_the_runs_that_were_not_fitted() -> None:
    law, runs = fitted_law(), read_runs()
    within = [low <= reached <= high for _, one, text, reached in runs for low, high in [law.interval(one, text)]]
    repetitive = ["documentation of npm, as Markdown and as HTML", "changelogs of Debian packages, 350 kB"]  # without an interval
    assert [name for name, _, text, _ in runs if law.is_repetitive(text)] == repetitive
    assert sum(within) == len(runs) - len(repetitive)


def test_short_texts_with_a_ready_vocabulary_are_predicted_within_the_interval() -> None:
    pytest.importorskip("scipy")
    from benchmarks.scaling.fit import check_ready, errors, read_ready_cases

    law, cases = fitted_law(), read_ready_cases()
    assert len({case.text for case in cases}) >= 8
    assert check_ready(law) == pytest.approx(law.ready_error, abs=0.001)
    assert np.mean(np.abs(errors(law, cases)) <= law.ready_error) >= 0.9


def test_the_fit_finds_the_law_that_made_the_losses() -> None:
    pytest.importorskip("scipy")
    from benchmarks.scaling.fit import Case, errors, fit

    constants = {
        "a": 0.08,
        "alpha": 0.3,
        "b": 0.15,
        "beta": 0.25,
        "repeats": 3.0,
        "capacity": 50.0,
        "ngrams": 0.6,
        "vocabulary": 0.01,
        "vocabulary_fades": 0.2,
        "overfit_matrices": 1e-4,
        "overfit_vocabulary": 0.05,
    }
    law = Law(constants, {}, {})
    cases = []
    for level in (2.0, 2.6):
        difficulty = Difficulty(
            Training(98_304, 1024, 1e6, 125_000, 2.7), level, {20_000: 4.0, 125_000: 3.0, 1_000_000: 2.2 + level / 10}
        )
        for matrices, vocab_size in ((1e5, 1024), (3e5, 1024), (1e6, 1024), (3e5, 4096)):
            for unique, trained in ((1e6, 1e5), (1e6, 1e6), (1e5, 1e6), (2e5, 5e5)):
                training = Training(matrices, vocab_size, unique, trained, 2.7)
                cases.append(Case("text", training, difficulty, law.bits_per_byte(training, difficulty)))
    assert max(abs(errors(fit(cases), cases))) < 0.01


def test_the_results_belong_to_the_study() -> None:
    from benchmarks.scaling.__main__ import RESULTS, finished

    rows = [json.loads(line) for line in RESULTS.read_text(encoding="utf-8").splitlines()]
    assert len(finished()) == len(rows) >= 40
    assert all(0.5 < row["bits_per_byte"] < 8 and math.isfinite(row["cpu_seconds"]) for row in rows)
