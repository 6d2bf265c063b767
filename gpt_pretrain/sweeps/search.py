"""Search over settings with Optuna, which chooses the values and ends jobs that fall behind.

Optuna is used directly, because hydra-optuna-sweeper requires a version before 3. The study is a journal file in the sweep's
folder. Jobs read and write it too, perhaps in other processes or on other machines that share the disk.

Source: Akiba et al. 2019 (arXiv:1907.10902); TPE: Bergstra et al. 2011.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from gpt_pretrain.errors import UserError
from gpt_pretrain.sweeps.folder import STUDY
from gpt_pretrain.sweeps.journal import DAMAGED_JOURNAL, explain_damage, open_journal
from gpt_pretrain.system.formatting import is_finite_number
from gpt_pretrain.system.shown_values import short_repr

try:
    import optuna
    from optuna.distributions import (
        BaseDistribution,
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
        check_distribution_compatibility,
    )
    from optuna.trial import TrialState
except ImportError as error:
    raise UserError(
        "A search needs the package optuna. Run: pip install optuna, or leave out hparams_search= to try every combination."
    ) from error

STUDY_NAME = "sweep"
MIN_TRIALS_FOR_MEDIAN = 3
MAX_UNFINISHED = 5000  # trials to end or to queue again; each takes a millisecond

optuna.logging.set_verbosity(optuna.logging.WARNING)
warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)


@dataclass(frozen=True)
class NumberRange:
    """Numbers between two bounds, both included.

    Args:
        log: Whether they are drawn uniformly on a logarithmic scale.
        integer: Whether only whole numbers are drawn.
    """

    low: float
    high: float
    log: bool = False
    integer: bool = False


@dataclass(frozen=True)
class ValueList:
    """A list of values, as they are typed."""

    values: list[str]


SearchSpace = NumberRange | ValueList


@dataclass
class Search:
    """A search in a sweep's folder.

    Args:
        study: The Optuna study.
        distributions: The Optuna distribution of each setting.
        journal: The file that holds the study.
        retried: Number of unsuccessful trials that were queued again.
    """

    study: optuna.Study
    distributions: dict[str, BaseDistribution]
    journal: Path
    retried: int = 0

    @classmethod
    def open(
        cls, folder: Path, spaces: dict[str, SearchSpace], *, sampler: str, seed: int, pruning: bool, pruning_after: int
    ) -> Search:
        """Start a search, or resume the one in the folder.

        Raises:
            UserError: If a range is empty or not positive on a logarithmic scale, if the search was started with other values,
                or its journal is damaged.
        """
        samplers = {"tpe": optuna.samplers.TPESampler, "random": optuna.samplers.RandomSampler}
        if not isinstance(sampler, str) or sampler not in samplers:  # Hydra's own settings have no types.
            raise UserError(f"hydra.sweeper.sampler={sampler}: must be one of {', '.join(samplers)}.")
        if problems := [problem for key, space in spaces.items() for problem in _range_problems(key, space)]:
            raise UserError(problems)
        distributions = {key: _distribution(space) for key, space in spaces.items()}
        folder.mkdir(parents=True, exist_ok=True)
        with open_journal(folder) as storage:
            study = optuna.create_study(storage=storage, study_name=STUDY_NAME, direction="minimize", load_if_exists=True)
            _check_values_unchanged(study, distributions)
            # A resumed search must not draw the same values again.
            study.sampler = samplers[sampler](seed=(seed + len(study.get_trials(deepcopy=False))) % 2**32)
            study.set_user_attr("pruning_after", pruning_after if pruning else None)
            search = cls(study, distributions, folder / STUDY)
            search.requeue_unfinished()
        return search

    def ask(self, count: int) -> list[optuna.Trial]:
        """Return the next trials.

        Raises:
            UserError: If a trial that waits in the journal makes no sense.
        """
        with explain_damage(self.journal):
            return [self._ask_one() for _ in range(max(count, 0))]

    def assign_folder(self, trial: optuna.Trial, folder: str) -> None:
        """Store the name of the folder of a trial's run. The run finds its trial by this name."""
        trial.set_user_attr("folder", folder)

    def finish(self, trial: optuna.Trial, val_loss: float | None, *, pruned: bool) -> None:
        """Store the result of a trial.

        Args:
            val_loss: The lowest validation loss; None if the run failed.
        """
        if val_loss is None or math.isnan(val_loss):
            self.study.tell(trial, state=TrialState.FAIL)
        elif pruned:
            self.study.tell(trial, state=TrialState.PRUNED)
        else:
            self.study.tell(trial, val_loss)

    def count_ended(self) -> int:
        """Return the number of trials that have ended, not counting failed ones that were queued again."""
        ended = self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL))
        return len(ended) - self.retried

    def requeue_unfinished(self) -> None:
        """Queue interrupted and failed trials again. They have the same values and so the same folders: their runs are resumed.

        Raises:
            UserError: If there are far too many.
        """
        # A waiting trial without fixed parameters draws its values only when it is chosen.
        waiting = self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
        done = self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
        known = {_values_key(trial.system_attrs.get("fixed_params", {})) for trial in waiting}
        known |= {_values_key(trial.params) for trial in done}
        unfinished = self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING, TrialState.FAIL))
        again = {_values_key(trial.params): trial.params for trial in reversed(unfinished) if self._is_in_ranges(trial.params)}
        running = [trial.number for trial in unfinished if trial.state == TrialState.RUNNING]
        queued = [values for key, values in reversed(again.items()) if key not in known]
        if max(len(running), len(queued)) > MAX_UNFINISHED:
            unfinished_count = max(len(running), len(queued))
            problem = f"{unfinished_count:,} of its trials have not ended, more than the limit of {MAX_UNFINISHED:,}"
            raise UserError(DAMAGED_JOURNAL.format(self.journal, problem))
        self.retried += len(unfinished)
        for number in running:
            self.study.tell(number, state=TrialState.FAIL)
        for values in queued:
            self.study.enqueue_trial(values)

    def _ask_one(self) -> optuna.Trial:
        for _ in range(MAX_UNFINISHED):
            trial = self.study.ask(self.distributions)
            if self._is_in_ranges(trial.params):
                return trial
            self.study.tell(trial, state=TrialState.FAIL)  # It was queued before a range was changed.
            self.retried += 1
        raise UserError(DAMAGED_JOURNAL.format(self.journal, f"more than {MAX_UNFINISHED:,} of its trials are out of range"))

    def _is_in_ranges(self, values: Mapping[str, object]) -> bool:
        """Return whether the values of a trial are in the ranges of this search. The journal may be a stranger's.

        Raises:
            UserError: If a value has a type that no range or list yields. For example, a text in place of a number would become
                part of an override.
        """
        for key in self.distributions.keys() & values.keys():  # A trial may have ended before all values were drawn.
            value, distribution = values[key], self.distributions[key]
            if isinstance(distribution, CategoricalDistribution):
                is_possible, is_in_range = type(value) is str and value in distribution.choices, True
            else:
                assert isinstance(distribution, FloatDistribution | IntDistribution)
                is_possible = is_finite_number(value)
                is_in_range = is_finite_number(value) and distribution.low <= value <= distribution.high
            if not is_possible:
                raise UserError(DAMAGED_JOURNAL.format(self.journal, f"it has {short_repr(value)} for {key}"))
            if not is_in_range:
                return False
        return True


