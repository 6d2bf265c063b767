"""Predict the bits per byte that a model reaches on held-out text, by a law that was fitted to measured trainings.

`benchmarks/scaling` has the measurements and the fit. The law has the form of Hoffmann et al. 2022 (arXiv:2203.15556), in which
repeated text counts less, as in Muennighoff et al. 2023 (arXiv:2305.16264). How hard a text is, and how much more of it helps,
differs so much between texts that both are measured on the text itself.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources

import numpy as np

TABLE = "law.json"
LARGEST_FACTOR = 100.0  # beyond what was measured, where even an extrapolation says nothing
PREDICTABLE, LEAST_GAIN = 0.1, 0.1  # share of the bits of single bytes that contexts save in any text of the study; see `gain`


@dataclass(frozen=True)
class Training:
    """The numbers of a training that decide its loss, besides the text.

    Args:
        matrices: Parameters of the blocks.
        vocab_size: Tokens of the vocabulary.
        unique_bytes: Bytes of the training set.
        trained_bytes: Bytes that are read, in several passes if there are fewer.
    """

    matrices: float
    vocab_size: int
    unique_bytes: float
    trained_bytes: float

    @property
    def fresh_bytes(self) -> float:
        """Bytes that are read at least once."""
        return min(self.unique_bytes, self.trained_bytes)


@dataclass(frozen=True)
class Difficulty:
    """The difficulty of a text, as measured on the text itself.

    Args:
        pilot: A short training of a small model on it.
        bits: Bits per byte of held-out text after that training.
        ngrams: Bits per byte of a model that counts n-grams, by the bytes of training text that it has counted.
        frequencies: Bits per byte by the frequencies of single bytes.
    """

    pilot: Training
    bits: float
    ngrams: Mapping[int, float]
    frequencies: float = math.inf

    @property
    def gain(self) -> float:
        """The share of the usual gain from more training that this text allows: little if contexts say little, as in noise."""
        if self.frequencies <= 0:
            return LEAST_GAIN
        saved = 1.0 - min(self.bits, *self.ngrams.values()) / self.frequencies
        return min(max(saved / PREDICTABLE, LEAST_GAIN), 1.0)

    def counted(self, n_bytes: float) -> float:
        """Return the n-gram model's bits per byte after this much text, interpolated in logarithms, or extrapolated."""
        sizes = sorted(self.ngrams)
        x, y = np.log(sizes), np.log([self.ngrams[size] for size in sizes])
        at = math.log(n_bytes)
        if at <= x[-1] or len(sizes) < 2:
            return math.exp(float(np.interp(at, x, y)))
        slope = (y[-1] - y[-2]) / (x[-1] - x[-2])
        return math.exp(float(y[-1] + slope * (at - x[-1])))


@dataclass(frozen=True)
class Law:
    """The fitted numbers.

    Args:
        constants: Constants of the law by name; see `bits_per_byte`.
        errors: The logarithm of the factor that nine of ten measurements are within, by the bytes that the pilot has read.
        largest: The largest number of parameters, unique bytes and read bytes that were measured.
    """

    constants: Mapping[str, float]
    errors: Mapping[float, float]
    largest: Mapping[str, float]

    def bits_per_byte(self, training: Training, text: Difficulty) -> float:
        """Return the expected loss: the pilot's, times what a larger model, more text and another vocabulary change."""
        pilot = text.pilot
        fresh = text.counted(self.useful_bytes(training)) / text.counted(self.useful_bytes(pilot))
        vocabulary = self.constants["vocabulary"] * math.log2(training.vocab_size / pilot.vocab_size)
        change = self.constants["ngrams"] * math.log(fresh) + vocabulary + math.log(self._core(training) / self._core(pilot))
        expected: float = text.bits * math.exp(text.gain * change)
        return expected

    def _core(self, training: Training) -> float:
        """Return the law of Hoffmann et al., as a multiple of the loss that no model and no text of this kind falls below."""
        c = self.constants
        size = c["a"] * (1e6 / training.matrices) ** c["alpha"]
        read = c["b"] * (1e6 / self.effective_bytes(training)) ** c["beta"]
        return float(1.0 + size + read)

    def useful_bytes(self, training: Training) -> float:
        """Return the bytes of different text that a model of this size can use: a small one gains little from very much text."""
        return 1.0 / (1.0 / training.fresh_bytes + 1.0 / (self.constants["capacity"] * training.matrices))

    def effective_bytes(self, training: Training) -> float:
        """Return the bytes of fresh text that would be worth as much as what is read: each further pass is worth less."""
        passes = max(training.trained_bytes / training.unique_bytes - 1.0, 0.0)
        lasting = self.constants["repeats"]
        return training.fresh_bytes * (1.0 + lasting * (1.0 - math.exp(-passes / lasting)))

    def error(self, pilot: Training) -> float:
        """Return the error after a pilot, interpolated over the logarithm of the bytes that it has read."""
        lengths = sorted(self.errors)
        return float(np.interp(math.log(pilot.trained_bytes), np.log(lengths), [self.errors[length] for length in lengths]))

    def reaches(self, training: Training) -> bool:
        """Return whether a training is near enough to those of the fit for an extrapolation."""
        return all(getattr(training, name) <= LARGEST_FACTOR * most for name, most in self.largest.items())

    def interval(self, training: Training, text: Difficulty) -> tuple[float, float]:
        """Return the bounds that should hold the loss in nine of ten cases, wider where nothing was measured."""
        expected, error = self.bits_per_byte(training, text), self.error(text.pilot)
        error *= 1.0 + sum(max(math.log2(getattr(training, name) / most), 0.0) for name, most in self.largest.items()) / 2
        return expected * math.exp(-error), expected * math.exp(error)


@cache
def fitted_law() -> Law:
    """Return the law of this version."""
    content = json.loads(resources.files(__package__).joinpath(TABLE).read_text(encoding="utf-8"))
    return Law(content["constants"], {float(length): error for length, error in content["errors"].items()}, content["largest"])
