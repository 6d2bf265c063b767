"""The sweepers that Hydra starts for -m: a grid, a search, a ladder. Hydra finds them only in packages named hydra_plugins."""

from __future__ import annotations

import itertools
import logging
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence, Set
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra._internal.core_plugins import basic_launcher
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from gpt_pretrain.commands.command_line.stored_overrides import overrides_of_user
from gpt_pretrain.commands.process.failures import SweepJobFailed, print_error
from gpt_pretrain.commands.process.hydra_files import cut_sweep_settings
from gpt_pretrain.config.custom_parts import TARGET
from gpt_pretrain.config.overrides import full_form, override_key, short_form, split_override
from gpt_pretrain.config.stored_settings import GENERATE_KINDS, TRAIN_KINDS
from gpt_pretrain.errors import UserError
from gpt_pretrain.sweeps.folder import (
    LADDER,
    SWEEP_SETTINGS,
    job_folder_name,
    sign_sweep,
)
from gpt_pretrain.sweeps.named_files import check_named_files
from gpt_pretrain.sweeps.results import read_sweep, search_by_bits, varied_keys
from gpt_pretrain.sweeps.runner import JobRunner, open_sweep
from gpt_pretrain.sweeps.submitted_jobs import private_submission_folder
from gpt_pretrain.system.files import write_text
from gpt_pretrain.system.formatting import format_count

if TYPE_CHECKING:
    from gpt_pretrain.sweeps.search import SearchSpace

MAX_COMBINATIONS = 200  # of options and texts, all of which are composed before the first job
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
LOCAL_LAUNCHERS = ("BasicLauncher", "JoblibLauncher")  # Other machines may have other files.
CHOOSING_OPTIMIZER = {"optimizer", "optimizer.name", "model", "experiment"}  # groups and settings that may choose another one

# Of a search.
LEAST_NUMBERS = {"n_trials": 1, "n_parallel": 1, "pruning_after": 0, "seed": 0}
MAX_NUMBER = 2**32 - 1


class RunSweeper(Sweeper):
    """The base of all sweepers: one folder per job, complete jobs are skipped, and the ranking is printed at the end.

    Args:
        params: Further settings to sweep over, as they are typed on the command line.
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
        """Run the jobs of this sweep that are not complete."""
        assert self.config is not None and self.hydra_context is not None
        folder = Path(str(self.config.hydra.sweep.dir))
        self.script = str(self.config.hydra.job.name)
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        typed = parser.parse_overrides(arguments)
        params = self.suitable_params({_key(one) for one in typed if one.is_sweep_override()})
        of_config = parser.parse_overrides([full_form(f"{key}={value}", script=self.script) for key, value in params.items()])
        overrides = list({one.get_key_element(): one for one in [*of_config, *typed]}.values())  # Typed ones replace params.
        swept = {_key(one) for one in overrides if one.is_sweep_override()}
        self.swept = swept | varied_keys(read_sweep(folder))
        self.existing = set(os.listdir(folder)) if folder.is_dir() else set[str]()  # those of earlier starts
        try:
            fixed = [key for one in overrides if (key := _key(one)) not in self.swept]
            # Jobs use this Hydra setting to distinguish their fixed overrides from those that the sweep varies.
            common = [f"hydra.job.config.override_dirname.exclude_keys=[{','.join(fixed)}]"]
            with open_sweep(folder, launch=self._launch, script=f"{self.script}.py", common=common) as runner:
                self.run(runner, overrides)
        except UserError as error:
            sys.exit(print_error(error))

    def suitable_params(self, swept: Set[str]) -> dict[str, Any]:
        """Return the params of the config that the chosen options have.

        Args:
            swept: The settings and groups of which several values are typed.
        """
        return self.params

    def run(self, runner: JobRunner, overrides: Sequence[Override]) -> None:
        """Run the jobs that the overrides define."""
        raise NotImplementedError

    def folder_name(self, overrides: Sequence[str]) -> str:
        """Return the name of a job's folder: the overrides that this sweep varies now or varied when it was started."""
        varied = [short for override in overrides if override_key(short := short_form(override)) in self.swept]
        full = [full_form(one, script=self.script) for one in varied]
        # As version 0.1.0 named it. The list of names, unlike the file system, tells upper from lower case.
        earlier = (job_folder_name(names, any_case=True) for names in (full, varied))
        return next((name for name in earlier if name in self.existing), job_folder_name(varied))

    def save_settings(self, folder: Path) -> None:
        """Save the settings of this sweep for a later resume. Called when they have been validated."""
        assert self.config is not None
        folder.mkdir(parents=True, exist_ok=True)
        recorded = cut_sweep_settings(self.config)
        overrides = OmegaConf.to_container(recorded.hydra.overrides, resolve=False)
        assert isinstance(overrides, dict)
        texts = [*overrides["hydra"], *overrides["task"]]
        typed = overrides_of_user(folder, texts, script=self.script)
        write_text(folder / SWEEP_SETTINGS, OmegaConf.to_yaml(recorded))
        sign_sweep(folder, overrides, script=self.script, typed=None if typed == texts else typed)  # type: ignore[arg-type]

    def _launch(self, batch: Sequence[Sequence[str]], first_number: int) -> None:
        """Run jobs with the launcher, which may run them in parallel.

        Raises:
            UserError: If the jobs run on this machine and name a file that does not exist.
        """
        assert self.config is not None
        if type(self.launcher).__name__ in LOCAL_LAUNCHERS:
            check_named_files(batch)
        params = getattr(self.launcher, "params", {})
        on_slurm = type(self.launcher).__name__ == "SlurmLauncher"
        with private_submission_folder(Path(str(self.config.hydra.sweep.dir)), params, on_slurm=on_slurm), _reworded_counts():
            results = self.launcher.launch([list(overrides) for overrides in batch], initial_job_idx=first_number)
        for returned in results:
            failure = returned._return_value  # The property `return_value` would print the error again and raise it.
            if isinstance(failure, Exception) and not isinstance(failure, SweepJobFailed):
                print_error(UserError(f"A job failed: {failure}"))


