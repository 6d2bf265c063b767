"""Correct the law of expected losses by trainings on one text, such as those of a ladder.

A few trainings cannot fit all constants of a law anew. The correction is therefore small. It has three numbers: a factor, its
change with the size of the model, and its change with the amount of text read. The study's texts determine how strongly each is
pulled towards no change.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from gpt_pretrain.training.budget.law import Difficulty, Law, Training

# Standard deviations of the three numbers around the law, measured on texts of the study that were left out of the fit: the
# logarithm of the factor, its change by each doubling of the model, and its change by each doubling of the text read.
SPREADS = (0.07, 0.02, 0.03)
NOISE = 0.015  # standard deviation of a single training, from its seed and from effects outside the law
NINE_OF_TEN = 1.645  # standard deviations of a normal distribution


@dataclass(frozen=True)
class MeasuredTraining:
    """A training and the bits per byte of held-out text after it."""

    training: Training
    bits: float


@dataclass(frozen=True)
class OwnLaw(Law):
    """The law with a correction for one text.

    Args:
        center: The training in the middle of the measured ones.
        correction: The logarithm of the factor there, and its changes by doubling the model and the text read.
        covariance: Covariance of the correction.
    """

    center: Training
    correction: tuple[float, ...]
    covariance: tuple[tuple[float, ...], ...]

    def bits_per_byte(self, training: Training, text: Difficulty) -> float:
        """Return the expected loss by the law and the correction."""
        change = float(np.dot(self.correction, _terms(training, self.center)))
        return super().bits_per_byte(training, text) * math.exp(change)

    def interval(self, training: Training, text: Difficulty) -> tuple[float, float]:
        """Return bounds that should hold the loss in nine of ten cases. They widen away from the measured trainings."""
        terms = np.array(_terms(training, self.center))
        error = NINE_OF_TEN * math.sqrt(float(terms @ np.array(self.covariance) @ terms) + NOISE**2)
        expected = self.bits_per_byte(training, text)
        return expected * math.exp(-error), expected * math.exp(error)


def fit_own_law(law: Law, text: Difficulty, measured: Sequence[MeasuredTraining]) -> OwnLaw:
    """Return the law with the most probable correction after some trainings on the text.

    Source: Bayesian linear regression with a normal prior, as in Bishop 2006, "Pattern Recognition and Machine Learning", 3.3.

    Args:
        measured: At least one training.
    """
    matrices = math.exp(float(np.mean([math.log(one.training.matrices) for one in measured])))
    trained = math.exp(float(np.mean([math.log(one.training.trained_bytes) for one in measured])))
    center = replace(measured[0].training, matrices=matrices, trained_bytes=trained)
    terms = np.array([_terms(one.training, center) for one in measured])
    residuals = np.array([math.log(one.bits / law.bits_per_byte(one.training, text)) for one in measured])
    covariance = np.linalg.inv(terms.T @ terms / NOISE**2 + np.diag([1 / spread**2 for spread in SPREADS]))
    correction = covariance @ terms.T @ residuals / NOISE**2
    rows = tuple(tuple(map(float, row)) for row in covariance)
    constants = (law.constants, law.errors, law.largest)
    return OwnLaw(*constants, center, tuple(map(float, correction)), rows, run_factor=law.run_factor)


def _terms(training: Training, center: Training) -> tuple[float, float, float]:
    read = math.log2(training.trained_bytes / center.trained_bytes)
    return 1.0, math.log2(training.matrices / center.matrices), read
