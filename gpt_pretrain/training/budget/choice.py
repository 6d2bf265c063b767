"""Choose the model, the vocabulary and the length of a run: the lowest expected loss that the budget allows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from gpt_pretrain.model.config import GPTConfig
from gpt_pretrain.model.costs import Parallelism, checkpoint_bytes, matmul_parameters, training_flops_per_token, training_memory
from gpt_pretrain.tokenizers.bpe_training import TOKENS_PER_ENTRY
from gpt_pretrain.training.budget.amount import Budget
from gpt_pretrain.training.budget.law import STUDIED_VOCABULARY, Difficulty, Law, Training
from gpt_pretrain.training.budget.speed import Speed

SHAPES = ((64, 2), (96, 3), (128, 4), (192, 4), (256, 6), (384, 6), (512, 8), (768, 12))  # width and blocks
HEAD_DIM, CONTEXT = 32, 128
LENGTHS, SHORTER = 16, 2.0**-0.5  # candidate lengths of each model's training, each shorter by this factor
LONGER = 2.0**0.125  # factor between lengths of a run that fills its budget
ENOUGH = 1.005  # a cheaper choice is taken if its expected loss is at most this factor higher
MIN_STEPS = 20
SMALLEST_STEP = 512  # tokens
SPARE_STEPS = 1.1  # factor on MIN_STEPS, so that rounding leaves enough
BATCH_ROUNDS = 3
BESIDES = 0.88  # share of the time for optimizer steps; the rest is for losses, samples and checkpoints
# The most passes over a text: in general, and over a text with very few tokens for the vocabulary. With more passes, even a
# regularized model mostly memorizes.
MOST_PASSES, FEW_TOKENS_PASSES = 64, 8
MOST_PARAMETERS = 30  # of the blocks per distinct token read; the law was not measured beyond
# Dropout, and the decay of the matrices and of the output head: for fewer passes over a text than this, for more, and for
# trainings with a higher value of `memorizing`.
REGULARIZATION = ((0.0, 0.0, 0.0), (0.1, 0.1, 0.5), (0.2, 0.2, 1.0))
FEW_PASSES, MEMORIZING = 3.0, 36.0
CAUTION = 0.01  # how much worse a choice counts for each doubling beyond the study
NEARLY = 0.8  # share of the budget; a choice that spends less is limited by something else
MAX_MEMORY, MAX_DISK = 0.6, 0.8  # shares of the free memory and disk space
CHECKPOINTS = 3  # on disk at the same time


@dataclass(frozen=True)
class TextFacts:
    """The text of a run in numbers.

    Args:
        train_bytes: Bytes of the training set.
        bytes_per_token: Bytes per token of vocabularies trained on it, by their size.
        difficulty: The difficulty of learning it.
        seconds_to_encode: Estimated time to encode the whole training set.
        longest_windows: Tokens of the longest possible window in the validation set, by the size of the vocabulary.
        distinct_tokens: Entries of a vocabulary that the training set has, by its size, for vocabularies beyond the study.
        tokenizer: Name of the only vocabulary, if it is not trained on the text.
    """

    train_bytes: int
    bytes_per_token: Mapping[int, float]
    difficulty: Difficulty
    seconds_to_encode: float = 0.0
    longest_windows: Mapping[int, int] = field(default_factory=dict)
    distinct_tokens: Mapping[int, float] = field(default_factory=dict)
    tokenizer: str | None = None

    def most_passes(self, vocab_size: int, *, step_tokens: int = SMALLEST_STEP) -> float:
        """Return the number of passes over the text that lower its loss. A tiny text needs more for MIN_STEPS steps.

        Args:
            step_tokens: Tokens of the smallest possible step.
        """
        tokens = self.train_bytes / self.bytes_per_token[vocab_size]
        if tokens >= vocab_size:
            return MOST_PASSES
        return min(max(FEW_TOKENS_PASSES, SPARE_STEPS * MIN_STEPS * step_tokens / tokens), MOST_PASSES)

    def training(self, matrices: float, vocab_size: int, tokens: float) -> Training:
        """Return the training of a model on this many tokens of the text."""
        length, distinct = self.bytes_per_token[vocab_size], self.distinct_tokens.get(vocab_size, math.inf)
        return Training(matrices, vocab_size, self.train_bytes, tokens * length, length, distinct)

    def context_for(self, vocab_size: int) -> int:
        """Return the context of a model chosen for the text, a power of two. A short validation set shortens it."""
        longest = max(self.longest_windows.get(vocab_size, CONTEXT), 1)
        return min(CONTEXT, 1 << (longest.bit_length() - 1))


@dataclass(frozen=True)
class Limits:
    """The time, memory and disk that the machine has left.

    Args:
        seconds: Time until the budget ends; negative if it has already ended.
        memory: Free bytes that each device's training may use; None if unknown.
        disk: Free bytes in the folder of the checkpoints.
        devices: Devices that share each step.
        sharing: Number of devices that share the measured speed; several processes share a CPU's.
        accumulate: Batches of each device in a step.
        averages: Whether a moving average of the weights is kept.
    """

    seconds: float
    memory: int | None
    disk: int
    devices: int = 1
    sharing: int = 1
    accumulate: int = 1
    device: str = "cpu"
    precision: str = "32-true"
    optimizer: str = "muon"
    averages: bool = False

    @property
    def workers(self) -> float:
        """The number of devices, converted to devices with the full measured speed."""
        return self.devices / self.sharing

    @property
    def shares(self) -> int:
        """Batches of a step on all devices together."""
        return self.devices * self.accumulate


@dataclass(frozen=True)
class Conditions:
    """Everything that determines a choice, besides the typed settings."""

    text: TextFacts
    budget: Budget
    limits: Limits
    speed: Speed
    law: Law


@dataclass(frozen=True)
class Candidate:
    """A run that could be chosen.

    Args:
        batch: Windows of each device's batch.
        expected: Bits per byte.
        step_tokens: Tokens of a step on all devices together.
        penalty: Factor on the expected loss when candidates are compared.
    """

    config: GPTConfig
    batch: int
    steps: int
    seconds: float
    training: Training
    expected: float
    step_tokens: int
    penalty: float = 1.0

    @property
    def cautious(self) -> float:
        """The expected loss, raised if it is extrapolated."""
        return self.expected * self.penalty

    @property
    def passes(self) -> float:
        """Passes over the text."""
        return self.training.passes


def batch_of(tokens: float, context: int = CONTEXT) -> int:
    """Return the windows of a step for a training of this many tokens. As in the study, a step grows with their square root.

    Args:
        context: Tokens of a window.
    """
    windows = 1.5 * math.sqrt(max(tokens, 1.0)) / context
    return max(1, SMALLEST_STEP // context, int(2 ** round(math.log2(windows))))


def regularization_of(training: Training) -> tuple[float, float, float]:
    """Return the dropout, and the decay of the matrices and of the output head, for a training.

    Where a model does not overfit, they only slow down its learning and, on a CPU, each step.
    """
    if training.passes < FEW_PASSES:
        return REGULARIZATION[0]
    return REGULARIZATION[1 if training.memorizing < MEMORIZING else 2]


def candidates(conditions: Conditions, *, configs: Sequence[GPTConfig], batch: int | None = None) -> Iterator[Candidate]:
    """Yield each model with each length that the budget allows.

    Args:
        batch: Windows of each device's batch, if they are typed.
    """
    text, budget, limits, speed = conditions.text, conditions.budget, conditions.limits, conditions.speed
    fixed = len({(config.emb_dim, config.n_layers) for config in configs}) == 1  # typed settings leave one shape
    for config in configs:
        length = text.bytes_per_token[config.vocab_size]
        windows = max(1, int(text.train_bytes / length / config.context_length))
        smallest_step = max(SMALLEST_STEP, (batch or 1) * limits.shares * config.context_length)
        passes = text.most_passes(config.vocab_size, step_tokens=smallest_step)
        most = min(passes * text.train_bytes / length, budget.tokens, budget.flops / training_flops_per_token(config))
        for _ in range(LENGTHS):
            size, most_steps = _batch_and_steps(config, most, limits, speed, windows=windows, batch=batch)
            per_step, steps = size * limits.shares * config.context_length, int(most_steps)
            step = speed.step_seconds(config, per_step) / limits.workers
            most = min(most, most_steps * per_step) * SHORTER
            matrices = matmul_parameters(config) - config.vocab_size * config.emb_dim
            fresh = min(steps * per_step, text.train_bytes / length)
            too_large = matrices > MOST_PARAMETERS * fresh and config.emb_dim > SHAPES[0][0] and not fixed
            rare = fresh < TOKENS_PER_ENTRY * config.vocab_size and config.vocab_size > min(text.bytes_per_token)
            if steps < MIN_STEPS or too_large or rare:
                continue
            training = text.training(matrices, config.vocab_size, steps * per_step)
            expected = conditions.law.bits_per_byte(training, text.difficulty)
            penalty = _extrapolation_penalty(training, conditions.law, read=steps * per_step)
            yield Candidate(config, size, steps, steps * step / BESIDES, training, expected, per_step, penalty)


def _extrapolation_penalty(training: Training, law: Law, *, read: int) -> float:
    """Return a factor that grows with the distance of a choice from the study.

    Args:
        read: Tokens that the training reads. All published laws allow a model this many parameters.
    """
    excess = (training.matrices / max(law.largest["matrices"], read), training.vocab_size / STUDIED_VOCABULARY)
    return math.exp(CAUTION * sum(max(math.log2(one), 0.0) for one in excess))


def _batch_and_steps(
    config: GPTConfig, most: float, limits: Limits, speed: Speed, *, windows: int, batch: int | None
) -> tuple[int, float]:
    """Return the windows of a batch, and the steps for this many tokens, or for fewer if the time is short.

    The batch depends on the length of the training. The length depends on the speed, and the speed on the batch.
    """
    tokens = most
    for _ in range(BATCH_ROUNDS):
        size = batch or max(1, min(batch_of(tokens, config.context_length), windows) // limits.shares)
        per_step = size * limits.shares * config.context_length
        steps = min(most / per_step, max(limits.seconds, 0.0) * BESIDES * limits.workers / speed.step_seconds(config, per_step))
        tokens = steps * per_step
    return size, steps


def fits(candidate: Candidate, limits: Limits) -> str | None:
    """Return "memory" or "disk" if the machine has too little of it for a run, otherwise None."""
    drop_rate = max(candidate.config.drop_rate, regularization_of(candidate.training)[0])
    memory = training_memory(
        replace(candidate.config, drop_rate=drop_rate),
        batch_size=candidate.batch,
        precision=limits.precision,
        device=limits.device,
        parallelism=Parallelism(limits.devices, accumulate_grad_batches=limits.accumulate),
        optimizer=limits.optimizer,
        averages=limits.averages,
    )
    if limits.memory is not None and memory.peak > MAX_MEMORY * limits.memory:
        return "memory"
    checkpoints = CHECKPOINTS * checkpoint_bytes(
        candidate.config, precision=limits.precision, optimizer=limits.optimizer, averages=limits.averages
    )
    return "disk" if checkpoints > MAX_DISK * limits.disk else None


def best_of(found: Sequence[Candidate]) -> Candidate:
    """Return the cheapest of the candidates whose expected loss is nearly the lowest."""
    lowest = min(one.cautious for one in found)
    return min((one for one in found if one.cautious <= ENOUGH * lowest), key=lambda one: (one.seconds, one.expected))


def longest_steps(chosen: Candidate, conditions: Conditions) -> int:
    """Return the largest useful number of steps. With more, the text is read too often or the expected loss rises.

    A text with little to learn, as noise, gets the chosen number.
    """
    text = conditions.text
    if text.difficulty.gain < 1:
        return chosen.steps
    most = text.most_passes(chosen.config.vocab_size) / chosen.passes
    factor, best = 1.0, chosen
    while factor * LONGER < most:
        longer = _lengthened(chosen, factor * LONGER, conditions)
        if longer.expected > best.expected:
            break
        factor, best = factor * LONGER, longer
    return best.steps


def _lengthened(chosen: Candidate, factor: float, conditions: Conditions) -> Candidate:
    """Return a run with this many times the steps."""
    training = replace(chosen.training, trained_bytes=chosen.training.trained_bytes * factor)
    expected = conditions.law.bits_per_byte(training, conditions.text.difficulty)
    return replace(
        chosen, steps=int(chosen.steps * factor), seconds=chosen.seconds * factor, training=training, expected=expected
    )


def filled(chosen: Candidate, conditions: Conditions) -> Candidate:
    """Lengthen a run to all steps that the budget allows and the text is good for, even if little is expected of them."""
    budget = conditions.budget
    step, flops = chosen.seconds / chosen.steps, training_flops_per_token(chosen.config)
    most = min(conditions.limits.seconds / step, min(budget.tokens, budget.flops / flops) / chosen.step_tokens)
    steps = int(min(longest_steps(chosen, conditions), most))
    return chosen if steps <= chosen.steps else replace(_lengthened(chosen, steps / chosen.steps, conditions), steps=steps)


def limit_of(chosen: Candidate, refused: Mapping[str, Candidate], conditions: Conditions) -> str:
    """Return the resource that limits the loss: "memory", "disk", "time", "the budget" or "text"."""
    for reason, candidate in refused.items():
        if candidate.expected * ENOUGH < chosen.expected:
            return reason
    if chosen.seconds >= NEARLY * conditions.limits.seconds:
        return "time"
    budget, tokens = conditions.budget, chosen.steps * chosen.step_tokens
    is_spent = max(tokens / budget.tokens, tokens * training_flops_per_token(chosen.config) / budget.flops) >= NEARLY
    return "the budget" if is_spent else "text"


def architectures(vocab_sizes: Sequence[int], shapes: Sequence[tuple[int, int]] = SHAPES) -> list[GPTConfig]:
    """Return the models of these shapes (width and blocks) for each vocabulary."""
    return [
        GPTConfig(
            vocab_size=size,
            context_length=CONTEXT,
            emb_dim=width,
            n_heads=width // HEAD_DIM,
            n_layers=layers,
            tie_embeddings=False,
            init="modern",
            kind="modern",
        )
        for size in vocab_sizes
        for width, layers in shapes
    ]
