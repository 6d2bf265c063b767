"""Predict the bits per byte that a model reaches on held-out text. The prediction is a law fitted to measured trainings.

`benchmarks/scaling` has the measurements and the fit. The law has the form of Hoffmann et al. 2022 (arXiv:2203.15556). Repeated
text counts less, as in Muennighoff et al. 2023 (arXiv:2305.16264), and each repeat adds to overfitting. Texts differ much in
their difficulty, and in the effect of more text. Both are therefore measured on the text itself.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources

import numpy as np

TABLE = "law.json"
LARGEST_FACTOR = 100.0  # times the largest measured number; an extrapolation beyond it means nothing
# The share of the bits of single bytes that contexts save in every text of the study, and the least value of `gain`.
PREDICTABLE, LEAST_GAIN = 0.1, 0.1
LEAST_REPETITION = 0.9  # times the least `repetition` of the study's texts; below it, the law has no interval
STUDIED_VOCABULARY = 4096  # tokens; the largest vocabulary of the study that was trained on its text
MOST_ENTRIES = 0.07  # of a vocabulary per token of the text, the most in the fit; with more, short texts do not overfit more


@dataclass(frozen=True)
class Training:
    """The numbers of a training that determine its loss, besides the text.

    Args:
        matrices: Parameters of the blocks.
        vocab_size: Tokens of the vocabulary.
        unique_bytes: Bytes of the training set.
        trained_bytes: Bytes to read, in several passes if the training set has fewer.
        bytes_per_token: Bytes per token of the vocabulary.
        distinct_tokens: Entries of the vocabulary that the training set has, if it has fewer than all.
    """

    matrices: float
    vocab_size: int
    unique_bytes: float
    trained_bytes: float
    bytes_per_token: float
    distinct_tokens: float = math.inf

    @property
    def passes(self) -> float:
        """Passes over the text."""
        return self.trained_bytes / self.unique_bytes

    @property
    def memorizing(self) -> float:
        """Parameters of the blocks per distinct token of the text, times the passes after the first.

        A training with a higher value overfits more.
        """
        return self.matrices * self.bytes_per_token / self.unique_bytes * max(self.passes - 1.0, 0.0)

    @property
    def fresh_bytes(self) -> float:
        """Distinct bytes that are read."""
        return min(self.unique_bytes, self.trained_bytes)


@dataclass(frozen=True)
class Difficulty:
    """The difficulty of a text, measured on the text itself.

    Args:
        pilot: A short training of a small model on it.
        bits: Bits per byte of held-out text after that training.
        ngrams: Bits per byte of an n-gram model, by the number of training bytes that it has counted.
        frequencies: Bits per byte of a prediction by the frequencies of single bytes.
    """

    pilot: Training
    bits: float
    ngrams: Mapping[int, float]
    frequencies: float = math.inf

    @property
    def gain(self) -> float:
        """The gain from more training as a share of the usual one. It is small if contexts predict little, as in noise."""
        if self.frequencies <= 0:
            return LEAST_GAIN
        saved = 1.0 - min(self.bits, *self.ngrams.values()) / self.frequencies
        return min(max(saved / PREDICTABLE, LEAST_GAIN), 1.0)

    @property
    def repetition(self) -> float:
        """The n-gram model's bits per byte as a multiple of the pilot's. It is small for a text that repeats long passages.

        Counts know a passage after one reading. A model learns it later, so its loss goes on falling.
        """
        return self.ngrams[max(self.ngrams)] / self.bits

    def counted(self, n_bytes: float) -> float:
        """Return the n-gram model's bits per byte after this much text, interpolated or extrapolated in logarithms."""
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
        errors: The logarithm of the factor around the law that covers nine of ten measurements, by the bytes of the pilot.
        largest: The largest measured number of parameters, unique bytes and read bytes.
        repetition: The least measured `repetition`, by the bytes of the pilot; empty for a law of the text itself.
        ready_error: The same factor's logarithm for short texts with GPT-2's vocabulary, after a whole pilot with it.
        run_factor: What whole runs reach as a multiple of the trainings that the law is fitted to.
    """

    constants: Mapping[str, float]
    errors: Mapping[float, float]
    largest: Mapping[str, float]
    repetition: Mapping[float, float] = field(default_factory=dict, kw_only=True)
    ready_error: float = field(default=0.0, kw_only=True)
    run_factor: float = field(default=1.0, kw_only=True)

    def bits_per_byte(self, training: Training, text: Difficulty) -> float:
        """Return the expected loss: the pilot's, times the effect of a larger model, more text and another vocabulary."""
        pilot = text.pilot
        fresh = text.counted(self.useful_bytes(training)) / text.counted(self.useful_bytes(pilot))
        vocabulary = self.vocabulary_gain(training, pilot) * math.log2(training.vocab_size / pilot.vocab_size)
        overfitting = self.overfitting(training) - self.overfitting(pilot)
        core = math.log(self._core(training) / self._core(pilot))
        change = self.constants["ngrams"] * math.log(fresh) + vocabulary + core + overfitting
        factor = self.run_factor if pilot.vocab_size <= STUDIED_VOCABULARY else 1.0
        expected: float = factor * text.bits * math.exp(text.gain * change)
        return expected

    def _core(self, training: Training) -> float:
        """Return the law of Hoffmann et al. as a multiple of the irreducible loss."""
        c = self.constants
        size = c["a"] * (1e6 / training.matrices) ** c["alpha"]
        read = c["b"] * (1e6 / self.effective_bytes(training)) ** c["beta"]
        return float(1.0 + size + read)

    def useful_bytes(self, training: Training) -> float:
        """Return the bytes of distinct text that a model of this size can use. A small one gains little from very much text."""
        return 1.0 / (1.0 / training.fresh_bytes + 1.0 / (self.constants["capacity"] * training.matrices))

    def effective_bytes(self, training: Training) -> float:
        """Return the bytes of fresh text that are worth as much as all passes. Each further pass is worth less."""
        repeats = max(training.passes - 1.0, 0.0)
        lasting = self.constants["repeats"]
        return training.fresh_bytes * (1.0 + lasting * (1.0 - math.exp(-repeats / lasting)))

    def vocabulary_gain(self, training: Training, pilot: Training) -> float:
        """Return the change of the loss's logarithm by each doubling of the vocabulary. Larger models gain less."""
        growth = math.log(training.matrices / pilot.matrices)
        return self.constants["vocabulary"] * max(1.0 - self.constants["vocabulary_fades"] * growth, 0.0)

    def overfitting(self, training: Training) -> float:
        """Return the rise of the loss's logarithm by overfitting. Each further pass adds to it.

        It grows with the parameters of the blocks and with the entries of the vocabulary, both per distinct token of the text.
        The entries that the text does not have, such as most of GPT-2's, are not counted.
        """
        c, tokens = self.constants, training.unique_bytes / training.bytes_per_token
        entries = min(training.distinct_tokens, training.vocab_size)
        per_token = min(entries / tokens, MOST_ENTRIES)
        per_pass = c["overfit_matrices"] * training.matrices / tokens + c["overfit_vocabulary"] * per_token
        return per_pass * max(training.passes - 1.0, 0.0)

    def error(self, pilot: Training) -> float:
        """Return the error after a pilot, interpolated over the logarithm of its bytes."""
        if pilot.vocab_size > STUDIED_VOCABULARY:
            return self.ready_error
        return _after_pilot(self.errors, pilot)

    def is_repetitive(self, text: Difficulty) -> bool:
        """Return True if a text repeats more long passages than those of the study, so that its loss will be lower."""
        if not self.repetition or text.pilot.vocab_size > STUDIED_VOCABULARY:
            return False
        return text.repetition < LEAST_REPETITION * _after_pilot(self.repetition, text.pilot)

    def reaches(self, training: Training) -> bool:
        """Return whether a training is near enough to the fitted ones for an extrapolation."""
        return all(getattr(training, name) <= LARGEST_FACTOR * most for name, most in self.largest.items())

    def interval(self, training: Training, text: Difficulty) -> tuple[float, float]:
        """Return bounds that should hold the loss in nine of ten cases. They are wider beyond the measured trainings."""
        expected, error = self.bits_per_byte(training, text), self.error(text.pilot)
        error *= 1.0 + sum(max(math.log2(getattr(training, name) / most), 0.0) for name, most in self.largest.items()) / 2
        return expected * math.exp(-error), expected * math.exp(error)


@cache
def fitted_law() -> Law:
    """Return the law of this version."""
    content = json.loads(resources.files(__package__).joinpath(TABLE).read_text(encoding="utf-8"))
    errors, repetition = ({float(length): one for length, one in content[name].items()} for name in ("errors", "repetition"))
    factors = {name: content[name] for name in ("ready_error", "run_factor")}
    return Law(content["constants"], errors, content["largest"], repetition=repetition, **factors)


def _after_pilot(values: Mapping[float, float], pilot: Training) -> float:
    """Return the value for a pilot's length, interpolated over the logarithm of its bytes."""
    lengths = sorted(values)
    return float(np.interp(math.log(pilot.trained_bytes), np.log(lengths), [values[length] for length in lengths]))
