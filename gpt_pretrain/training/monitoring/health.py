"""The doctor: takes a training's numbers as they come, and tells each episode of a warning sign once, when it sets in."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import asdict, dataclass
from typing import Any

from gpt_pretrain.config.schema import DoctorSettings, TrainSettings
from gpt_pretrain.training.monitoring import signs


@dataclass(frozen=True)
class Finding:
    """A sign that has set in.

    Args:
        sign: which, in a word.
        step: the optimizer step after which it was told, the first being 0.
        text: what is seen, and the likely remedy.
    """

    sign: str
    step: int
    text: str


@dataclass(frozen=True)
class Baseline:
    """The losses that need no learning, in nats a token.

    Args:
        chance: of guessing among all tokens.
        frequencies: of guessing each as often as it occurs in the training text.
    """

    chance: float
    frequencies: float


class HealthMonitor:
    """Watches one run. What it keeps has a length that the settings limit, and goes into checkpoints as plain containers.

    Args:
        run: the settings of the run, which remedies name.
        doctor: the thresholds.
        usual: what the losses are compared with.

    Attributes:
        findings: all so far.
    """

    def __init__(self, run: TrainSettings, doctor: DoctorSettings, usual: Baseline) -> None:
        self.run = run
        self.settings = doctor
        self.usual = usual
        self.findings: list[Finding] = []
        self._warmup = run.scheduler.warmup_steps
        self._lasting: set[str] = set()
        self._start = usual.chance
        self._spike_level = math.inf
        self._bad_step = -math.inf
        self._best: signs.Line = (-1, math.inf, math.inf)
        lines = signs.PLATEAU * doctor.window // run.eval_freq + doctor.patience + 2
        self._lines: deque[signs.Line] = deque(maxlen=lines)
        self._losses: deque[float] = deque(maxlen=doctor.window + signs.RECENT)
        self._norms: deque[float] = deque(maxlen=doctor.window)

    def before(self, train: float, val: float) -> None:
        """Take the losses of a new run before its first step."""
        chance = self.usual.chance
        if self.run.init_from is not None:  # dropout, and other batches than those before, may well be worth that much
            self._start = min(chance, train + self.settings.first_loss)
            return
        self._start = max(chance, train)
        self._note("first_loss", 0, signs.first_loss(train, val, chance=chance, run=self.run, doctor=self.settings))

    def line(self, step: int, train: float, val: float) -> None:
        """Take a loss line."""
        self._lines.append((step, train, val))
        if self._lasts("spike"):  # which says all that there is to say
            return
        lines = list(self._lines)
        settings: dict[str, Any] = {"run": self.run, "doctor": self.settings}
        now = signs.mean_line(lines[-self.settings.patience :])
        if len(lines) >= self.settings.patience and now[2] < self._best[2]:
            self._best = now
        self._note("overfitting", step, signs.overfitting(now, self._best, lasting=self._lasts("overfitting"), **settings))
        self._note("gap", step, signs.gap(lines, lasting=self._lasts("gap"), **settings))
        settled = [line for line in lines if line[0] >= self._warmup]
        usual: dict[str, Any] = asdict(self.usual)
        self._note("stuck", step, signs.stuck(settled, **usual, lasting=self._lasts("stuck"), **settings))

    def step(self, step: int, loss: float, norm: float | None) -> None:
        """Take an optimizer step's mean training loss and the norm of its gradients before clipping, if that is known."""
        self._losses.append(loss)
        losses = list(self._losses)
        if self._lasts("spike"):
            if signs.mean_of_last(losses) <= self._spike_level:
                self._lasting.discard("spike")
        elif (level := signs.spike_level(losses, self._start, self.settings)) is not None:
            self._spike_level = level
            self._note("spike", step, signs.spike(losses, level, run=self.run))
        early = step < self._warmup + self.settings.window  # a run's first norms are large
        if self._lasts("spike"):  # and so are those of one that goes wrong
            self._norms.clear()
        elif not early and norm is not None and math.isfinite(norm):
            self._norms.append(norm)
            text = signs.clipping(self._norms, lasting=self._lasts("clipping"), run=self.run, doctor=self.settings)
            self._note("clipping", step, text)
        if step - self._bad_step > self.settings.window:
            self._lasting.discard("nonfinite")

    def waited(self, step: int, waited: float, seconds: float) -> None:
        """Take how long the training has waited for batches within a time, both in seconds."""
        text = signs.loading(waited, seconds, lasting=self._lasts("loading"), run=self.run, doctor=self.settings)
        self._note("loading", step, text)

    def nonfinite(self, step: int, what: str) -> None:
        """Take that a loss or the gradients were NaN or infinite, which `what` tells in a sentence."""
        self._bad_step = step
        self._note("nonfinite", step, signs.nonfinite(what, self.run))

    def state_dict(self) -> dict[str, Any]:
        """All that the doctor remembers, as plain containers."""
        return {
            "findings": [asdict(finding) for finding in self.findings],
            "lasting": sorted(self._lasting),
            "numbers": [self._start, self._spike_level, self._bad_step, *self._best],
            "lines": [list(line) for line in self._lines],
            "losses": list(self._losses),
            "norms": list(self._norms),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on as the doctor of a checkpoint would have."""
        self.findings = [Finding(**finding) for finding in state["findings"]]
        self._lasting = set(state["lasting"])
        self._start, self._spike_level, self._bad_step, *best = state["numbers"]
        self._best = (best[0], best[1], best[2])
        self._lines.extend((step, train, val) for step, train, val in state["lines"])
        self._losses.extend(state["losses"])
        self._norms.extend(state["norms"])

    def _lasts(self, sign: str) -> bool:
        return sign in self._lasting

    def _note(self, sign: str, step: int, text: str | None) -> None:
        """Remember whether a sign is there; when it was not before, that is a finding."""
        if text is None:
            self._lasting.discard(sign)
        elif sign not in self._lasting:
            self._lasting.add(sign)
            self.findings.append(Finding(sign, step, text))
