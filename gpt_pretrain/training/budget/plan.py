"""Turn the budget of a run into settings, each with a reason."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Set
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from gpt_pretrain.config.overrides import quote_value
from gpt_pretrain.config.rules import as_typed_value
from gpt_pretrain.config.schema import TrainSettings
from gpt_pretrain.errors import UserError
from gpt_pretrain.model.config import GPTConfig
from gpt_pretrain.model.costs import num_parameters
from gpt_pretrain.system.checkout import script_command
from gpt_pretrain.system.formatting import format_duration, format_short
from gpt_pretrain.system.shown_values import short_repr
from gpt_pretrain.tokenizers.bpe_training import AUTOMATIC_NAME, TRAINED_NAME
from gpt_pretrain.training.budget import choice
from gpt_pretrain.training.budget.amount import Budget, parse_budget
from gpt_pretrain.training.budget.law import STUDIED_VOCABULARY, fitted_law
from gpt_pretrain.training.budget.machine import measured_limits, measured_speed
from gpt_pretrain.training.budget.pace import Pace
from gpt_pretrain.training.budget.published import PublishedCandidate, published_choice
from gpt_pretrain.training.budget.text_facts import describe_text
from gpt_pretrain.training.budget.typed import (
    allowed_architectures,
    is_typed,
    ready_tokenizer,
    unstudied,
    wanted_vocabularies,
)
from gpt_pretrain.training.distributed import ranks

PLANNING_SHARE, TEXT_SHARE = 0.1, 0.75  # share of the budget for planning, and share of that for describing the text
DECAY_FRACTION = 0.75  # as in the study's schedule
MOST_EVALUATIONS, EVALUATION_BATCHES, EVALUATION_SHARE = 40, 2, 0.05
LONG, CHECKPOINTS = 600.0, 10  # seconds; a longer run is also saved within epochs, at least this many times
MOST_UNSAVED = 30.0  # minutes of a run between two checkpoints
# Settings that the published rules choose together. The rules are used only if none of these is typed.
PUBLISHED = (
    *("model.emb_dim", "model.n_layers", "model.n_heads", "model.context_length", "optimizer.lr"),
    *("data.batch_size", "trainer.accumulate_grad_batches"),
)
SPARE_EPOCHS = 100  # times the planned epochs, in case the machine becomes faster

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BudgetPlan:
    """The decisions that follow from a budget.

    Args:
        budget: The budget.
        pace: The steps of the schedule.
        longest: The most steps that improve the model. The run ends after them.
        lines: A line for each decision, with its reason.
        began: The start of a time budget.
    """

    budget: Budget
    pace: Pace
    lines: list[str]
    began: float
    longest: int | None = None


@dataclass(frozen=True)
class Decision:
    """A setting, its value, and the reason."""

    value: Any
    reason: str


def plan_budget(settings: TrainSettings, overridden: Set[str], *, began: float) -> BudgetPlan:
    """Choose the settings that the user has not typed, in place, and plan the run's length. The first rank decides.

    Args:
        began: The start of a time budget.

    Raises:
        UserError: If the budget is too small for a training, or contradicts other settings.
    """
    assert settings.budget is not None
    budget = parse_budget(settings.budget)
    if settings.tokenizer.name == AUTOMATIC_NAME:  # Even a typed auto leaves the choice to the budget.
        overridden = overridden - {"tokenizer", "tokenizer.name"}
    plain = ranks.broadcast(_decide_here(settings, overridden, budget, began) if ranks.is_main() else None)
    for name, value in plain["settings"].items():
        group, _, field = name.rpartition(".")
        setattr(attrgetter(group)(settings) if group else settings, field, value)
    return BudgetPlan(budget, Pace(plain["steps"]), plain["lines"], began, plain["longest"])


def _decide_here(settings: TrainSettings, overridden: Set[str], budget: Budget, began: float) -> dict[str, Any]:
    """Measure the text and this machine, and return the decision as plain containers."""
    allowed = PLANNING_SHARE * budget.seconds
    tokenizer = ready_tokenizer(settings, overridden)
    text = describe_text(
        settings.data,
        [] if tokenizer is not None else wanted_vocabularies(settings, overridden),
        tokenizer=tokenizer,
        seconds=TEXT_SHARE * allowed,
    )
    speed = measured_speed(settings, text, seconds=(1 - TEXT_SHARE) * allowed)
    limits = measured_limits(settings, budget.seconds - (time.monotonic() - began) - text.seconds_to_encode)
    return decide(settings, overridden, choice.Conditions(text, budget, limits, speed, fitted_law()))


def decide(settings: TrainSettings, overridden: Set[str], conditions: choice.Conditions) -> dict[str, Any]:
    """Choose a run by the measurements.

    Returns:
        The settings to change, by name; the steps of the run; and the lines that explain the choice.

    Raises:
        UserError: If the budget is too small for a training.
    """
    text = conditions.text
    chosen, refused = _choose(settings, overridden, conditions)
    if isinstance(chosen, PublishedCandidate):
        others, longest = [format_short(num_parameters(chosen.config), "parameters")], chosen.most_steps
    else:
        others = unstudied(settings, overridden, chosen.config, text.difficulty.pilot)
        longest = choice.longest_steps(chosen, conditions)
        chosen = choice.filled(chosen, conditions)
    limit = choice.limit_of(chosen, refused, conditions)
    decisions = decided_settings(chosen, text, limit)
    if isinstance(chosen, PublishedCandidate):
        decisions |= published_settings(chosen, settings)
    taken = {name: one for name, one in decisions.items() if not is_typed(name, overridden)}
    if settings.optimizer.decay != "roles":
        taken = {name: one for name, one in taken.items() if not name.startswith("optimizer.")}
    lines = [
        f"budget  {settings.budget}: the lowest expected loss on this machine and text",
        *(f"        {name}={as_typed_value(one.value)}: {one.reason}" for name, one in taken.items() if one.reason),
        expectation(chosen, conditions, others, limit),
        f"same as {_command(settings, taken, chosen, overridden)}",
    ]
    values = {name: decision.value for name, decision in taken.items()}
    return {"settings": values, "steps": chosen.steps, "longest": longest, "lines": lines}


def _choose(
    settings: TrainSettings, overridden: Set[str], conditions: choice.Conditions
) -> tuple[choice.Candidate, dict[str, choice.Candidate]]:
    """Return the best run that fits the machine, and for each scarce resource the best run that does not fit because of it."""
    found, refused = list[choice.Candidate](), dict[str, choice.Candidate]()
    configs = allowed_architectures(settings, overridden, conditions.text)
    batch = settings.data.batch_size if is_typed("data.batch_size", overridden) else None
    for one in choice.candidates(conditions, configs=configs, batch=batch):
        reason = choice.fits(one, conditions.limits)
        if reason is None:
            found.append(one)
        elif reason not in refused or one.expected < refused[reason].expected:
            refused[reason] = one
    if not found:
        raise UserError(_too_small(settings, overridden, refused, conditions))
    large = None
    if not any(is_typed(name, overridden) for name in PUBLISHED):
        large = published_choice(conditions)
    return large or choice.best_of(found), refused


def decided_settings(chosen: choice.Candidate, text: choice.TextFacts, limit: str) -> dict[str, Decision]:
    """Return all settings of a candidate, by name. Those worth a line have a reason."""
    config = chosen.config
    dropout, decay, head_decay = choice.regularization_of(chosen.training)
    parameters = format_short(num_parameters(config), "parameters")
    is_short = config.context_length < choice.CONTEXT  # a typed length has no line
    context = "the validation set is hardly longer" if is_short else "the length that the rules were measured with"
    passes = f"the text is read {chosen.passes:.1f} times"
    evaluations = max(4, min(MOST_EVALUATIONS, int(chosen.steps * EVALUATION_SHARE * 3 / (2 * EVALUATION_BATCHES))))
    every = max(1, chosen.steps // evaluations)
    epochs = max(1, math.ceil(chosen.passes))
    minutes = min(round(chosen.seconds / CHECKPOINTS / 60, 1), MOST_UNSAVED) if chosen.seconds >= LONG else None
    return {
        **_vocabulary(config, text),
        "model.emb_dim": Decision(config.emb_dim, ""),
        "model.n_layers": Decision(config.n_layers, f"{parameters} with emb_dim={config.emb_dim}, limited by {limit}"),
        "model.n_heads": Decision(config.n_heads, ""),
        "model.context_length": Decision(config.context_length, context),
        "model.drop_rate": Decision(dropout, passes),
        "optimizer.matrices.weight_decay": Decision(decay, ""),
        "optimizer.head.weight_decay": Decision(head_decay, f"{decay} for the other matrices"),
        "scheduler.name": Decision("warmup_stable_decay", ""),
        "scheduler.decay_fraction": Decision(DECAY_FRACTION, ""),
        "data.batch_size": Decision(chosen.batch, f"{chosen.step_tokens:,} tokens per step, {chosen.steps:,} steps"),
        "data.shift_windows": Decision(epochs > 1, ""),
        "data.val_tokens": Decision(_val_tokens(chosen, epochs), "validations take about 5% of the time"),
        "eval_freq": Decision(every, f"losses take about {EVALUATION_SHARE:.0%} of the time"),
        "eval_iter": Decision(EVALUATION_BATCHES, ""),
        "checkpoint.every_n_minutes": Decision(minutes, ""),
        "callbacks.samples": Decision(epochs * 0.5 < 0.05 * chosen.seconds, ""),
        "trainer.log_every_n_steps": Decision(max(1, every // 4), ""),
        "doubts.min_tokens_per_parameter": Decision(0.0, ""),
        "trainer.max_epochs": Decision(max(epochs * SPARE_EPOCHS, chosen.steps), ""),
        "trainer.max_steps": Decision(chosen.steps, ""),
    }


def _vocabulary(config: GPTConfig, text: choice.TextFacts) -> dict[str, Decision]:
    length = f"{text.bytes_per_token[config.vocab_size]:.1f} bytes per token"
    if text.tokenizer is None:
        return {"tokenizer.name": Decision(TRAINED_NAME, ""), "tokenizer.vocab_size": Decision(config.vocab_size, length)}
    is_modern = config.kind == "modern"
    reason = "a short text alone makes a vocabulary of few words" if is_modern else f"usual for model.kind={config.kind}"
    return {"tokenizer.name": Decision(text.tokenizer, f"{length}; {reason}")}


def published_settings(chosen: PublishedCandidate, settings: TrainSettings) -> dict[str, Decision]:
    """Return the settings in which a run by published rules differs from the study, by name."""
    optimizer = settings.optimizer
    rates = {"optimizer.lr": optimizer.lr} | {
        f"optimizer.{role}.lr": getattr(optimizer, role).lr for role in ("embedding", "head", "vectors")
    }
    return {
        "model.context_length": Decision(chosen.config.context_length, "as published for models of this size"),
        "trainer.accumulate_grad_batches": Decision(chosen.accumulate, "the published batch for this size, in parts"),
        **{name: Decision(rate * chosen.lr_factor, "") for name, rate in rates.items() if rate is not None},
    }


def expectation(chosen: choice.Candidate, conditions: choice.Conditions, others: list[str], limit: str) -> str:
    """Describe the loss to expect, with an interval if the rules were measured near it.

    Args:
        others: Settings that no training of the study had.
        limit: The resource that keeps the loss from being lower.
    """
    if not conditions.law.reaches(chosen.training):
        return (
            "expect  a loss that cannot be predicted: this run is more than a hundred times as large as those that the rules "
            f"were fitted to; limited by {limit}"
        )
    if conditions.text.tokenizer is None and chosen.config.vocab_size > STUDIED_VOCABULARY:
        return (
            f"expect  a loss that cannot be predicted: the rules were not measured with a vocabulary of "
            f"{chosen.config.vocab_size:,} tokens trained on the text; limited by {limit}"
        )
    if others:
        return (
            f"expect  about {chosen.expected:.2f} bits per byte by rules that were not measured with {', '.join(others)}; "
            f"limited by {limit}"
        )
    if conditions.law.is_repetitive(conditions.text.difficulty):
        return (
            f"expect  less than {chosen.expected:.2f} bits per byte: the text repeats more long passages than those that the "
            f"rules were fitted to; limited by {limit}"
        )
    low, high = conditions.law.interval(chosen.training, conditions.text.difficulty)
    return (
        f"expect  {chosen.expected:.2f} bits per byte, in nine of ten cases between {low:.2f} and {high:.2f}; limited by {limit}"
    )


def _too_small(
    settings: TrainSettings, overridden: Set[str], refused: Mapping[str, choice.Candidate], conditions: choice.Conditions
) -> str:
    budget = short_repr(settings.budget)
    typed = [name for name in ("model.emb_dim", "data.batch_size") if is_typed(name, overridden)]
    model = "the typed model" if "model.emb_dim" in typed else "the smallest model"
    batch = (
        f" with data.batch_size={settings.data.batch_size}"
        if settings.data.batch_size is not None and "data.batch_size" in typed
        else ""
    )
    for reason in refused:
        what = f"the typed {' and '.join(name.removesuffix('.emb_dim') for name in typed)}" if typed else "no model"
        fits = ("do" if len(typed) > 1 else "does") + " not fit" if typed else "fits"
        remedy = "Choose smaller ones, or free" if typed else "Free"
        return f"budget={budget}: {what} {fits} into the {reason} that this machine has left. {remedy} some of it."
    problem = f"budget={budget} is too small for {choice.MIN_STEPS} optimizer steps of {model}{batch}"
    return f"{problem}{_time_left(conditions)}. Give a larger budget."


def _time_left(conditions: choice.Conditions) -> str:
    left, whole = conditions.limits.seconds, conditions.budget.seconds
    if math.inf in (left, whole):
        return ""
    start = f": the start, with reading the text and measuring, takes {format_duration(whole - left)}"
    return f"{start}, so {format_duration(left)} are left" if left > 0 else start


def _val_tokens(chosen: choice.Candidate, epochs: int) -> int:
    """Return the number of tokens to validate after each epoch. Validation takes about a twentieth of the time."""
    tokens = chosen.steps * chosen.step_tokens
    return max(50 * chosen.config.context_length, int(0.05 * 3 * tokens / (epochs + 1)))


def _command(settings: TrainSettings, taken: Mapping[str, Decision], chosen: choice.Candidate, overridden: Set[str]) -> str:
    typed = sorted(
        name.removesuffix(".name") for name in overridden - {"budget", "data", "data.path", "plan"} if "hydra" not in name
    )
    path = [] if settings.data.path is None else [f"data.path={quote_value(settings.data.path)}"]
    values = {name: one.value for name, one in taken.items() if one.value != attrgetter(name)(settings)}
    values = {name: value for name, value in values.items() if not name.startswith(("trainer.max_", "doubts."))}
    values = {name.replace("tokenizer.name", "tokenizer"): value for name, value in values.items()}
    words = [f"{name}={as_typed_value(value)}" for name, value in values.items()]
    return " ".join(
        [
            script_command("train.py"),
            *path,
            *words,
            f"trainer.max_steps={chosen.steps}",
            f"trainer.max_epochs={max(1, math.ceil(chosen.passes)) + 1}",
            *([f"and the same {', '.join(f'{name}=' for name in typed)}"] if typed else []),
        ]
    )
