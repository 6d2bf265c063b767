"""Rewrite the arguments of an entry script into overrides that Hydra reads."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from gpt_pretrain.commands.command_line.argument_checks import argument_problems, broken_rules, with_prefix
from gpt_pretrain.commands.command_line.arguments import warn_of_repetitions
from gpt_pretrain.commands.command_line.command_words import MULTIRUN_FLAGS, Arguments, clean_word, sort_arguments
from gpt_pretrain.commands.command_line.custom_options import choose_custom_options, custom_groups
from gpt_pretrain.commands.command_line.hydra_grammar import to_hydra_override
from gpt_pretrain.config.free_text import expand_home, plain_value
from gpt_pretrain.config.overrides import find_override, full_form, override_key, quote_value, with_recipe_of_weights
from gpt_pretrain.errors import UserError
from gpt_pretrain.runs.folder import OUTPUTS, check_folder_name, find_run
from gpt_pretrain.sweeps.folder import find_sweep
from gpt_pretrain.system.environment import user_path
from gpt_pretrain.training.distributed.launch import launch_info
from gpt_pretrain.training.distributed.ranks import is_main
from gpt_pretrain.training.distributed.requeue import interrupted_run

LAUNCHERS = {"parallel": "joblib", "slurm": "submitit", "ray": "ray"}  # launcher of each option of hparams_search


def to_hydra_arguments(words: list[str], *, script: str) -> list[str]:
    """Return a script's arguments in the form that Hydra reads.

    Args:
        words: The arguments as typed.
        script: "train", "generate", "evaluate" or "serve".

    Raises:
        UserError: If the arguments ask for something that does not exist.
    """
    arguments = sort_arguments([expand_home(full_form(clean_word(word), script=script)) for word in words])
    if script == "train":
        arguments.overrides = choose_custom_options(arguments.overrides)
    check_arguments(arguments, script=script)
    if launch_info() is None and is_main():
        warn_of_repetitions([one for one in arguments.overrides if not one.startswith("~")])
    custom = custom_groups(arguments.overrides, folders=arguments.config_folders)
    overrides = [with_prefix(override, script=script, custom=custom) for override in arguments.overrides]
    quoted = [*arguments.flags, *quote_arguments(overrides, sweep=arguments.is_sweep)]
    quoted = apply_sweep_resume(quoted, script=script)
    if script == "train":
        quoted = with_log_in_run_dir(apply_resume(quoted, typed=words))
        quoted = apply_dry_run(quoted)
        quoted = with_recipe_of_weights(quoted)
    rewritten = sort_arguments(quoted)
    if "--resolve" in rewritten.flags and script in ("train", "evaluate") and find_override(quoted, "run_dir") is None:
        rewritten.overrides.append("run_dir=${hydra:run.dir}")  # without a run, Hydra has no output folder
    if "--hydra-help" in rewritten.flags:  # Hydra would set them in a config without the program's settings
        rewritten.overrides = [one for one in rewritten.overrides if override_key(one).startswith("hydra")]
    return [*rewritten.flags, *rewritten.overrides]


def apply_sweep_resume(arguments: list[str], *, script: str) -> list[str]:
    """Replace `sweep_resume=SWEEP` with the overrides and the folder of that sweep. Arguments typed now take precedence.

    Raises:
        UserError: If there is no such sweep, or if it contains overrides that must be typed.
    """
    sweep = find_override(arguments, "sweep_resume")
    if sweep is None:
        return arguments
    from gpt_pretrain.commands.command_line.stored_overrides import admit_overrides, stored_options  # it loads Hydra's parser

    folder = find_sweep(plain_value(sweep), script=script)
    stored = admit_overrides(folder, script=script, typed=_typed_keys(arguments))
    for notice in stored.notices:
        print(notice, file=sys.stderr)
    typed = [argument for argument in arguments if override_key(argument) != "sweep_resume" and argument not in MULTIRUN_FLAGS]
    options = stored_options(folder, chosen={override_key(one) for one in [*stored.kept, *typed]}) if script == "train" else []
    return ["-m", *options, *stored.kept, *typed, f"hydra.sweep.dir={quote_value(str(folder))}"]


def check_arguments(arguments: Arguments, *, script: str) -> None:
    """Check for mistakes that Hydra explains badly or too late.

    Raises:
        UserError: If a name, an option, a type or a word is wrong, a search is not a sweep, or a launcher is not installed. It
            lists all problems together with the values that break a rule.
    """
    problems = argument_problems(arguments, script=script)
    if script == "evaluate" and arguments.is_sweep:
        problems.append("evaluate.py has no sweeps (-m). It compares several models in one job: 'models=[latest,gpt2]'")
    if script == "serve" and arguments.is_sweep:
        problems.append("serve.py has no sweeps (-m). It serves several models at once: 'models=[latest,gpt2]'")
    one_file = [key for key in ("prompts", "out") if find_override(arguments.overrides, key) not in (None, "null")]
    if script == "generate" and arguments.is_sweep and one_file:
        problems.append("prompts= and out= write one file of answers, so they cannot be combined with a sweep (-m).")
    shared = find_override(arguments.overrides, "run_dir")
    if arguments.is_sweep and shared is not None and "${" not in shared:
        problems.append(f"run_dir={shared}: all jobs of a sweep would share this folder. Type hydra.sweep.dir={shared}")
    unused = find_override(arguments.overrides, "hydra.run.dir")
    if arguments.is_sweep and unused is not None:
        problems.append(f"hydra.run.dir={unused} has no effect in a sweep (-m). Type hydra.sweep.dir={unused}")
    search = find_override(arguments.overrides, "hparams_search")
    if search not in (None, "grid", "null") and not arguments.is_sweep and "--cfg" not in arguments.flags:
        problems.append(f"hparams_search={search} needs a sweep. Add -m.")
    launcher = LAUNCHERS.get(search or "") or (find_override(arguments.overrides, "hydra/launcher") or "").partition("_")[0]
    if launcher in LAUNCHERS.values() and importlib.util.find_spec(f"hydra_plugins.hydra_{launcher}_launcher") is None:
        problems.append(f"The launcher {launcher} is not installed. Run: pip install hydra-{launcher}-launcher")
    if problems:
        raise UserError([*problems, *broken_rules(arguments, script=script)])


def apply_resume(arguments: list[str], *, typed: list[str]) -> list[str]:
    """Make Hydra use the folder of the run in `resume=RUN`, without changing Hydra's files there.

    A job that SLURM or torchrun starts again resumes its earlier run.

    Args:
        typed: The arguments as typed. They identify a job that is started again.

    Raises:
        UserError: If there is no such run, or the arguments ask for a sweep.
    """
    named, sweep = find_override(arguments, "resume"), _asks_for_sweep(arguments)
    run = "" if named is None else plain_value(named)
    if named is None and not sweep and (interrupted := interrupted_run(typed)) is not None:
        run = str(interrupted)
        arguments = [*arguments, f"resume={quote_value(run)}"]
    if run in ("", "null"):
        return arguments
    if sweep:
        raise UserError("resume= resumes a single run and cannot be combined with a sweep (-m). To resume a sweep: sweep_resume=")
    run_dir = find_run(run)
    check_folder_name(run_dir)
    if named is not None:
        _check_own_folder(arguments, run=run, run_dir=run_dir)
    if "hydra.run.dir" in _typed_keys(arguments):
        return arguments
    return [f"hydra.run.dir={quote_value(str(run_dir))}", "hydra.output_subdir=null", *arguments]


def _check_own_folder(arguments: list[str], *, run: str, run_dir: Path) -> None:
    """Check that the arguments do not name another folder for a resumed run. It would be used in place of the run's own.

    Raises:
        UserError: If they name one.
    """
    for key in ("run_dir", "hydra.run.dir"):
        other = plain_value(find_override(arguments, key) or "")
        if other and user_path(other).resolve() != run_dir.resolve():
            raise UserError(
                f"resume={run} continues in its own folder, so {key}={other} has no effect. Leave out {key}. For a new run from "
                f"its weights: init_from={run} hydra.run.dir={other}"
            )


def with_log_in_run_dir(arguments: list[str]) -> list[str]:
    """Make Hydra use the folder of a typed `run_dir=` as well, so that train.log is beside the run's other files."""
    folder = find_override(arguments, "run_dir")
    if folder is None or "${" in folder or "hydra.run.dir" in _typed_keys(arguments) or _asks_for_sweep(arguments):
        return arguments
    return [*arguments, f"hydra.run.dir={folder}"]