@dataclass(frozen=True)
class RunningTrial:
    """The trial of a search that a run belongs to."""

    trial: optuna.Trial

    @classmethod
    def find(cls, run_dir: Path) -> RunningTrial | None:
        """Return the trial of a run, or None if its search prunes no runs.

        Raises:
            UserError: If the journal is damaged.
        """
        with open_journal(run_dir.parent) as storage:
            study = optuna.load_study(study_name=STUDY_NAME, storage=storage)
        after = study.user_attrs.get("pruning_after")
        if after is None:
            return None
        study.pruner = optuna.pruners.MedianPruner(n_startup_trials=MIN_TRIALS_FOR_MEDIAN, n_warmup_steps=after)
        for found in reversed(study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))):
            if found.user_attrs.get("folder") == run_dir.name:
                return cls(optuna.Trial(study, found._trial_id))
        return None

    @property
    def keys(self) -> list[str]:
        """The settings that the search varies."""
        return list(self.trial.params)

    def should_prune(self, epoch: int, val_loss: float) -> bool:
        """Report a validation loss, and return whether it is worse than the median of the other runs at this epoch."""
        reported = self.trial.study.get_trials(deepcopy=False)[self.trial.number].intermediate_values
        if epoch not in reported:  # A resumed run may have reported this epoch before.
            self.trial.report(val_loss, epoch)
        return bool(self.trial.should_prune())


def _check_values_unchanged(study: optuna.Study, distributions: dict[str, BaseDistribution]) -> None:
    """Check that a resumed search chooses from the same lists of values. Its ranges may change.

    Raises:
        UserError: If a list has changed.
    """
    for trial in study.get_trials(deepcopy=False):
        for key in trial.distributions.keys() & distributions.keys():
            try:
                check_distribution_compatibility(trial.distributions[key], distributions[key])
            except ValueError as error:
                raise UserError(
                    f"{key}: the values that a search chooses from cannot change after its start. Restore them, or start a new "
                    "search."
                ) from error


def _values_key(values: object) -> str:
    """Return a text that is the same for equal values of a trial. A journal may hold values of any kind, also unhashable ones."""
    return json.dumps(values, sort_keys=True, default=repr)


def _range_problems(key: str, space: SearchSpace) -> Iterator[str]:
    """Yield the problems of the range from which a setting is drawn."""
    if isinstance(space, ValueList):
        return
    if not (math.isfinite(space.low) and math.isfinite(space.high)):
        yield f"{key}: the bounds of its range must be finite numbers."
    elif space.low > space.high:
        yield f"{key}: its range begins at {space.low}, above its end, {space.high}. Exchange the two bounds."
    elif space.log and space.low <= 0:
        yield f"{key}: a logarithmic range must begin above 0, and it begins at {space.low}."


def _distribution(space: SearchSpace) -> BaseDistribution:
    if isinstance(space, ValueList):
        return CategoricalDistribution(space.values)
    if space.integer:
        return IntDistribution(int(space.low), int(space.high), log=space.log)
    return FloatDistribution(space.low, space.high, log=space.log)
