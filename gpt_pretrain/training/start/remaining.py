"""Find out how much a checkpoint's run has left to train: the rest of its budget or limits, or nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from gpt_pretrain.config.schema import TrainSettings
from gpt_pretrain.errors import AlreadyCompleteError, UserError
from gpt_pretrain.runs.next_commands import more_patience
from gpt_pretrain.system.formatting import format_count, format_duration
from gpt_pretrain.system.shown_values import short_repr
from gpt_pretrain.training.budget.amount import parse_budget
from gpt_pretrain.training.budget.pace import DAMAGED_PLAN, Pace, read_points
from gpt_pretrain.training.run_length import reached_limit


def check_incomplete(settings: TrainSettings, content: dict[str, Any]) -> None:
    """Check that a run is not complete.

    Raises:
        AlreadyCompleteError: If it is complete.
    """
    for find_end in (_end_by_budget, _end_by_early_stopping, _end_by_limit):
        if (end := find_end(settings, content)) is not None:
            raise AlreadyCompleteError(f"{settings.run_dir} {end}", result=_best_of(content))


def _end_by_budget(settings: TrainSettings, content: dict[str, Any]) -> str | None:
    """Return the sentence that the budget has ended a run, with advice on training further; None if it has not."""
    state = content["callbacks"].get("KeepBudget")
    if settings.budget is None or not isinstance(state, dict) or state.get("ended") is not True:
        return None
    points = read_points(state.get("points"))
    if parse_budget(settings.budget).seconds < math.inf and points is not None and state.get("longest") == points[-1][2]:
        return "is complete: more training of its model on this text would not help. More text would, in a new run."
    spent = short_repr(content["config"].get("budget"))
    return (
        f"is complete: it has spent budget={spent}, and its learning rate has decayed. "
        "A longer training is a new run with a larger budget."
    )


def _end_by_early_stopping(settings: TrainSettings, content: dict[str, Any]) -> str | None:
    stop, epochs = settings.callbacks.early_stopping, _epochs(content)
    for name, state in content["callbacks"].items():
        if stop is not None and name.startswith("EarlyStopping") and state["wait_count"] >= max(1, stop.patience):
            return (
                f"is complete: early stopping ended it after {epochs} epochs, since the loss did not improve "
                f"in {state['wait_count']} validations. To train further, add: {more_patience(stop.patience)}"
            )
    return None


def _end_by_limit(settings: TrainSettings, content: dict[str, Any]) -> str | None:
    epochs, steps, tokens, trainer = _epochs(content), int(content["global_step"]), int(content["tokens_seen"]), settings.trainer
    limit = reached_limit(trainer, steps=steps, tokens=tokens) if settings.budget is None else None
    if limit is None and trainer.max_tokens is None and epochs >= trainer.max_epochs:
        limit = "max_epochs"
    if limit is None:
        return None
    done, value = {"max_steps": steps, "max_tokens": tokens, "max_epochs": epochs}[limit], getattr(trainer, limit)
    if done > value != content["config"]["trainer"].get(limit):  # The limit has been lowered after this.
        return (
            f"has already trained {format_count(done, limit.removeprefix('max_').rstrip('s'))}, more than "
            f"trainer.{limit}={value}. To train further, for example: trainer.{limit}={2 * done}"
        )
    more = 2 * (value if limit == "max_tokens" else done)
    length = f"{format_count(epochs, 'epoch')} and " if epochs else ""
    return (
        f"is complete: trainer.{limit}={value} ended it after {length}{format_count(steps, 'step')}. "
        f"To train further, raise the limit, for example: trainer.{limit}={more}"
    )


def _epochs(content: dict[str, Any]) -> int:
    return int(content["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"])


def _best_of(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the best validation loss in a checkpoint, with the step, epoch and weights that reached it."""
    best = {name: value for name, value in content["callbacks"].get("SaveRun", {}).items() if name.startswith("best_")}
    best["best_val_loss"] = best.pop("best_loss", None)
    return best


def stored_pace(typed: str, content: Mapping[str, Any]) -> Pace:
    """Return the steps that the budget of a checkpoint's run has planned.

    Args:
        typed: The budget of the resumed run. A time budget may differ from the checkpoint's.

    Raises:
        UserError: If that run had no budget, or the typed one cannot replace it.
    """
    state = content["callbacks"].get("KeepBudget")
    points = read_points(state.get("points")) if isinstance(state, dict) else None
    if points is None:
        raise UserError("budget= must be set when a run starts, and this run started without it. Leave it out.")
    spent, before, budget = state.get("spent"), str(content["config"].get("budget")), parse_budget(typed)
    if type(spent) is not float or not math.isfinite(spent):
        raise UserError(DAMAGED_PLAN)
    if budget != parse_budget(before) and math.inf in (budget.seconds, parse_budget(before).seconds):
        raise UserError(
            f"budget={typed}: this run has budget={short_repr(before)}, and only a budget of time can be changed. Leave it out."
        )
    if spent >= budget.seconds:
        raise UserError(f"budget={typed}: this run has spent {format_duration(spent)} already. Choose a longer time.")
    return Pace(points[0][2], points)
