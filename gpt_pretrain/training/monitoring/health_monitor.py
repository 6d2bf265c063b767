"""Follow the numbers of a run and report each warning sign once, when it begins."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import asdict, dataclass
from typing import Any

from gpt_pretrain.config.schema import DoctorSettings, TrainSettings
from gpt_pretrain.training.monitoring import warning_signs
from gpt_pretrain.training.monitoring.warning_signs import Evaluation

MAX_FINDINGS = 10_000  # of a run; later ones are not reported


@dataclass(frozen=True)
class Finding:
    """A warning sign that has begun.

    Args:
        sign: Its name: first_loss, overfitting, gap, stuck, spike, nonfinite, clipping or loading.
        step: Optimizer step, counted from 0, at which it was found.
        text: The observation and the likely remedy.
    """

    sign: str
    step: int
    text: str


@dataclass(frozen=True)
class BaselineLosses:
    """Losses of guesses without a model, in nats per token.

    Args:
        uniform: Loss of a uniform guess among all tokens.
        unigram: Loss of guessing by token frequency in the training text.
    """

    uniform: float
    unigram: float


class HealthMonitor:
    """Watch one run. The memory does not grow with the length of the run.

    Args:
        run: Settings of the run. The remedies refer to them.
        thresholds: The thresholds of the warning signs.
        baseline: Losses to compare with.

    Attributes:
        findings: All findings so far.
    """

    def __init__(self, run: TrainSettings, thresholds: DoctorSettings, baseline: BaselineLosses) -> None:
        self.run = run
        self.thresholds = thresholds
        self.baseline = baseline
        self.findings: list[Finding] = []
        self._warmup = run.scheduler.warmup_steps
        self._present: set[str] = set()
        self._start_loss = baseline.uniform
        self._spike_level = math.inf
        self._nonfinite_step = -math.inf
        self._best: Evaluation = (-1, math.inf, math.inf)
        n_evaluations = warning_signs.PLATEAU_WINDOWS * thresholds.window // run.eval_freq + thresholds.patience + 2
        self._evaluations: deque[Evaluation] = deque(maxlen=n_evaluations)
        self._losses: deque[float] = deque(maxlen=thresholds.window + warning_signs.RECENT_STEPS)
        self._norms: deque[float] = deque(maxlen=thresholds.window)

    def observe_first_losses(self, train: float, val: float) -> None:
        """Process the losses of a new run before its first step."""
        uniform = self.baseline.uniform
        if self.run.init_from is not None:
            # Dropout and other batches may raise the loss of pretrained weights by as much as this threshold.
            self._start_loss = min(uniform, train + self.thresholds.first_loss)
        else:
            self._start_loss = max(uniform, train)
        text = warning_signs.detect_unusual_first_loss(train, val, uniform=uniform, run=self.run, thresholds=self.thresholds)
        self._update("first_loss", 0, text)

    def observe_evaluation(self, step: int, train: float, val: float) -> None:
        """Process the losses of an evaluation."""
        self._evaluations.append((step, train, val))
        if self._is_present("spike"):  # it explains any other sign
            return
        evaluations, patience = list(self._evaluations), self.thresholds.patience
        current = warning_signs.mean_evaluation(evaluations[-patience:])
        if len(evaluations) >= patience and current[2] < self._best[2]:
            self._best = current
        after_warmup = [evaluation for evaluation in evaluations if evaluation[0] >= self._warmup]
        common: dict[str, Any] = {"run": self.run, "thresholds": self.thresholds}
        lasting = self._is_present("overfitting")
        self._update("overfitting", step, warning_signs.detect_overfitting(current, self._best, lasting=lasting, **common))
        self._update("gap", step, warning_signs.detect_gap(evaluations, lasting=self._is_present("gap"), **common))
        context = common | asdict(self.baseline)
        self._update("stuck", step, warning_signs.detect_plateau(after_warmup, lasting=self._is_present("stuck"), **context))

    def observe_step(self, step: int, loss: float, norm: float | None) -> None:
        """Process an optimizer step: its mean training loss, and its gradient norm before clipping (None if unknown)."""
        self._losses.append(loss)
        losses = list(self._losses)
        if self._is_present("spike"):
            if warning_signs.recent_loss(losses) <= self._spike_level:
                self._present.discard("spike")
        elif (level := warning_signs.exceeded_level(losses, self._start_loss, self.thresholds)) is not None:
            self._spike_level = level
            self._update("spike", step, warning_signs.describe_spike(losses, level, run=self.run))
        self._observe_norm(step, norm)
        if step - self._nonfinite_step > self.thresholds.window:
            self._present.discard("nonfinite")

    def observe_waiting(self, step: int, waited: float, seconds: float) -> None:
        """Process a period's seconds of waiting for batches, and all its seconds."""
        lasting = self._is_present("loading")
        text = warning_signs.detect_slow_loading(waited, seconds, lasting=lasting, run=self.run, thresholds=self.thresholds)
        self._update("loading", step, text)

    def observe_nonfinite(self, step: int, event: str) -> None:
        """Process a NaN or infinite loss or gradient. `event` describes it in one sentence."""
        self._nonfinite_step = step
        self._update("nonfinite", step, warning_signs.describe_nonfinite(event, self.run))

    def state_dict(self) -> dict[str, Any]:
        """Return the complete state as plain containers."""
        return {
            "findings": [asdict(finding) for finding in self.findings],
            "lasting": sorted(self._present),
            "numbers": [self._start_loss, self._spike_level, self._nonfinite_step, *self._best],
            "lines": [list(evaluation) for evaluation in self._evaluations],
            "losses": list(self._losses),
            "norms": list(self._norms),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state of a checkpoint."""
        self.findings = [Finding(**finding) for finding in state["findings"]]
        self._present = set(state["lasting"])
        self._start_loss, self._spike_level, self._nonfinite_step, *best = state["numbers"]
        self._best = (best[0], best[1], best[2])
        self._evaluations.extend((step, train, val) for step, train, val in state["lines"])
        self._losses.extend(state["losses"])
        self._norms.extend(state["norms"])

    def _observe_norm(self, step: int, norm: float | None) -> None:
        if self._is_present("spike"):  # norms are large when a run goes wrong
            self._norms.clear()
            return
        in_first_window = step < self._warmup + self.thresholds.window  # the first steps' norms are large as well
        if in_first_window or norm is None or not math.isfinite(norm):
            return
        self._norms.append(norm)
        lasting = self._is_present("clipping")
        text = warning_signs.detect_clipping(self._norms, lasting=lasting, run=self.run, thresholds=self.thresholds)
        self._update("clipping", step, text)

    def _is_present(self, sign: str) -> bool:
        return sign in self._present

    def _update(self, sign: str, step: int, text: str | None) -> None:
        """Store whether a sign is present, and add a finding if it was absent before. A text of None means absent."""
        if text is None:
            self._present.discard(sign)
        elif sign not in self._present:
            self._present.add(sign)
            if len(self.findings) < MAX_FINDINGS:
                self.findings.append(Finding(sign, step, text))
