"""Fit the law of expected losses to the study's results, and check it on texts and whole runs that it was not fitted to.

python -m benchmarks.scaling.fit prints the constants, their spread and the checks; --write stores them in law.json.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import least_squares  # type: ignore[import-untyped]

from benchmarks.scaling.runs import read_runs
from benchmarks.scaling.trial import GPT2_TOKENS
from benchmarks.scaling.trials import PILOTS, SHAPES, VOCAB, batch_of, usual_regularization
from gpt_pretrain.training.budget import law as law_module
from gpt_pretrain.training.budget.law import STUDIED_VOCABULARY, Difficulty, Law, Training

RESULTS, TEXTS = (Path(__file__).with_name(name) for name in ("results.jsonl", "texts.json"))
TABLE = Path(law_module.__file__).with_name(law_module.TABLE)
# The initial value of each constant. All except the free ones are fitted as logarithms, since they are positive.
START = {
    "a": 0.1,
    "alpha": 0.35,
    "b": 0.2,
    "beta": 0.35,
    "repeats": 1.0,
    "capacity": 60.0,
    "ngrams": 0.7,
    "vocabulary": 0.0,
    "overfit_matrices": 1e-4,
    "overfit_vocabulary": 0.1,
    "vocabulary_fades": 0.3,
}
FREE = ("ngrams", "vocabulary")
ROBUST = 0.02  # larger residuals count less
PRIOR = 0.02  # pull of the logarithms towards their initial values, in case the results leave them open
RESAMPLES = 40
NINE_OF_TEN, GOAL = 0.9, 0.04
PILOT_SHAPE = (SHAPES["xs"][0], VOCAB, batch_of(PILOTS[0]))
Row = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """A result of the study in the form for the law."""

    text: str
    training: Training
    difficulty: Difficulty
    bits: float


def main() -> None:
    """Fit the law and check it. Write it if --write asks for it."""
    cases = read_cases()
    law = fit(cases)
    print(f"{len({(case.text, case.training) for case in cases})} trainings, most of them predicted from two pilots")
    for name, (low, high) in spread(cases).items():
        print(f"{name:18} {law.constants[name]:9.4g}  (80% of resamples: {low:.4g} to {high:.4g})")
    left_out = leave_texts_out(cases)
    for length in PILOTS:
        print(f"pilots of {length / 1000:g} kB, each text left out of the fit")
        found = {text: own for text in left_out if (own := left_out[text][_has_pilot(cases, text, length)]).size}
        for text, own in found.items():
            print(f"  {text}: " + ", ".join(f"{error:+.1%}" for error in own))
        outside = np.abs(np.concatenate([*found.values()]))
        within = f"{np.sum(outside < GOAL)} of {len(outside)} within {GOAL:.0%}"
        print(f"  median error {np.median(outside):.1%}, nine of ten within {np.quantile(outside, NINE_OF_TEN):.1%}, {within}")
    law = replace(law, repetition={float(length): least_repetition(cases, length) for length in PILOTS})
    (run_factor, run_error), ready_error = check_runs(law), check_ready(law)
    if "--write" in sys.argv:
        content = {
            "constants": {name: float(f"{value:.4g}") for name, value in law.constants.items()},
            "errors": {str(length): round(max(width(cases, left_out, length), run_error), 4) for length in PILOTS},
            "largest": dict(law.largest),
            "repetition": {f"{length:g}": round(least, 4) for length, least in law.repetition.items()},
            "ready_error": round(ready_error, 4),
            "run_factor": round(run_factor, 3),
        }
        TABLE.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def check_runs(law: Law) -> tuple[float, float]:
    """Predict whole runs with a budget on texts that are not in the fit.

    Texts that are more repetitive than the study's are not counted.

    Returns:
        What the runs reach as a multiple of the predictions, in the median; and the error that covers nine of ten of them
        after this correction.
    """
    print("whole runs, none of them in the fit")
    found = []
    for name, training, difficulty, reached in read_runs():
        ratio = reached / law.bits_per_byte(training, difficulty)
        is_repetitive = law.is_repetitive(difficulty)
        print(f"  {name}: {1 / ratio - 1:+.1%}{', and no interval, since the text is too repetitive' if is_repetitive else ''}")
        found += [] if is_repetitive else [ratio]
    factor = float(np.median(found))
    error = float(np.quantile(np.abs(factor / np.array(found) - 1), NINE_OF_TEN))
    print(f"  they reach {factor:.3f} of the predictions in the median; corrected by it, nine of ten are within {error:.1%}")
    return factor, error


def check_ready(law: Law) -> float:
    """Predict short texts with GPT-2's vocabulary, none of them in the fit.

    Returns:
        The error that covers nine of ten results of the worst text.
    """
    cases, widest = read_ready_cases(), 0.0
    print("short texts with GPT-2's vocabulary, after a pilot with it, by a law without them")
    for text in dict.fromkeys(case.text for case in cases):
        own = errors(law, [case for case in cases if case.text == text])
        widest = max(widest, float(np.quantile(np.abs(own), NINE_OF_TEN)))
        print(f"  {text}: " + ", ".join(f"{error:+.1%}" for error in own))
    found = np.abs(errors(law, cases))
    within = f"{np.sum(found < GOAL)} of {len(found)} within {GOAL:.0%}"
    print(f"  median error {np.median(found):.1%}, nine of ten within {np.quantile(found, NINE_OF_TEN):.1%}, {within}")
    return widest


def read_cases() -> list[Case]:
    """Return the results with the usual batch, rates and regularization for their length, once for each pilot on their text.

    Results with vocabularies of more than STUDIED_VOCABULARY tokens are not predicted by the law.
    """
    rows = [json.loads(line) for line in RESULTS.read_text(encoding="utf-8").splitlines()]
    rows = [row for row in rows if row["vocab_size"] <= STUDIED_VOCABULARY]
    content = json.loads(TEXTS.read_text(encoding="utf-8"))
    cases = []
    for pilot in filter(_is_pilot, rows):
        ngrams = {int(size): bits for size, bits in content[pilot["text"]][str(pilot["unique_bytes"])].items()}
        difficulty = Difficulty(_training(pilot), pilot["bits_per_byte"], ngrams)
        for row in rows:
            is_same_text = (row["text"], row["unique_bytes"]) == (pilot["text"], pilot["unique_bytes"])
            is_further = row is not pilot and row["trained_bytes"] >= pilot["trained_bytes"]
            if is_same_text and is_further and _is_usual(row):
                cases.append(Case(row["text"], _training(row), difficulty, row["bits_per_byte"]))
    return cases


def read_ready_cases() -> list[Case]:
    """Return the results with GPT-2's vocabulary. As in `budget=`, a pilot with the same vocabulary has read their text."""
    rows = [json.loads(line) for line in RESULTS.read_text(encoding="utf-8").splitlines()]
    content = json.loads(TEXTS.read_text(encoding="utf-8"))
    rows = [row for row in rows if row["vocab_size"] == GPT2_TOKENS]
    pilots = {row["text"]: row for row in rows if _is_ready_pilot(row)}
    cases = []
    for row in rows:
        pilot = pilots.get(row["text"])
        if pilot is not None and row is not pilot and _is_usual(row):
            ngrams = {int(size): bits for size, bits in content[row["text"]][str(row["unique_bytes"])].items()}
            difficulty = Difficulty(_training(pilot), pilot["bits_per_byte"], ngrams)
            cases.append(Case(row["text"], _training(row), difficulty, row["bits_per_byte"]))
    return cases