class GridSweeper(RunSweeper):
    """Runs one job for each combination of the listed values."""

    def run(self, runner: JobRunner, overrides: Sequence[Override]) -> None:
        choices = []
        for override in overrides:
            if override.is_sweep_override() and not override.is_discrete_sweep():
                raise UserError(
                    f"{override.input_line}: a grid needs a list of values, such as 1e-4,1e-3. To draw values from a range, add "
                    "hparams_search=random."
                )
            key, swept = override.get_key_element(), override.is_sweep_override()
            values = list(override.sweep_string_iterator()) if swept else [override.get_value_element_as_str()]
            if not values:
                raise UserError(f"{override.input_line}: this range has no values, so the sweep would have no job.")
            choices.append([f"{key}={value}" for value in values])
        batch = [list(combination) for combination in itertools.product(*choices)]
        # An invalid override must end the sweep before its first job.
        self.validate_batch_is_legal(list(different_jobs(batch)))
        self.save_settings(runner.folder)
        runner.run([(job_overrides, self.folder_name(job_overrides)) for job_overrides in batch])


class SearchSweeper(RunSweeper):
    """Lets Optuna choose the values of each job from ranges or lists.

    Args:
        sampler: "tpe", which learns from earlier jobs, or "random".
        n_trials: Total number of jobs.
        n_parallel: Jobs that are chosen and launched together.
        pruning: End a job early if it is worse than the median of the other jobs at the same epoch.
        pruning_after: Epochs before a job can be pruned.
        seed: The seed of the choices.
        params: See `RunSweeper`.
        params_by_optimizer: Further ones for each `optimizer.name`; none of them if params is None.
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
        params_by_optimizer: dict[str, dict[str, Any]] | None = None,
    ) -> None:
        super().__init__(params)
        self.params_by_optimizer = {} if params is None else params_by_optimizer or {}
        self.sampler = sampler
        self.n_trials = n_trials
        self.n_parallel = n_parallel
        self.pruning = pruning
        self.pruning_after = pruning_after
        self.seed = seed

    def suitable_params(self, swept: Set[str]) -> dict[str, Any]:
        assert self.config is not None
        params = {key: value for key, value in self.params.items() if not self._is_own(key.partition(".")[0])}
        if swept & CHOOSING_OPTIMIZER or self._is_own("optimizer"):
            return params
        return params | dict(self.params_by_optimizer.get(OmegaConf.select(self.config, "optimizer.name"), {}))

    def _is_own(self, group: str) -> bool:
        """Return whether a group is a class of the user's own, which has other settings."""
        assert self.config is not None
        fields = self.config.get(group)
        return isinstance(fields, DictConfig) and TARGET in fields

    def run(self, runner: JobRunner, overrides: Sequence[Override]) -> None:
        from gpt_pretrain.sweeps.search import Search

        for name, least in LEAST_NUMBERS.items():
            if type(count := getattr(self, name)) is not int or not least <= count <= MAX_NUMBER:
                raise UserError(f"hydra.sweeper.{name}={count}: must be a whole number from {least} to {MAX_NUMBER:,}.")
        fixed = [one.input_line or "" for one in overrides if not one.is_sweep_override()]
        spaces = {
            short_form(f"{one.get_key_element()}=")[:-1]: _search_space(one) for one in overrides if one.is_sweep_override()
        }
        if not spaces:
            raise UserError("A search needs a setting to vary, such as 'optimizer.lr=tag(log,interval(1e-4,1e-2))'.")
        if type(self.launcher).__name__ in LOCAL_LAUNCHERS:
            listed = [f"{key}={value}" for key, space in spaces.items() for value in getattr(space, "values", ())]
            check_named_files([[*fixed, *listed]])
        search = Search.open(
            runner.folder,
            spaces,
            sampler=self.sampler,
            seed=self.seed,
            pruning=self.pruning,
            pruning_after=self.pruning_after,
        )
        self.save_settings(runner.folder)
        while trials := search.ask(min(self.n_parallel, self.n_trials - search.count_ended())):
            # A trial in a stranger's journal may have more parameters, whose names would become overrides of any kind.
            pairs = [[(key, value) for key, value in trial.params.items() if key in spaces] for trial in trials]
            chosen = [[full_form(f"{key}={_round(value)}", script=self.script) for key, value in pair] for pair in pairs]
            names = [self.folder_name(values) for values in chosen]
            for trial, name in zip(trials, names, strict=True):
                search.assign_folder(trial, name)
            jobs = [(fixed + values, name) for values, name in zip(chosen, names, strict=True)]
            losses = runner.run(jobs, by_bits=search_by_bits(spaces, runner.folder))
            for trial, name, loss in zip(trials, names, losses, strict=True):
                search.finish(trial, loss, pruned=runner.was_pruned(name))


