"""Plan a ladder: a few short trainings on one text that show which model and learning rate are best for the rest of a budget."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from gpt_pretrain.errors import UserError
from gpt_pretrain.model.config import GPTConfig
from gpt_pretrain.model.costs import num_parameters
from gpt_pretrain.system.checkout import script_command
from gpt_pretrain.system.formatting import format_duration
from gpt_pretrain.training.budget import choice
from gpt_pretrain.training.budget.amount import Budget
from gpt_pretrain.training.budget.law import Law, fitted_law
from gpt_pretrain.training.budget.speed import Speed

N_SIZES = 3
LR_FACTORS = (0.5, 2.0)  # multiples of the learning rate that are tried as well, with the middle size
N_RUNGS = N_SIZES + len(LR_FACTORS)
RUNG_SHARE = 0.06  # share of the budget for each rung
MIN_RUNG_SECONDS = 45.0  # A shorter rung would be mostly its start.
MIN_RUNG_STEPS = 60  # With fewer steps, a model has not learned enough to be compared.


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
        """The name of its folder when it is trained with the rest of the budget."""
        return self.name.replace("rung", "best")

    @property
    def config(self) -> GPTConfig:
        """Its model."""
        return choice.architectures([self.vocab_size], [(self.width, self.layers)])[0]

    def overrides(self, lr: float) -> list[str]:
        """Return its settings as overrides.

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
        tokens: Number of tokens that it was trained on.
        tokens_per_second: Speed of the steps alone, without evaluations and checkpoints.
    """

    rung: Rung
    bits: float
    tokens: int
    tokens_per_second: float


@dataclass(frozen=True)
class Prediction:
    """The expected loss of a model of some size, and the interval in which it lies in nine of ten cases.

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
        sizes: Predictions for all sizes with the seconds that are left, the smallest first.
        rungs: Predictions for the trainings of the measured sizes, the smallest first.
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
        UserError: If it has not.
    """
    each, shortest = RUNG_SHARE * seconds, math.ceil(MIN_RUNG_SECONDS / RUNG_SHARE / 60)
    if each < MIN_RUNG_SECONDS:
        raise UserError(
            f"budget={_as_budget(seconds)} is too short for a ladder: each of its {N_RUNGS} short trainings would have "
            f"{each:.0f} s. Give it at least {shortest}m, or train at once: "
            f"{script_command('train.py')} data.path=FILE budget={_as_budget(seconds)}"
        )


def plan_rungs(text: choice.TextFacts, speed: Speed, limits: choice.Limits, *, seconds: float) -> list[Rung]:
    """Return the rungs of a ladder: three sizes up to the size that the law would choose, and two more learning rates.

    Args:
        limits: The memory and disk space of this machine.
        seconds: The whole budget.

    Raises:
        UserError: If the budget is too short for them.
    """
    each = RUNG_SHARE * seconds
    law = fitted_law()
    rest = replace(limits, seconds=seconds * (1 - N_RUNGS * RUNG_SHARE))
    found = allowed_trainings(text, rest, speed, law, choice.architectures([*text.bytes_per_token]))
    if not found:
        raise UserError("The smallest model does not fit into the free memory or disk space of this machine. Free more of it.")
    best = choice.best_of(found)
    vocab_size = best.config.vocab_size
    text = with_vocabulary(text, vocab_size)
    possible = [shape for shape in choice.SHAPES if _can_train(shape, vocab_size, text, speed, replace(limits, seconds=each))]
    if len(possible) < N_SIZES:
        raise UserError(
            f"budget={_as_budget(seconds)} is too short for a ladder: in {format_duration(each)}, the time of a short training, "
            f"this machine completes {MIN_RUNG_STEPS} optimizer steps with only {len(possible)} of the {N_SIZES} sizes. Give a "
            f"longer budget, or train at once: {script_command('train.py')} data.path=FILE budget={_as_budget(seconds)}"
        )
    index = min(choice.SHAPES.index((best.config.emb_dim, best.config.n_layers)), len(possible) - 1)
    top = max(index, N_SIZES - 1)
    sizes = possible[top - N_SIZES + 1 : top + 1]
    middle = sizes[len(sizes) // 2]
    line = [Rung(*middle, vocab_size, factor, each) for factor in LR_FACTORS]
    return [*(Rung(*shape, vocab_size, 1.0, each) for shape in sizes), *line]


def allowed_trainings(
    text: choice.TextFacts, limits: choice.Limits, speed: Speed, law: Law, configs: Sequence[GPTConfig]
) -> list[choice.Candidate]:
    """Return the trainings of these models that the limits allow."""
    conditions = choice.Conditions(text, Budget(seconds=limits.seconds), limits, speed, law)
    found = choice.candidates(conditions, configs=configs)
    return [one for one in found if choice.fits(one, limits) is None]


def _can_train(shape: tuple[int, int], vocab_size: int, text: choice.TextFacts, speed: Speed, limits: choice.Limits) -> bool:
    """Return whether the limits allow enough steps of a model of this shape."""
    found = allowed_trainings(text, limits, speed, fitted_law(), choice.architectures([vocab_size], [shape]))
    return any(one.steps >= MIN_RUNG_STEPS for one in found)


def with_vocabulary(text: choice.TextFacts, vocab_size: int) -> choice.TextFacts:
    """Return the facts about a text with only one vocabulary, as in a training whose vocabulary is typed."""
    return replace(text, bytes_per_token={vocab_size: text.bytes_per_token[vocab_size]})


def _as_budget(seconds: float) -> str:
    return f"{seconds:g}s" if seconds % 60 else f"{seconds / 60:g}m"
