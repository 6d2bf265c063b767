"""A search over settings: Optuna chooses them, and ends jobs that fall behind.

Optuna is used directly: Hydra's own plug-in for it asks for a release before 3. The study is a file in the sweep's folder, which
jobs in other processes, or on other machines that see the folder, read and write too.

Source: Akiba et al. 2019 (arXiv:1907.10902); TPE is that of Bergstra et al. 2011.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from pathlib import Path

from gpt_pretrain.errors import UserError
from gpt_pretrain.runs.folder import STUDY

try:
    import optuna
    from optuna.distributions import BaseDistribution, check_distribution_compatibility
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend
    from optuna.trial import TrialState
except ImportError as error:
    raise UserError(
        "A search needs the package optuna: pip install optuna. A grid needs nothing: leave hparams_search out."
    ) from error

NAME = "sweep"
MIN_OTHERS = 3  # jobs that a median needs to mean something

optuna.logging.set_verbosity(optuna.logging.WARNING)
warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)


@dataclass(frozen=True)
class Range:
    """Numbers between two ends, both included."""

    low: float
    high: float
    log: bool = False
    whole: bool = False


@dataclass(frozen=True)
class ListOfValues:
    """One of a few values, as they are typed."""

    values: list[str]


Space = Range | ListOfValues


@dataclass
class Study:
    """A search in its folder.

    Args:
        study: Optuna's.
        distributions: Optuna's, by setting.
        retried: trials without a result that were put back in the line.
    """

    study: optuna.Study
    distributions: dict[str, BaseDistribution]
    retried: int = 0

    @classmethod
    def open(cls, folder: Path, space: dict[str, Space], *, sampler: str, seed: int, pruning: bool, pruning_after: int) -> Study:
        """Begin a search, or go on with the one that stands in the folder.

        Raises:
            UserError: when a range is empty, or not for a logarithm, or the search was begun with other choices.
        """
        samplers = {"tpe": optuna.samplers.TPESampler, "random": optuna.samplers.RandomSampler}
        if sampler not in samplers:
            raise UserError(f"hydra.sweeper.sampler={sampler}: must be one of {', '.join(samplers)}.")
        try:
            distributions = {key: _distribution(values) for key, values in space.items()}
        except ValueError as error:
            raise UserError(f"A range of this search cannot be drawn from: {error}") from error
        folder.mkdir(parents=True, exist_ok=True)
        study = optuna.create_study(storage=_storage(folder), study_name=NAME, direction="minimize", load_if_exists=True)
        _check_unchanged(study, distributions)
        study.sampler = samplers[sampler](seed=seed + len(study.trials))  # what is left is not what was drawn before
        study.set_user_attr("pruning_after", pruning_after if pruning else None)
        opened = cls(study, distributions)
        opened.take_up()
        return opened

    def ask(self, n: int) -> list[optuna.Trial]:
        """The next trials, at most n."""
        return [self.study.ask(self.distributions) for _ in range(max(n, 0))]

    def begin(self, trial: optuna.Trial, folder: str) -> None:
        """Note which folder a trial's run is in, for the run itself."""
        trial.set_user_attr("folder", folder)

    def tell(self, trial: optuna.Trial, value: float | None, *, pruned: bool) -> None:
        """Note how a trial ended: with a loss, before its end, or not at all (None)."""
        if value is None or math.isnan(value):
            self.study.tell(trial, state=TrialState.FAIL)
        elif pruned:
            self.study.tell(trial, state=TrialState.PRUNED)
        else:
            self.study.tell(trial, value)

    def count(self) -> int:
        """Trials that have come to their end, those that failed before this sweep was taken up not counted."""
        ended = self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL))
        return len(ended) - self.retried

    def take_up(self) -> None:
        """Put trials that were interrupted or failed back in the line; their folders, and so their checkpoints, stay the same."""
        waiting = [trial.system_attrs["fixed_params"] for trial in self.study.get_trials(states=(TrialState.WAITING,))]
        done = [trial.params for trial in self.study.get_trials(states=(TrialState.COMPLETE, TrialState.PRUNED))]
        for trial in self.study.get_trials(states=(TrialState.RUNNING, TrialState.FAIL)):
            if trial.state == TrialState.RUNNING:
                self.study.tell(trial.number, state=TrialState.FAIL)
            self.retried += 1
            if trial.params not in waiting + done:
                self.study.enqueue_trial(trial.params)
                waiting.append(trial.params)


@dataclass(frozen=True)
class RunningTrial:
    """A search, as one of its runs sees it."""

    trial: optuna.Trial

    @classmethod
    def find(cls, run_dir: Path) -> RunningTrial | None:
        """The trial that a run belongs to; None where its search ends no runs early."""
        study = optuna.load_study(study_name=NAME, storage=_storage(run_dir.parent))
        after = study.user_attrs.get("pruning_after")
        if after is None:
            return None
        study.pruner = optuna.pruners.MedianPruner(n_startup_trials=MIN_OTHERS, n_warmup_steps=after)
        for found in reversed(study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))):
            if found.user_attrs.get("folder") == run_dir.name:
                return cls(optuna.Trial(study, found._trial_id))
        return None

    def falls_behind(self, epoch: int, val_loss: float) -> bool:
        """Report a validation loss, and learn whether the run is worse than the median of the others at this epoch."""
        told = self.trial.study.get_trials(deepcopy=False)[self.trial.number].intermediate_values
        if epoch not in told:  # a resumed run may have told it already
            self.trial.report(val_loss, epoch)
        return bool(self.trial.should_prune())


def _check_unchanged(study: optuna.Study, distributions: dict[str, BaseDistribution]) -> None:
    """Make sure that a search that goes on has the choices that it began with; its ranges may change.

    Raises:
        UserError: when it has others.
    """
    for trial in study.get_trials(deepcopy=False):
        for key in trial.distributions.keys() & distributions.keys():
            try:
                check_distribution_compatibility(trial.distributions[key], distributions[key])
            except ValueError as error:
                raise UserError(
                    f"{key}: the values that a search chooses from cannot change once it has begun. Leave them as they were, or "
                    "begin a new search."
                ) from error


def _distribution(values: Space) -> BaseDistribution:
    if isinstance(values, ListOfValues):
        return optuna.distributions.CategoricalDistribution(values.values)
    if values.whole:
        return optuna.distributions.IntDistribution(int(values.low), int(values.high), log=values.log)
    return optuna.distributions.FloatDistribution(values.low, values.high, log=values.log)


def _storage(folder: Path) -> JournalStorage:
    return JournalStorage(JournalFileBackend(str(folder / STUDY)))
