"""Hydra's way into sweeps: which jobs there are. Hydra looks for sweepers in packages named hydra_plugins only."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from gpt_pretrain.commands.failures import SweepJobFailed, print_error
from gpt_pretrain.config.overrides import override_key
from gpt_pretrain.errors import UserError
from gpt_pretrain.runs.folder import SWEEP_SETTINGS
from gpt_pretrain.sweeps.results import tried_in
from gpt_pretrain.sweeps.runner import Jobs, job_folder, run_sweep

if TYPE_CHECKING:
    from gpt_pretrain.sweeps.search import Space


class RunSweeper(Sweeper):
    """What all sweeps share: a folder for each job, named after its settings; finished jobs left out; a ranking at the end.

    Args:
        params: more settings to sweep over, each as on the command line.
    """

    def __init__(self, params: dict[str, Any] | None = None) -> None:
        self.params = params or {}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config = config
        self.hydra_context = hydra_context
        self.launcher: Launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        """Run the jobs of this sweep, as far as they are not done yet."""
        assert self.config is not None and self.hydra_context is not None
        folder = Path(str(self.config.hydra.sweep.dir))
        words = [f"{key}={value}" for key, value in self.params.items()] + arguments
        parsed = OverridesParser.create(config_loader=self.hydra_context.config_loader).parse_overrides(words)
        overrides = list({one.get_key_element(): one for one in parsed}.values())  # what is typed comes after params
        self.tried = {override_key(one.get_key_element()) for one in overrides if one.is_sweep_override()} | tried_in(folder)
        try:
            fixed = [key for one in overrides if (key := override_key(one.get_key_element())) not in self.tried]
            tried = f"hydra.job.config.override_dirname.exclude_keys=[{','.join(fixed)}]"  # Hydra's word for what is not tried
            with run_sweep(folder, launch=self._launch, script=f"{self.config.hydra.job.name}.py", common=[tried]) as jobs:
                self.run(jobs, overrides)
        except UserError as error:
            sys.exit(print_error(error))

    def run(self, jobs: Jobs, overrides: Sequence[Override]) -> None:
        """Run the jobs that overrides stand for."""
        raise NotImplementedError

    def folder_of(self, words: Sequence[str]) -> str:
        """The name of a job's folder: what the sweep tries, now or when it was begun."""
        return job_folder([word for word in words if override_key(word) in self.tried])

    def begin(self, folder: Path) -> None:
        """Keep the settings of this sweep, which have turned out to be sound, for the time when it is taken up again."""
        assert self.config is not None
        folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self.config, folder / SWEEP_SETTINGS)

    def _launch(self, batch: Sequence[Sequence[str]], first_number: int) -> None:
        """Run jobs side by side, as far as the launcher does."""
        for returned in self.launcher.launch([list(words) for words in batch], initial_job_idx=first_number):
            failure = returned._return_value  # the property would print what has been told, and raise it
            if isinstance(failure, Exception) and not isinstance(failure, SweepJobFailed):
                print_error(UserError(f"A job failed: {failure}"))


class GridSweeper(RunSweeper):
    """A job for each combination of the values that are listed."""

    def run(self, jobs: Jobs, overrides: Sequence[Override]) -> None:
        choices = []
        for override in overrides:
            if override.is_sweep_override() and not override.is_discrete_sweep():
                raise UserError(
                    f"{override.input_line}: a grid needs values, as in 1e-4,1e-3; to draw from a range: hparams_search=random."
                )
            key, swept = override.get_key_element(), override.is_sweep_override()
            values = list(override.sweep_string_iterator()) if swept else [override.get_value_element_as_str()]
            choices.append([f"{key}={value}" for value in values])
        batch = [list(words) for words in itertools.product(*choices)]
        self.validate_batch_is_legal(batch)  # a mistake in a setting ends the sweep before its first job
        self.begin(jobs.folder)
        jobs.run([(words, self.folder_of(words)) for words in batch])


class SearchSweeper(RunSweeper):
    """Optuna chooses the values, from ranges or lists.

    Args:
        sampler: "tpe" learns from the jobs before, "random" does not.
        n_trials: jobs in all.
        n_parallel: jobs chosen and launched at once.
        pruning: whether a job that is worse than the median of the others at the same epoch ends early.
        pruning_after: epochs that every job may do.
        seed: of the choices.
        params: as in `RunSweeper`.
    """

    def __init__(
        self,
        *,
        sampler: str,
        n_trials: int,
        n_parallel: int,
        pruning: bool,
        pruning_after: int,
        seed: int,
        params: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(params)
        self.sampler = sampler
        self.n_trials = n_trials
        self.n_parallel = n_parallel
        self.pruning = pruning
        self.pruning_after = pruning_after
        self.seed = seed

    def run(self, jobs: Jobs, overrides: Sequence[Override]) -> None:
        from gpt_pretrain.sweeps.search import Study

        for name in ("n_trials", "n_parallel"):
            if not isinstance(count := getattr(self, name), int) or count < 1:
                raise UserError(f"hydra.sweeper.{name}={count}: must be a whole number of at least 1.")
        fixed = [one.input_line or "" for one in overrides if not one.is_sweep_override()]
        space = {one.get_key_element(): _space(one) for one in overrides if one.is_sweep_override()}
        if not space:
            raise UserError("A search needs a setting to search over, as in 'optimizer.lr=tag(log,interval(1e-4,1e-2))'.")
        study = Study.open(
            jobs.folder, space, sampler=self.sampler, seed=self.seed, pruning=self.pruning, pruning_after=self.pruning_after
        )
        self.begin(jobs.folder)
        while trials := study.ask(min(self.n_parallel, self.n_trials - study.count())):
            chosen = [[f"{key}={_short(value)}" for key, value in trial.params.items()] for trial in trials]
            names = [self.folder_of(words) for words in chosen]
            for trial, name in zip(trials, names, strict=True):
                study.begin(trial, name)
            values = jobs.run([(fixed + words, name) for words, name in zip(chosen, names, strict=True)])
            for trial, name, value in zip(trials, names, values, strict=True):
                study.tell(trial, value, pruned=jobs.was_pruned(name))


def _short(value: object) -> object:
    """A number that was drawn, with as many digits as matter."""
    return f"{value:.4g}" if isinstance(value, float) else value


def _space(override: Override) -> Space:
    """Where a setting's values come from."""
    from gpt_pretrain.sweeps.search import ListOfValues, Range

    value = override.value()
    if isinstance(value, IntervalSweep):
        assert value.start is not None and value.end is not None
        whole = isinstance(value.start, int) and isinstance(value.end, int)
        return Range(value.start, value.end, log="log" in value.tags, whole=whole)
    if isinstance(value, RangeSweep) and isinstance(value.start, int) and isinstance(value.stop, int):
        return Range(value.start, value.stop - 1, whole=True, log="log" in value.tags)
    return ListOfValues(list(override.sweep_string_iterator()))
