"""A ladder: a few short trainings on one text say which model and learning rate are best for the rest of a budget."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from gpt_pretrain.errors import UserError
from gpt_pretrain.model.config import GPTConfig
from gpt_pretrain.model.costs import matmul_parameters, num_parameters, training_flops_per_token
from gpt_pretrain.system.formatting import format_duration
from gpt_pretrain.training.budget import choice
from gpt_pretrain.training.budget.amount import Budget
from gpt_pretrain.training.budget.law import Law, Training, fitted_law
from gpt_pretrain.training.budget.own_law import MeasuredTraining, OwnLaw, fit_own_law
from gpt_pretrain.training.budget.speed import Speed

N_SIZES, MIN_MEASURED = 3, 2
LR_FACTORS = (0.5, 2.0)  # of the learning rate, at the middle size, besides 1
N_RUNGS = N_SIZES + len(LR_FACTORS)
RUNG_SHARE = 0.06  # of the budget, for each rung
MIN_RUNG_SECONDS = 45.0  # a shorter one would hardly be more than its start
MIN_RUNG_STEPS = 60  # with fewer, a model has not learned enough to be compared
MIN_REST_SECONDS = 45.0  # for the last training
WORTHWHILE = 0.003  # another learning rate is taken if it lowers the loss by this share


@dataclass(frozen=True)
class Rung:
    """A short training.

    Args:
        width: Width of the model.
        layers: Blocks of the model.
        vocab_size: Tokens of the vocabulary.
        lr_factor: Multiple of the usual learning rate.
        seconds: Its budget.
    """

    width: int
    layers: int
    vocab_size: int
    lr_factor: float
    seconds: float

    @property
    def name(self) -> str:
        """The name of its folder."""
        rate = "" if self.lr_factor == 1 else f"-lr{self.lr_factor:.3g}"
        return f"rung-{self.width}x{self.layers}{rate}"

    @property
    def final_name(self) -> str:
        """The name of its folder if it is trained with the rest of the budget."""
        return self.name.replace("rung", "best")

    @property
    def config(self) -> GPTConfig:
        """Its model."""
        return choice.architectures([self.vocab_size], [(self.width, self.layers)])[0]

    def overrides(self, lr: float) -> list[str]:
        """Return its settings as they are typed.

        Args:
            lr: The usual learning rate.
        """
        config = self.config
        shape = [f"model.{name}={getattr(config, name)}" for name in ("emb_dim", "n_layers", "n_heads", "context_length")]
        rate = [] if self.lr_factor == 1 else [f"optimizer.lr={lr * self.lr_factor:.4g}"]
        return [f"budget={self.seconds:.0f}s", *shape, f"tokenizer.vocab_size={self.vocab_size}", *rate]


@dataclass(frozen=True)
class RungResult:
    """The results of a rung.

    Args:
        bits: Bits per byte of held-out text.
        tokens: Tokens it was trained on.
        tokens_per_second: Without losses and checkpoints.
    """

    rung: Rung
    bits: float
    tokens: int
    tokens_per_second: float


@dataclass(frozen=True)
class Prediction:
    """The expected loss of a model of some size, and its interval for nine of ten cases.

    Args:
        parameters: All parameters of the model.
    """

    parameters: int
    expected: float
    low: float
    high: float


@dataclass(frozen=True)
class LadderChoice:
    """The training that the rungs have chosen for the rest of the budget.

    Args:
        best: The training, with the seconds that are left.
        sizes: Predictions for each size with these seconds, ascending.
        rungs: What the fitted law says about the measured sizes, ascending.
        is_extrapolated: Whether the chosen model is larger than those of the rungs.
    """

    best: Rung
    sizes: list[Prediction]
    rungs: list[Prediction]
    is_extrapolated: bool

    @property
    def chosen(self) -> Prediction:
        """The prediction for the chosen size."""
        return next(one for one in self.sizes if one.parameters == num_parameters(self.best.config))


def check_length(seconds: float) -> None:
    """Check that a ladder of this length has time for its rungs.

    Raises:
        UserError: If not.
    """
    each, shortest = RUNG_SHARE * seconds, math.ceil(MIN_RUNG_SECONDS / RUNG_SHARE / 60)
    if each < MIN_RUNG_SECONDS:
        raise UserError(
            f"budget={_as_budget(seconds)} is too short for a ladder: each of its {N_RUNGS} short trainings would have "
            f"{each:.0f} s. Give it at least {shortest}m, or train at once: "
            f"python train.py data.path=FILE budget={_as_budget(seconds)}"
        )


def plan_rungs(text: choice.TextFacts, speed: Speed, limits: choice.Limits, *, seconds: float) -> list[Rung]:
    """Return the rungs of a ladder: three sizes up to the one that the law would choose, and two more learning rates.

    Args:
        limits: What this machine has.
        seconds: The whole budget.

    Raises:
        UserError: If the budget is too short for them.
    """
    each = RUNG_SHARE * seconds
    law = fitted_law()
    rest = _with_seconds(limits, seconds * (1 - N_RUNGS * RUNG_SHARE))
    found = _candidates(text, rest, speed, law, choice.architectures([*text.bytes_per_token]))
    if not found:
        raise UserError("The smallest model does not fit into this machine's memory or disk. Free some of it.")
    best = choice.best_of(found)
    vocab_size = best.config.vocab_size
    text = _with_vocabulary(text, vocab_size)
    possible = [shape for shape in choice.SHAPES if _can_train(shape, vocab_size, text, speed, _with_seconds(limits, each))]
    if len(possible) < N_SIZES:
        raise UserError(
            f"budget={_as_budget(seconds)} is too short for a ladder: in {format_duration(each)}, a short training, this machine "
            f"gets through {MIN_RUNG_STEPS} optimizer steps of only {len(possible)} of the {N_SIZES} sizes. Choose a longer one, "
            f"or train at once: python train.py data.path=FILE budget={_as_budget(seconds)}"
        )
    index = min(choice.SHAPES.index((best.config.emb_dim, best.config.n_layers)), len(possible) - 1)
    top = max(index, N_SIZES - 1)
    sizes = possible[top - N_SIZES + 1 : top + 1]
    middle = sizes[len(sizes) // 2]
    line = [Rung(*middle, vocab_size, factor, each) for factor in LR_FACTORS]
    return [*(Rung(*shape, vocab_size, 1.0, each) for shape in sizes), *line]


def choose_rest(results: Sequence[RungResult], text: choice.TextFacts, limits: choice.Limits) -> LadderChoice:
    """Return what to train with the rest of the budget.

    Args:
        results: Those of the rungs that have ended.
        limits: What this machine has; the seconds are those that are left.

    Raises:
        UserError: If too few sizes were measured, or nothing fits into the rest.
    """
    if limits.seconds < MIN_REST_SECONDS:
        raise UserError(
            f"Of the budget, {format_duration(max(limits.seconds, 0.0))} are left, too little for a training. The best rung is "
            "what this ladder has."
        )
    sizes = sorted((one for one in results if one.rung.lr_factor == 1), key=lambda one: one.rung.width)
    if len(sizes) < MIN_MEASURED:
        raise UserError(f"Only {len(sizes)} of {N_SIZES} sizes were measured, so there is nothing to fit. See the errors above.")
    vocab_size = sizes[0].rung.vocab_size
    text = _with_vocabulary(text, vocab_size)
    own = fit_own_law(fitted_law(), text.difficulty, [_measured(one, text) for one in sizes])
    speed = _measured_speed(sizes)
    configs = choice.architectures([vocab_size])
    found = _candidates(text, limits, speed, own, configs)
    if not found:
        raise UserError("No model fits into the memory and the disk that this machine has left. Free some of it.")
    best = choice.best_of(found)
    ratios = {one.rung: one.bits / own.bits_per_byte(_measured(one, text).training, text.difficulty) for one in results}
    chosen = Rung(best.config.emb_dim, best.config.n_layers, vocab_size, best_lr_factor(ratios), limits.seconds)
    return LadderChoice(
        chosen,
        [_predict(one.config, one.training, own, text) for one in _best_by_size(found)],
        [_predict(one.rung.config, _measured(one, text).training, own, text) for one in sizes],
        best.config.emb_dim > max(one.rung.width for one in sizes),
    )


def best_lr_factor(ratios: Mapping[Rung, float]) -> float:
    """Return the multiple of the usual learning rate with the lowest loss: the vertex of a parabola, between the measured rates.

    The usual rate stays if another one is hardly better, or if the line was not measured.

    Args:
        ratios: The loss of each rung as a multiple of what the law expects of the text that it has read, since rungs read
            different amounts where the speed of the machine changes.
    """
    line = {math.log2(rung.lr_factor): ratio for rung, ratio in ratios.items() if rung.lr_factor != 1}
    shapes = {(rung.width, rung.layers) for rung in ratios if rung.lr_factor != 1}
    usual = [ratio for rung, ratio in ratios.items() if rung.lr_factor == 1 and (rung.width, rung.layers) in shapes]
    if not line or not usual:
        return 1.0
    points = sorted([*line.items(), (0.0, usual[0])])
    lowest, ratio = min(points, key=lambda point: point[1])
    if len(points) == 1 + len(LR_FACTORS):
        a, b, c = np.polyfit([x for x, _ in points], [y for _, y in points], 2)
        if a > 0:
            lowest = float(np.clip(-b / (2 * a), points[0][0], points[-1][0]))
            ratio = float(a * lowest**2 + b * lowest + c)
    return round(2.0**lowest, 3) if ratio < (1 - WORTHWHILE) * usual[0] else 1.0


def describe_size(parameters: int) -> str:
    """Return a number of parameters in words."""
    return f"{parameters / 1e6:.1f}M parameters" if parameters >= 1e6 else f"{parameters / 1e6:.2f}M parameters"


def describe_choice(ladder: LadderChoice, results: Sequence[RungResult]) -> list[str]:
    """Return lines that say what the rungs have shown and what is chosen."""
    config, chosen, best = ladder.best.config, ladder.chosen, ladder.best
    lines = ["", "Ladder:"]
    for one in sorted(results, key=lambda one: (one.rung.lr_factor != 1, one.rung.width, one.rung.lr_factor)):
        rate = "" if one.rung.lr_factor == 1 else f", {one.rung.lr_factor:g} times the learning rate"
        size = describe_size(num_parameters(one.rung.config))
        lines.append(f"  {size} ({one.rung.width}x{one.rung.layers}{rate}): {one.bits:.3f} bits per byte")
    rate = "the usual learning rate" if best.lr_factor == 1 else f"{best.lr_factor:g} times the usual learning rate"
    lines += [
        f"Chosen for the {format_duration(best.seconds)} that are left: {describe_size(num_parameters(config))} "
        f"(model.emb_dim={config.emb_dim} model.n_layers={config.n_layers}), {rate}.",
        f"To expect: {chosen.expected:.2f} bits per byte, in nine of ten cases between {chosen.low:.2f} and {chosen.high:.2f}.",
    ]
    if ladder.is_extrapolated:
        lines.append("This model is larger than those of the ladder, so its loss is extrapolated.")
    return lines


def _candidates(
    text: choice.TextFacts, limits: choice.Limits, speed: Speed, law: Law, configs: Sequence[GPTConfig]
) -> list[choice.Candidate]:
    """Return the trainings of these models that the limits allow."""
    found = choice.candidates(text, Budget(seconds=limits.seconds), limits, speed, law, configs=configs)
    return [one for one in found if choice.fits(one, limits) is None]


def _can_train(shape: tuple[int, int], vocab_size: int, text: choice.TextFacts, speed: Speed, limits: choice.Limits) -> bool:
    """Return whether the limits allow enough steps of a model of this shape."""
    found = _candidates(text, limits, speed, fitted_law(), choice.architectures([vocab_size], [shape]))
    return any(one.steps >= MIN_RUNG_STEPS for one in found)


def _best_by_size(found: Sequence[choice.Candidate]) -> list[choice.Candidate]:
    """Return the training with the lowest expected loss of each model, the smallest model first."""
    best: dict[int, choice.Candidate] = {}
    for one in found:
        size = num_parameters(one.config)
        if size not in best or one.expected < best[size].expected:
            best[size] = one
    return [best[size] for size in sorted(best)]


def _predict(config: GPTConfig, training: Training, own: OwnLaw, text: choice.TextFacts) -> Prediction:
    low, high = own.interval(training, text.difficulty)
    return Prediction(num_parameters(config), own.bits_per_byte(training, text.difficulty), low, high)


def _measured(result: RungResult, text: choice.TextFacts) -> MeasuredTraining:
    config = result.rung.config
    matrices = matmul_parameters(config) - config.vocab_size * config.emb_dim
    trained_bytes = result.tokens * text.bytes_per_token[config.vocab_size]
    return MeasuredTraining(Training(matrices, config.vocab_size, text.train_bytes, trained_bytes), result.bits)


def _measured_speed(sizes: Sequence[RungResult]) -> Speed:
    """Return the speed of training as the rungs had it, with everything around their steps."""
    flops = [training_flops_per_token(one.rung.config) for one in sizes]
    return Speed(tuple(flops), tuple(work * one.tokens_per_second for work, one in zip(flops, sizes, strict=True)))


def _with_vocabulary(text: choice.TextFacts, vocab_size: int) -> choice.TextFacts:
    """Return a text with one vocabulary, as a training sees it for which the vocabulary is typed."""
    return replace(text, bytes_per_token={vocab_size: text.bytes_per_token[vocab_size]})


def _with_seconds(limits: choice.Limits, seconds: float) -> choice.Limits:
    return replace(limits, seconds=seconds)


def _as_budget(seconds: float) -> str:
    return f"{seconds:g}s" if seconds % 60 else f"{seconds / 60:g}m"