class LadderSweeper(RunSweeper):
    """Runs a ladder: short trainings that show which model and learning rate are best for the rest of a budget."""

    def run(self, runner: JobRunner, overrides: Sequence[Override]) -> None:
        from gpt_pretrain.config.conversion import to_settings
        from gpt_pretrain.config.schema import TrainSettings
        from gpt_pretrain.sweeps.ladder_run import ladder_problems, run_ladder  # it loads torch
        from gpt_pretrain.system.resources import process_start

        resumed = (runner.folder / LADDER).is_file()
        typed = {_key(one): one for one in overrides}
        if problems := ladder_problems(set(typed), {key for key, one in typed.items() if one.is_sweep_override()}):
            raise UserError(problems)
        assert self.config is not None
        config = OmegaConf.masked_copy(self.config, [str(name) for name in self.config if name != "hydra"])
        config.run_dir = str(runner.folder)
        run_ladder(
            runner,
            to_settings(config, TrainSettings),
            [one.input_line or "" for key, one in typed.items() if key not in ("budget", "hparams_search")],
            began=process_start(),
            save_settings=lambda: None if resumed else self.save_settings(runner.folder),
        )


def different_jobs(batch: Iterable[Sequence[str]]) -> Iterator[Sequence[str]]:
    """Yield one job for each combination of options and texts. Hydra needs a fifth of a second to compose one.

    All numbers of a setting are alike. After many combinations, yield only those with an override that is in none of them.
    """
    combinations, covered = set[tuple[str, ...]](), set[str]()
    for overrides in batch:
        alike = tuple(map(_without_number, overrides))
        if alike not in combinations and (len(combinations) < MAX_COMBINATIONS or not covered.issuperset(alike)):
            combinations.add(alike)
            covered.update(alike)
            yield overrides


def _without_number(override: str) -> str:
    """Return an override, without the digits of its value if this is a number and cannot be the name of an option."""
    key, value = split_override(override)
    if not NUMBER.fullmatch(value) or not ("." in key or key in TRAIN_KINDS or key in GENERATE_KINDS):
        return override
    return f"{key}={'whole number' if value.lstrip('+-').isdecimal() else 'number'}"


@contextmanager
def _reworded_counts() -> Iterator[None]:
    """Have Hydra's launcher, which always counts "jobs", say that it runs 1 job."""

    def reword(record: logging.LogRecord) -> bool:
        record.msg = re.sub(
            r"^Launching (\d+) jobs locally$", lambda found: f"Running {format_count(int(found[1]), 'job')}", record.msg
        )
        return True

    logger = logging.getLogger(basic_launcher.__name__)
    logger.addFilter(reword)
    try:
        yield
    finally:
        logger.removeFilter(reword)


def _key(override: Override) -> str:
    """Return the setting or group that an override names, as job folders and the run metadata name it."""
    return override_key(short_form(f"{override.get_key_element()}="))


def _round(value: object) -> object:
    """Round a drawn number to four significant digits."""
    return f"{value:.4g}" if isinstance(value, float) else value


def _search_space(override: Override) -> SearchSpace:
    """Return the range or the list that a setting's values are chosen from."""
    from gpt_pretrain.sweeps.search import NumberRange, ValueList

    value = override.value()
    if isinstance(value, IntervalSweep):
        assert value.start is not None and value.end is not None
        integer = isinstance(value.start, int) and isinstance(value.end, int)
        return NumberRange(value.start, value.end, log="log" in value.tags, integer=integer)
    if isinstance(value, RangeSweep) and isinstance(value.start, int) and isinstance(value.stop, int):
        return NumberRange(value.start, value.stop - 1, integer=True, log="log" in value.tags)
    return ValueList(list(override.sweep_string_iterator()))