def apply_dry_run(arguments: list[str]) -> list[str]:
    """Make Hydra create no folder and no log file for `plan=true`. run_dir still names the folder of the planned run.

    Raises:
        UserError: If the arguments ask for a sweep.
    """
    plan = find_override(arguments, "plan")
    if plan is None or plain_value(plan).lower() not in ("true", "yes", "y", "on", "1"):
        return arguments
    if _asks_for_sweep(arguments):
        raise UserError("plan=true describes a single run and cannot be combined with a sweep (-m).")
    run_dir = find_override(arguments, "hydra.run.dir")
    replaced = ("hydra.run.dir", "hydra.output_subdir", "hydra/job_logging")
    kept = [argument for argument in arguments if override_key(argument) not in replaced]
    no_files = ["hydra.run.dir=.", "hydra.output_subdir=null", "hydra/job_logging=terminal"]
    return [*kept, *no_files, f"run_dir={OUTPUTS if run_dir is None else run_dir}"]


def quote_arguments(overrides: list[str], *, sweep: bool = False) -> list[str]:
    """Quote texts and paths for Hydra, so that users need not know its grammar. Write out amounts such as 1e9.

    Args:
        sweep: Whether the overrides belong to a sweep.
    """
    return [to_hydra_override(override, sweep=sweep) for override in overrides]


def _typed_keys(arguments: list[str]) -> set[str]:
    return {override_key(argument) for argument in arguments if not argument.startswith("-")}


def _asks_for_sweep(arguments: list[str]) -> bool:
    return not MULTIRUN_FLAGS.isdisjoint(arguments)
