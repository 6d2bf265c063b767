"""Rewrite the arguments of an entry script into overrides that Hydra reads."""

from __future__ import annotations

import importlib.util
import sys

from gpt_pretrain.config.conversion import find_full_names
from gpt_pretrain.config.overrides import expand_amounts, find_override, full_form, override_key, quote_value
from gpt_pretrain.config.schema import GenerateSettings, TrainSettings
from gpt_pretrain.errors import UserError
from gpt_pretrain.runs.folder import OUTPUTS, check_folder_name, find_run
from gpt_pretrain.sweeps.folder import find_sweep
from gpt_pretrain.system.environment import user_path
from gpt_pretrain.training.distributed.requeue import interrupted_run

MULTIRUN_FLAGS = {"-m", "--multirun"}
LAUNCHERS = {"parallel": "joblib", "slurm": "submitit", "ray": "ray"}  # launcher of each option of hparams_search
# Settings whose values are paths, URLs or names of either, and all whose values are free texts.
PLACES = {
    "data.path",
    "data.url",
    "data.cache_dir",
    "checkpoint",
    "pretrained",
    "init_from",
    "prompt_file",
    "tokenizer",
    "tokenizer.name",
}
FREE_TEXT = PLACES | {"prompt", "start_context", "resume", "hydra.run.dir", "run_dir"}


def to_hydra_arguments(arguments: list[str], *, script: str) -> list[str]:
    """Return a script's arguments in the form that Hydra reads.

    Args:
        script: "train" or "generate".

    Raises:
        UserError: If the arguments ask for something that does not exist.
    """
    arguments = apply_sweep_resume([full_form(argument, script=script) for argument in arguments], script=script)
    check_arguments(arguments, script=script)
    if script == "train":
        arguments = apply_resume(arguments)
        arguments = apply_dry_run(arguments)
    return quote_arguments(arguments)


def apply_sweep_resume(arguments: list[str], *, script: str) -> list[str]:
    """Replace `sweep_resume=SWEEP` with the overrides and the folder of that sweep; what is typed now takes precedence.

    Raises:
        UserError: If there is no such sweep, or it holds overrides that must be typed.
    """
    sweep = find_override(arguments, "sweep_resume")
    if sweep is None:
        return arguments
    from gpt_pretrain.commands.stored_overrides import admit_overrides  # it loads Hydra's parser

    folder = find_sweep(_unquote(sweep), script=script)
    stored = admit_overrides(folder, script=script, typed=_typed_keys(arguments))
    for notice in stored.notices:
        print(notice, file=sys.stderr)
    typed = [argument for argument in arguments if override_key(argument) != "sweep_resume" and argument not in MULTIRUN_FLAGS]
    return ["-m", *stored.kept, *typed, f"hydra.sweep.dir={quote_value(str(folder))}"]


def check_arguments(arguments: list[str], *, script: str) -> None:
    """Check for mistakes that Hydra explains badly or too late.

    Raises:
        UserError: If a setting lacks its group, a search is not a sweep, or a launcher is not installed.
    """
    schema = GenerateSettings if script == "generate" else TrainSettings
    overrides = [argument for argument in arguments if "=" in argument]
    found = [(override, names) for override in overrides if (names := find_full_names(override_key(override), schema))]
    if found:
        raise UserError(f"{override}: there is no such setting. Did you mean {' or '.join(names)}?" for override, names in found)
    search = find_override(overrides, "hparams_search")
    if search not in (None, "grid", "null") and not _asks_for_sweep(arguments) and "--cfg" not in arguments:
        raise UserError(f"hparams_search={search} needs a sweep. Add -m.")
    launcher = LAUNCHERS.get(search or "") or (find_override(overrides, "hydra/launcher") or "").partition("_")[0]
    if launcher in LAUNCHERS.values() and importlib.util.find_spec(f"hydra_plugins.hydra_{launcher}_launcher") is None:
        raise UserError(f"The launcher {launcher} is not installed. Run: pip install hydra-{launcher}-launcher")


def apply_resume(arguments: list[str]) -> list[str]:
    """Have Hydra use the folder of the run that `resume=RUN` names, and leave Hydra's files there as they are.

    A job that SLURM or torchrun starts again resumes the run that it trained before.

    Raises:
        UserError: If there is no such run, or the arguments ask for a sweep.
    """
    typed, sweep = find_override(arguments, "resume"), _asks_for_sweep(arguments)
    run = "" if typed is None else _unquote(typed)
    if typed is None and not sweep and (interrupted := interrupted_run(arguments)) is not None:
        run = str(interrupted)
        arguments = [*arguments, f"resume={quote_value(run)}"]
    if run in ("", "null"):
        return arguments
    if sweep:
        raise UserError("resume= resumes a single run and cannot be combined with a sweep (-m). To resume a sweep: sweep_resume=")
    run_dir = find_run(run)
    check_folder_name(run_dir)
    if "hydra.run.dir" in _typed_keys(arguments):
        return arguments
    return [f"hydra.run.dir={quote_value(str(run_dir))}", "hydra.output_subdir=null", *arguments]


def apply_dry_run(arguments: list[str]) -> list[str]:
    """Have Hydra create no folder and no log file for `plan=true`; run_dir still names the folder of the planned run.

    Raises:
        UserError: If the arguments ask for a sweep.
    """
    plan = find_override(arguments, "plan")
    if plan is None or _unquote(plan).lower() not in ("true", "yes", "y", "on", "1"):
        return arguments
    if _asks_for_sweep(arguments):
        raise UserError("plan=true describes a single run and cannot be combined with a sweep (-m).")
    run_dir = find_override(arguments, "hydra.run.dir")
    replaced = ("hydra.run.dir", "hydra.output_subdir", "hydra/job_logging")
    kept = [argument for argument in arguments if override_key(argument) not in replaced]
    no_files = ["hydra.run.dir=.", "hydra.output_subdir=null", "hydra/job_logging=terminal"]
    return [*kept, *no_files, f"run_dir={OUTPUTS if run_dir is None else run_dir}"]


def quote_arguments(arguments: list[str]) -> list[str]:
    """Quote texts and paths for Hydra, so that users need not know its grammar, and write out amounts such as 1e9.

    In a sweep a comma separates values, so only existing paths are quoted there, and places with `${...}` that are one value.
    """
    sweep = _asks_for_sweep(arguments)
    return [
        _quote_argument(argument) if _is_free_text(argument, sweep=sweep) else expand_amounts(argument) for argument in arguments
    ]


def _is_free_text(argument: str, *, sweep: bool) -> bool:
    key, value = override_key(argument), argument.partition("=")[2]
    if key not in FREE_TEXT or value in ("", "null") or _unquote(value) != value:
        return False
    if key == "hydra.run.dir" and "${" in value:  # a folder named after settings, as Hydra's documentation shows
        return False
    if not sweep or user_path(value).exists():
        return True
    if key not in PLACES or "${" not in value:
        return False
    from gpt_pretrain.commands.stored_overrides import has_several_values  # it loads Hydra's parser

    return not has_several_values(argument)


def _quote_argument(argument: str) -> str:
    key, _, value = argument.partition("=")
    return f"{key}={quote_value(value)}"


def _unquote(value: str) -> str:
    quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
    return value[1:-1] if quoted else value


def _typed_keys(arguments: list[str]) -> set[str]:
    return {override_key(argument) for argument in arguments if not argument.startswith("-")}


def _asks_for_sweep(arguments: list[str]) -> bool:
    return not MULTIRUN_FLAGS.isdisjoint(arguments)
