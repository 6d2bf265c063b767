"""Run a ladder as the jobs of a sweep: first the rungs, then the best model for the rest of the budget."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence, Set
from pathlib import Path

from gpt_pretrain.config.schema import TrainSettings
from gpt_pretrain.errors import UserError
from gpt_pretrain.runs.metadata import COMPLETE, metadata_section, read_metadata
from gpt_pretrain.sweeps.ladder import MIN_RUNG_STEPS, N_RUNGS, Rung, RungResult, check_length, plan_rungs
from gpt_pretrain.sweeps.ladder_choice import choose_rest, describe_choice
from gpt_pretrain.sweeps.ladder_file import StoredLadder, read_ladder
from gpt_pretrain.sweeps.runner import JobRunner
from gpt_pretrain.system.checkout import script_command
from gpt_pretrain.system.formatting import format_duration, is_finite_number
from gpt_pretrain.system.terminal import print_escaped
from gpt_pretrain.tokenizers.bpe_training import VOCABULARY_SIZES
from gpt_pretrain.training.budget import choice
from gpt_pretrain.training.budget.amount import parse_budget
from gpt_pretrain.training.budget.machine import measured_limits, measured_speed
from gpt_pretrain.training.budget.text_facts import describe_text
from gpt_pretrain.training.budget.typed import LENGTHS

CHOSEN = ("model", "tokenizer", "optimizer.lr", "experiment", "init_from")  # settings and groups that a ladder decides
TEXTS = ("data", "data.path", "data.url")
MIN_STEPS = MIN_RUNG_STEPS // 2  # A rung with fewer steps does not count. The machine may have become slower.
DIVERGED = 100.0  # bits per byte
MAX_MEASURED = 1e18  # the largest believable number of tokens and the like


def ladder_problems(keys: Set[str], swept: Set[str]) -> list[str]:
    """List what is wrong with the settings that are typed for a ladder.

    Args:
        keys: All typed settings.
        swept: Settings with several values.
    """
    problems = [f"{key}: a ladder chooses its own trainings, so each setting has one value." for key in sorted(swept)]
    problems += [
        f"{key}=: a ladder measures which one is best. Leave it out; {script_command('train.py')} budget= keeps it as typed."
        for key in sorted(keys)
        if any(key == name or key.startswith(f"{name}.") for name in CHOSEN)
    ]
    problems += [f"{key}= and budget= both decide how long a ladder is. Leave out {key}=." for key in LENGTHS if key in keys]
    if not keys & set(TEXTS):
        problems.append("A ladder needs a text: data.path=FILE, DIRECTORY or GLOB.")
    if "budget" not in keys:
        problems.append("A ladder needs a time for all its trainings together, such as budget=2h.")
    return problems


def run_ladder(
    runner: JobRunner, settings: TrainSettings, common: Sequence[str], *, began: float, save_settings: Callable[[], None]
) -> None:
    """Run the trainings of a ladder that have not ended yet.

    Args:
        settings: The settings of all trainings. Its budget is for the whole ladder.
        common: The overrides of all trainings.
        began: The time at which this process began, by the monotonic clock.
        save_settings: Stores the overrides of the sweep, once they have been checked.

    Raises:
        UserError: If the budget is no time or too short, the text cannot be read, or too few rungs have ended.
    """
    seconds = _seconds(settings)
    ladder = read_ladder(runner.folder)
    if ladder is not None and ladder.seconds != seconds:
        raise UserError(
            f"budget={settings.budget}: this ladder was planned for {format_duration(ladder.seconds)}, which cannot change after "
            "its start. Leave budget= out, or start a new ladder."
        )
    if ladder is None or ladder.choice is None:
        known = [] if ladder is None else [rung.vocab_size for rung in ladder.rungs]
        text = describe_text(settings.data, sorted({*VOCABULARY_SIZES, *known}))
        if ladder is None:
            ladder = StoredLadder(
                seconds, plan_rungs(text, measured_speed(settings, text), measured_limits(settings, seconds), seconds=seconds)
            )
        save_settings()
        _climb(runner, ladder, settings, common, text, began=began)
    save_settings()
    assert ladder.choice is not None
    best = ladder.choice.best
    runner.requested = []  # Rungs that failed count as done: the choice is made, and a resumed ladder does not repeat them.
    runner.run([([*common, *best.overrides(settings.optimizer.lr)], best.final_name)])


def _climb(
    runner: JobRunner,
    ladder: StoredLadder,
    settings: TrainSettings,
    common: Sequence[str],
    text: choice.TextFacts,
    *,
    began: float,
) -> None:
    """Train the rungs, choose the best model, and train it with the rest of the budget."""
    earlier = _trained_seconds(runner.folder, ladder.rungs)
    planned = ladder.planning
    ladder.planning = planned + time.monotonic() - began
    ladder.save(runner.folder)
    print_escaped(
        f"A ladder of {N_RUNGS} short trainings of {format_duration(ladder.rungs[0].seconds)} each, and then the best model with "
        f"the rest of {format_duration(ladder.seconds)}. Ctrl-C interrupts it."
    )
    runner.run([([*common, *rung.overrides(settings.optimizer.lr)], rung.name) for rung in ladder.rungs])
    results = [result for rung in ladder.rungs if (result := rung_result(runner.folder, rung)) is not None]
    trained = _trained_seconds(runner.folder, ladder.rungs)
    ladder.planning = planned + max(time.monotonic() - began - (trained - earlier), 0.0)  # below 0 if rungs ran side by side
    left = float(math.floor(ladder.seconds - ladder.planning - trained))
    for rung in ladder.rungs:
        if rung.name not in {result.rung.name for result in results}:
            print_escaped(f"{rung.name} is left out: it failed, or made fewer than {MIN_STEPS} steps.")
    ladder.choice = choose_rest(results, text, measured_limits(settings, left))
    ladder.save(runner.folder)
    print_escaped("\n".join(describe_choice(ladder.choice, results)))


def rung_result(folder: Path, rung: Rung) -> RungResult | None:
    """Return the result of a rung. Return None if it has not ended, has no usable loss, or made too few steps."""
    metadata = read_metadata(folder / rung.name)
    result = metadata_section(metadata, "result")
    numbers = [result.get(name) for name in ("best_bits_per_byte", "tokens_seen", "tokens_per_second", "steps")]
    bits, tokens, rate, steps = (one if is_finite_number(one) and 0 < one < MAX_MEASURED else math.nan for one in numbers)
    if metadata.get("state") not in COMPLETE or not bits < DIVERGED or math.isnan(tokens * rate) or not steps >= MIN_STEPS:
        return None
    return RungResult(rung, float(bits), int(tokens), float(rate))


def _seconds(settings: TrainSettings) -> float:
    """Return the budget of the whole ladder.

    Raises:
        UserError: If it is no time.
    """
    assert settings.budget is not None
    seconds = parse_budget(settings.budget).seconds
    if seconds == math.inf:
        raise UserError(f"budget={settings.budget}: a ladder divides a time, such as budget=2h.")
    check_length(seconds)
    return seconds


def _trained_seconds(folder: Path, rungs: Sequence[Rung]) -> float:
    """Return the seconds that the rungs have taken so far."""
    found = [read_metadata(folder / rung.name).get("seconds") for rung in rungs]
    return math.fsum(one for one in found if is_finite_number(one))