def _is_ready_pilot(row: Row) -> bool:
    shape = (row["width"], row["batch"], row["regularization"], row["rate"], row["seed"])
    return bool(shape == (PILOT_SHAPE[0], PILOT_SHAPE[2], "none", 1.0, 1) and row["trained_bytes"] == 4 * row["unique_bytes"])


def _is_pilot(row: Row) -> bool:
    shape = (row["width"], row["vocab_size"], row["batch"], row["regularization"], row["rate"], row["seed"])
    return bool(shape == (*PILOT_SHAPE, "none", 1.0, 1) and row["trained_bytes"] in PILOTS)


def _is_usual(row: Row) -> bool:
    usual = usual_regularization(*(row[name] for name in ("matrices", "vocab_size", "unique_bytes", "trained_bytes")))
    return (row["rate"], row["batch"], row["regularization"]) == (1.0, batch_of(row["trained_bytes"]), usual)


def _training(row: Row) -> Training:
    names = ("matrices", "vocab_size", "unique_bytes", "trained_bytes", "bytes_per_token")
    distinct = row.get("distinct_tokens", math.inf) if row["vocab_size"] == GPT2_TOKENS else math.inf
    return replace(Training(*(row[name] for name in names)), distinct_tokens=distinct)


def fit(cases: Sequence[Case]) -> Law:
    """Return the law with the smallest robust error of the loss's logarithm."""
    measured = np.log([case.bits for case in cases])
    start = np.array([value if name in FREE else math.log(value) for name, value in START.items()])

    def residuals(values: np.ndarray) -> np.ndarray:
        law = _law(values, cases)
        predicted = np.log([law.bits_per_byte(case.training, case.difficulty) for case in cases])
        return np.concatenate([predicted - measured, PRIOR * (values - start)])

    return _law(least_squares(residuals, start, loss="soft_l1", f_scale=ROBUST).x, cases)


