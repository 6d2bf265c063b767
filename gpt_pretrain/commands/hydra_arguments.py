"""Rewrite the arguments of an entry script into the overrides that Hydra reads: quoting, resume=, sweep_resume=, plan=true."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

from omegaconf import OmegaConf

from gpt_pretrain.config.overrides import expand_amounts, override_key, quote_value
from gpt_pretrain.config.schema import GenerateSettings, TrainSettings, full_setting_names
from gpt_pretrain.errors import UserError
from gpt_pretrain.runs.folder import OUTPUTS, SWEEP_SETTINGS, find_run, find_sweep
from gpt_pretrain.training.distributed.requeue import interrupted_run

LAUNCHERS = {"parallel": "joblib", "slurm": "submitit", "ray": "ray"}  # of hparams_search


FREE_TEXT = {
    "prompt",
    "prompt_file",
    "start_context",
    "checkpoint",
    "pretrained",
    "resume",
    "init_from",
    "hydra.run.dir",
    "run_dir",
} | {f"data.{name}" for name in ("path", "url", "cache_dir")}


def to_hydra_arguments(arguments: list[str], *, script: str) -> list[str]:
    """Return a script's arguments as Hydra reads them.

    Args:
        script: "train" or "generate".

    Raises:
        UserError: If they ask for something that does not exist.
    """
    arguments = checked(with_sweep_resume(arguments, script=script), script=script)
    return quoted(without_traces(with_resume(arguments)) if script == "train" else arguments)


def quoted(argv: list[str]) -> list[str]:
    """A command line whose texts and paths are quoted for Hydra, so that users need not know its grammar.

    In a sweep, where a comma separates values, that is done for paths that are there.
    """
    sweep, words = asks_for_multirun(argv), []
    for word in argv:
        key, equals, value = word.partition("=")
        free = equals and value not in ("", "null") and not (value[0] in "'\"" and value[-1] == value[0] and len(value) > 1)
        free = free and override_key(word) in FREE_TEXT and not (sweep and not Path(value).expanduser().exists())
        words.append(f"{key}={quote_value(value)}" if free else expand_amounts(word))
    return words


def asks_for_multirun(argv: list[str]) -> bool:
    """Whether a command line asks for a sweep."""
    return bool({"-m", "--multirun"} & set(argv))


def checked(argv: list[str], *, script: str) -> list[str]:
    """A command line, if what it asks for is there.

    Raises:
        UserError: when it names a search without a sweep, a launcher that is not installed, or a setting by its last name only.
    """
    kind = GenerateSettings if script == "generate" else TrainSettings
    if meant := [(word, names) for word in argv if "=" in word and (names := full_setting_names(override_key(word), kind))]:
        raise UserError(f"{word}: there is no such setting; {' or '.join(names)} may be meant." for word, names in meant)
    wanted = {override_key(word): word.partition("=")[2] for word in argv if "=" in word}
    search = wanted.get("hparams_search", "grid")
    if search not in ("grid", "null") and not asks_for_multirun(argv) and "--cfg" not in argv:
        raise UserError(f"hparams_search={search} is for sweeps: add -m.")
    launcher = LAUNCHERS.get(search) or wanted.get("hydra/launcher", "basic").partition("_")[0]
    if launcher in LAUNCHERS.values() and importlib.util.find_spec(f"hydra_plugins.hydra_{launcher}_launcher") is None:
        raise UserError(f"The launcher {launcher} is not installed: pip install hydra-{launcher}-launcher.")
    return argv


def with_resume(argv: list[str]) -> list[str]:
    """A command line in which `resume=RUN` has brought that run's directory; what Hydra noted there stays as it is.

    A job that SLURM starts again resumes the run that it trained before.

    Raises:
        UserError: when there is no such run, or a sweep is to resume one.
    """
    sweep = asks_for_multirun(argv)
    wanted = [re.sub(r"^(['\"])(.*)\1$", r"\2", word.partition("=")[2]) for word in argv if override_key(word) == "resume"]
    if not wanted and not sweep and (run_dir := interrupted_run(argv)) is not None:
        argv, wanted = [*argv, f"resume={quote_value(str(run_dir))}"], [str(run_dir)]
    if not wanted or wanted[-1] in ("", "null"):
        return argv
    if sweep:
        raise UserError("resume= goes on with one run; it cannot be combined with a sweep (-m).")
    run_dir = find_run(wanted[-1])
    typed_now = {override_key(word) for word in argv if not word.startswith("-")}
    place = [] if "hydra.run.dir" in typed_now else [f"hydra.run.dir={quote_value(str(run_dir))}", "hydra.output_subdir=null"]
    return [*place, *argv]


def with_sweep_resume(argv: list[str], *, script: str) -> list[str]:
    """A command line in which `sweep_resume=SWEEP` has brought what that sweep was started with, and its folder.

    Settings that are typed now take the place of those.

    Raises:
        UserError: when there is no such sweep.
    """
    wanted = [re.sub(r"^(['\"])(.*)\1$", r"\2", word.partition("=")[2]) for word in argv if override_key(word) == "sweep_resume"]
    if not wanted:
        return argv
    folder = find_sweep(wanted[-1], script=script)
    stored = OmegaConf.load(folder / SWEEP_SETTINGS).hydra.overrides
    typed_now = {override_key(word) for word in argv if not word.startswith("-")}
    before = [
        word for word in [*stored.hydra, *stored.task] if override_key(word) not in typed_now | {"hydra.mode", "hydra.sweep.dir"}
    ]
    others = [word for word in argv if override_key(word) != "sweep_resume" and word not in ("-m", "--multirun")]
    return ["-m", *before, *others, f"hydra.sweep.dir={quote_value(str(folder))}"]


def without_traces(argv: list[str]) -> list[str]:
    """A command line that, where it asks for `plan=true`, has Hydra make no folder and no log; the run's place is still told.

    Raises:
        UserError: when a sweep is to be planned.
    """
    wanted = [word.partition("=")[2].strip("'\"").lower() for word in argv if override_key(word) == "plan"]
    if not wanted or wanted[-1] not in ("true", "yes", "y", "on", "1"):
        return argv
    if asks_for_multirun(argv):
        raise UserError("plan=true looks at one run; it cannot be combined with a sweep (-m).")
    places = [word.partition("=")[2] for word in argv if override_key(word) == "hydra.run.dir"]
    kept = [word for word in argv if override_key(word) not in ("hydra.run.dir", "hydra.output_subdir", "hydra/job_logging")]
    nowhere = ["hydra.run.dir=.", "hydra.output_subdir=null", "hydra/job_logging=terminal"]
    return [*kept, *nowhere, f"run_dir={[str(OUTPUTS), *places][-1]}"]
