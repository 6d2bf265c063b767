"""Loss curves of known recipes, to judge the curve of a run.

A curve belongs to one text, one model and one recipe. It is shown only beside runs with the same ones. `python -m benchmarks
references` measures the table again.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from statistics import mean
from typing import Any

from gpt_pretrain.runs.reader import MetricSeries, RunContents

TABLE = "reference_curves.json"
METRIC = "eval/val_loss"
GROUPS = ("model.", "optimizer.", "scheduler.", "tokenizer.")  # all their settings affect the loss curve
SETTINGS = (
    *("data.batch_size", "data.stride", "data.shift_windows", "data.train_ratio", "data.respect_documents", "eval_iter"),
    *("trainer.accumulate_grad_batches", "trainer.gradient_clip_val", "trainer.limit_train_batches", "init_from"),
    *("trainer.devices", "trainer.num_nodes"),
)
LENGTHS = ("trainer.max_epochs", "trainer.max_steps", "trainer.max_tokens")  # if the learning rate depends on them
NOTHING = ("null", "false", "0", "[]", "{}")  # values of a setting without effect


@dataclass(frozen=True)
class ReferenceCurve:
    """The validation losses of a recipe, over the same batches at each evaluation.

    Args:
        command: The command that makes such a run.
        text_sha256: The checksum of its text.
        settings: The settings that affect the loss curve, as text.
        steps: Optimizer steps of the evaluations.
        losses: The losses at these steps with each seed, in nats per token.
    """

    command: str
    text_sha256: str
    settings: dict[str, str]
    steps: list[int]
    losses: dict[str, list[float]]

    def mean(self) -> MetricSeries:
        """Return the mean over the seeds, without numbers of tokens."""
        values = [mean(losses) for losses in zip(*self.losses.values(), strict=True)]
        return MetricSeries(list(self.steps), [0] * len(self.steps), values)

    def spread(self, index: int) -> float:
        """Return the difference between the highest and the lowest loss of the seeds at an evaluation."""
        values = [losses[index] for losses in self.losses.values()]
        return max(values) - min(values)


def deciding_settings(config: dict[str, str]) -> dict[str, str]:
    """Return the settings of a run that affect its loss curve."""
    names = [name for name in config if name.startswith(GROUPS) or name in SETTINGS]
    names += [] if config.get("scheduler.name") == "constant" else list(LENGTHS)
    return {name: config.get(name, "null") for name in names}


def find_reference(run: RunContents) -> ReferenceCurve | None:
    """Return the curve of the run's text, model and recipe, whatever the run's seed; None if there is none."""
    sha256, settings = run.section("data").get("sha256"), deciding_settings(run.config)
    return next((one for one in _table() if one.text_sha256 == sha256 and _same(one.settings, settings)), None)


def compare_with_reference(run: RunContents, reference: ReferenceCurve) -> tuple[str, str] | None:
    """Return a run's distance from the reference at their last common evaluation, with a note; None if there is none."""
    own, known = run.series(METRIC), {step: index for index, step in enumerate(reference.steps)}
    common = [(step, value) for step, value in zip(own.steps, own.values, strict=True) if step in known]
    if not common:
        return None
    step, value = common[-1]
    index = known[step]
    difference = value - reference.mean().values[index]
    side = "above" if difference >= 0 else "below"
    text = f"{abs(difference):.2f} {side} the reference at step {step:,}"
    seeds = "one seed"
    if len(reference.losses) > 1:
        seeds = f"mean of {len(reference.losses)} seeds, which differ by {reference.spread(index):.2f} there"
    return f"{difference:+.2f}", f"{text}: {reference.command}, {seeds}"


def _same(reference: dict[str, str], settings: dict[str, str]) -> bool:
    """Return whether two runs have the same settings. A setting that only a later version has must be without effect."""
    return all(reference.get(name, value if value in NOTHING else None) == value for name, value in settings.items()) and all(
        name in settings for name in reference
    )


@cache
def _table() -> list[ReferenceCurve]:
    content: list[dict[str, Any]] = json.loads((files(__package__) / TABLE).read_text(encoding="utf-8"))
    return [ReferenceCurve(**fields) for fields in content]
