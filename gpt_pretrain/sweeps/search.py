"""A search over settings with Optuna, which chooses the values and ends jobs that fall behind.

Optuna is used directly, because hydra-optuna-sweeper requires a version before 3. The study is a journal file in the sweep's
folder, which jobs in other processes, or on other machines that share the disk, read and write too.

Source: Akiba et al. 2019 (arXiv:1907.10902); TPE: Bergstra et al. 2011.
"""

from __future__ import annotations

import json
import math
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from gpt_pretrain.errors import UserError
from gpt_pretrain.runs.folder import check_no_links
from gpt_pretrain.sweeps.folder import STUDY
from gpt_pretrain.system.reading import DamagedFileError, parse_json, read_bytes, short_repr

try:
    import optuna
    from optuna.distributions import BaseDistribution, check_distribution_compatibility
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend
    from optuna.trial import TrialState
except ImportError as error:
    raise UserError(
        "A search needs the package optuna: pip install optuna. Without hparams_search, the sweep is a grid and does not need it."
    ) from error

STUDY_NAME = "sweep"
MIN_TRIALS_FOR_MEDIAN = 3
# A trial takes about ten lines of 200 bytes, and one for each epoch.
DAMAGED_JOURNAL = "{} is damaged ({}). Start a new search in another folder."
# How long a lock stays the same before it counts as left behind; a shorter time suffices if it was made long ago.
STALE_SECONDS, STALE_SECONDS_IF_OLD, OLD_LOCK_SECONDS = 5.0, 0.5, 60.0
MAX_JOURNAL_BYTES, MAX_LINE_VALUES = 50_000_000, 100_000
MAX_UNFINISHED = 5000  # trials to end or to queue again, each of which takes a millisecond

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
            UserError: If a range is empty or not positive on a logarithmic scale, or the search was started with other values,
                or its journal is damaged.
        """
        samplers = {"tpe": optuna.samplers.TPESampler, "random": optuna.samplers.RandomSampler}
        if sampler not in samplers:
            raise UserError(f"hydra.sweeper.sampler={sampler}: must be one of {', '.join(samplers)}.")
        try:
            distributions = {key: _distribution(space) for key, space in spaces.items()}
        except ValueError as error:
            raise UserError(f"A range of this search is invalid: {error}") from error
        folder.mkdir(parents=True, exist_ok=True)
        _remove_stale_lock(folder)
        _check_journal(folder / STUDY)
        with _explain_damage(folder / STUDY):
            study = optuna.create_study(
                storage=_storage(folder), study_name=STUDY_NAME, direction="minimize", load_if_exists=True
            )
            _check_values_unchanged(study, distributions)
            # A resumed search must not draw the same values again.
            study.sampler = samplers[sampler](seed=seed + len(study.trials))
            study.set_user_attr("pruning_after", pruning_after if pruning else None)
            search = cls(study, distributions, folder / STUDY)
            search.requeue_unfinished()
        return search

    def ask(self, count: int) -> list[optuna.Trial]:
        """Return the next trials.

        Raises:
            UserError: If a trial that waits in the journal makes no sense.
        """
        with _explain_damage(self.journal):
            return [self.study.ask(self.distributions) for _ in range(max(count, 0))]

    def assign_folder(self, trial: optuna.Trial, folder: str) -> None:
        """Store the folder name of a trial's run, by which the run finds its trial."""
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
        """Return the number of trials that have ended, without failed ones that were queued again."""
        ended = self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL))
        return len(ended) - self.retried

    def requeue_unfinished(self) -> None:
        """Queue interrupted and failed trials again. Equal values mean equal folders, so that their runs are resumed.

        Raises:
            UserError: If there are far too many.
        """
        # A waiting trial without such parameters draws its values when it is chosen.
        waiting = self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
        done = self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
        known = {_values_key(trial.system_attrs.get("fixed_params", {})) for trial in waiting}
        known |= {_values_key(trial.params) for trial in done}
        unfinished = self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING, TrialState.FAIL))
        again = {_values_key(trial.params): trial.params for trial in reversed(unfinished)}
        running = [trial.number for trial in unfinished if trial.state == TrialState.RUNNING]
        queued = [values for key, values in reversed(again.items()) if key not in known]
        if max(len(running), len(queued)) > MAX_UNFINISHED:
            problem = f"{max(len(running), len(queued)):,} of its trials have not ended, and at most {MAX_UNFINISHED:,} are read"
            raise UserError(DAMAGED_JOURNAL.format(self.journal, problem))
        self.retried += len(unfinished)
        for number in running:
            self.study.tell(number, state=TrialState.FAIL)
        for values in queued:
            self.study.enqueue_trial(values)