def _law(values: np.ndarray, cases: Sequence[Case]) -> Law:
    constants = {
        name: float(value) if name in FREE else math.exp(min(value, 20.0)) for name, value in zip(START, values, strict=True)
    }
    names = ("matrices", "unique_bytes", "trained_bytes")
    return Law(constants, {}, {name: max(getattr(case.training, name) for case in cases) for name in names})


def errors(law: Law, cases: Sequence[Case]) -> np.ndarray:
    """Return the relative errors of the predictions."""
    return np.array([law.bits_per_byte(case.training, case.difficulty) / case.bits - 1 for case in cases])


def leave_texts_out(cases: Sequence[Case]) -> dict[str, np.ndarray]:
    """Return the errors on each text with a law fitted to the other texts."""
    texts = dict.fromkeys(case.text for case in cases)
    return {
        text: errors(fit([case for case in cases if case.text != text]), [case for case in cases if case.text == text])
        for text in texts
    }


def _has_pilot(cases: Sequence[Case], text: str, length: float) -> np.ndarray:
    """Return for each case of a text whether its pilot has read this many bytes."""
    return np.array([case.difficulty.pilot.trained_bytes == length for case in cases if case.text == text])


def width(cases: Sequence[Case], left_out: Mapping[str, np.ndarray], length: float) -> float:
    """Return the error that covers nine of ten results of the worst text. A new text may be as far from all others."""
    found = [of_text[_has_pilot(cases, text, length)] for text, of_text in left_out.items()]
    return max(float(np.quantile(np.abs(own), NINE_OF_TEN)) for own in found if own.size)


def least_repetition(cases: Sequence[Case], length: float) -> float:
    """Return the lowest bits of the n-gram model as a multiple of those of pilots that have read this many bytes."""
    return min(case.difficulty.repetition for case in cases if case.difficulty.pilot.trained_bytes == length)


def spread(cases: Sequence[Case]) -> dict[str, tuple[float, float]]:
    """Return the interval of each constant that contains 80% of the fits to resampled results."""
    generator = np.random.default_rng(1)
    laws = [fit([cases[n] for n in generator.integers(len(cases), size=len(cases))]) for _ in range(RESAMPLES)]
    values = {name: np.quantile([law.constants[name] for law in laws], (0.1, 0.9)) for name in START}
    return {name: (float(low), float(high)) for name, (low, high) in values.items()}


if __name__ == "__main__":
    main()
