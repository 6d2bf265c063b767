"""The progress of a schedule after each optimizer step, if the clock decides the number of steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

MOST_POINTS = 1000
MAX_STEPS = 10**12
DAMAGED_PLAN = "The checkpoint's plan of the budget is damaged. Start from its weights with init_from=."


@dataclass
class Pace:
    """The progress of a schedule, from 0 to 1, as a pure function of the step and of recorded decisions.

    Each decision sets the last step of the run anew. The rest of the schedule is spread evenly over the remaining steps, so that
    the learning rate does not jump. A checkpoint stores the decisions, so a resumed run has the same rates.

    Args:
        total: Optimizer steps of the first plan.
        points: For each decision, its step, the progress at that step, and the new number of all steps.
    """

    total: int
    points: list[tuple[int, float, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.points:
            self.points = [(0, 0.0, self.total)]

    @property
    def last_step(self) -> int:
        """Number of optimizer steps after which the run ends."""
        return self.points[-1][2]

    def progress(self, step: float) -> float:
        """Return the share of the schedule that has passed before an optimizer step, counted from 0."""
        begin, done, total = next(point for point in reversed(self.points) if point[0] <= max(step, 0))
        return done + (1.0 - done) * min((step - begin) / max(total - begin, 1), 1.0)

    def scheduled_step(self, step: float) -> float:
        """Return the step with the same progress in a schedule of the first plan's length."""
        return self.progress(step) * self.total

    def replan(self, step: int, last_step: int) -> None:
        """Decide at a step on the number of all steps.

        Args:
            step: Optimizer steps done, not fewer than at the last decision.
            last_step: The new number. At least one step remains.
        """
        done = self.progress(step)
        kept = [point for point in self.points if point[0] < step]
        self.points = [*kept, (step, done, max(last_step, step + 1))]


def read_points(stored: object) -> list[tuple[int, float, int]] | None:
    """Return the decisions in a checkpoint, or None if no run can have made them."""
    if not isinstance(stored, Sequence) or isinstance(stored, str) or not 0 < len(stored) <= MOST_POINTS:
        return None
    points, step, done = list[tuple[int, float, int]](), -1, 0.0
    for one in stored:
        if not isinstance(one, Sequence) or isinstance(one, str) or len(one) != 3:
            return None
        begin, progress, total = one
        if not (type(begin) is int and type(total) is int and type(progress) is float and math.isfinite(progress)):
            return None
        if not (step < begin < total <= MAX_STEPS and done <= progress <= 1.0):
            return None
        points.append((begin, progress, total))
        step, done = begin, progress
    return points if points[0][:2] == (0, 0.0) else None