@dataclass(frozen=True)
class RunningTrial:
    """The trial of a search that a run belongs to."""

    trial: optuna.Trial

    @classmethod
    def find(cls, run_dir: Path) -> RunningTrial | None:
        """Return the trial of a run; None if its search prunes no runs."""
        study = optuna.load_study(study_name=STUDY_NAME, storage=_storage(run_dir.parent))
        after = study.user_attrs.get("pruning_after")
        if after is None:
            return None
        study.pruner = optuna.pruners.MedianPruner(n_startup_trials=MIN_TRIALS_FOR_MEDIAN, n_warmup_steps=after)
        for found in reversed(study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))):
            if found.user_attrs.get("folder") == run_dir.name:
                return cls(optuna.Trial(study, found._trial_id))
        return None

    def should_prune(self, epoch: int, val_loss: float) -> bool:
        """Report a validation loss, and return whether it is worse than the median of the other runs at this epoch."""
        reported = self.trial.study.get_trials(deepcopy=False)[self.trial.number].intermediate_values
        if epoch not in reported:  # A resumed run may have reported this epoch before.
            self.trial.report(val_loss, epoch)
        return bool(self.trial.should_prune())


def _remove_stale_lock(folder: Path) -> None:
    """Remove Optuna's lock of a journal if its owner was killed, or it came with the folder; Optuna would wait for 30 seconds.

    A process holds the lock while it appends a few lines, so one that stays the same has no owner. No clock is needed to see
    that, but a lock whose time is far from now is recognized sooner.

    Raises:
        UserError: If it cannot be removed.
    """
    lock_file = folder / f"{STUDY}.lock"
    begin, first = time.monotonic(), _identity(lock_file)
    while first is not None and _identity(lock_file) == first:
        is_old = abs(time.time() - first[1] / 1e9) > OLD_LOCK_SECONDS
        if time.monotonic() - begin < (STALE_SECONDS_IF_OLD if is_old else STALE_SECONDS):
            time.sleep(0.05)
            continue
        try:
            lock_file.unlink(missing_ok=True)
        except OSError as error:  # it may be a folder
            raise UserError(f"{lock_file} has no owner, but cannot be removed ({error.strerror}). Remove it.") from error


def _identity(file: Path) -> tuple[int, int] | None:
    """Return what distinguishes a file or link from another one in its place; None if there is none."""
    try:
        status = file.lstat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def _check_journal(journal: Path) -> None:
    """Check a journal before Optuna reads it, line by line and without a limit.

    Raises:
        UserError: If it is damaged.
    """
    try:
        if journal.exists():
            for line in read_bytes(journal, max_bytes=MAX_JOURNAL_BYTES).splitlines(keepends=True):
                if line.endswith(b"\n"):  # A process may have been killed while it wrote the last line.
                    parse_json(line, max_values=MAX_LINE_VALUES)
    except DamagedFileError as error:
        raise UserError(DAMAGED_JOURNAL.format(journal, error)) from error


@contextmanager
def _explain_damage(journal: Path) -> Iterator[None]:
    """Explain what Optuna says of a damaged journal.

    Raises:
        UserError: If the block fails, and there was a journal before.
    """
    exists = journal.exists()
    try:
        yield
    except (UserError, OSError):
        raise
    except Exception as error:  # Optuna replays the journal, and can raise anything if it makes no sense.
        if not exists:
            raise
        raise UserError(DAMAGED_JOURNAL.format(journal, f"{type(error).__name__}: {short_repr(str(error))}")) from error


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
    """Return a text that is equal for equal values of a trial, whatever a journal holds in their place."""
    return json.dumps(values, sort_keys=True, default=repr)


def _distribution(space: SearchSpace) -> BaseDistribution:
    if isinstance(space, ValueList):
        return optuna.distributions.CategoricalDistribution(space.values)
    if space.integer:
        return optuna.distributions.IntDistribution(int(space.low), int(space.high), log=space.log)
    return optuna.distributions.FloatDistribution(space.low, space.high, log=space.log)


def _storage(folder: Path) -> JournalStorage:
    check_no_links(folder, [STUDY])  # Optuna appends to the file
    return JournalStorage(JournalFileBackend(str(folder / STUDY)))
