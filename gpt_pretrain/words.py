"""What becomes of the words of a command line before Hydra reads them."""

from __future__ import annotations

import re

from omegaconf import OmegaConf

from gpt_pretrain.errors import UserError
from gpt_pretrain.runs import OUTPUTS, SWEEP_SETTINGS, find_run, find_sweep
from gpt_pretrain.slurm import interrupted_run

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


def quoted(argv: list[str]) -> list[str]:
    """A command line whose texts and paths are quoted for Hydra, so that users need not know its grammar; not in sweeps."""
    if {"-m", "--multirun"} & set(argv):
        return argv
    words = []
    for word in argv:
        key, equals, value = word.partition("=")
        free = equals and value not in ("", "null") and not (value[0] in "'\"" and value[-1] == value[0] and len(value) > 1)
        words.append(f"{key}={quote(value)}" if free and key_of(word) in FREE_TEXT else word)
    return words


def quote(text: str) -> str:
    """A text as one string of Hydra's override grammar."""
    text = text.replace("${", "\\${")
    text = re.sub(r"(\\*)('|$)", lambda match: match[1] * 2 + ("\\'" if match[2] else ""), text)
    return f"'{text}'"


def with_resume(argv: list[str]) -> list[str]:
    """A command line in which `resume=RUN` has brought that run's directory; what Hydra noted there stays as it is.

    A job that SLURM starts again resumes the run that it trained before.

    Raises:
        UserError: when there is no such run, or a sweep is to resume one.
    """
    sweep = bool({"-m", "--multirun"} & set(argv))
    wanted = [re.sub(r"^(['\"])(.*)\1$", r"\2", word.partition("=")[2]) for word in argv if key_of(word) == "resume"]
    if not wanted and not sweep and (run_dir := interrupted_run(argv)) is not None:
        argv, wanted = [*argv, f"resume={quote(str(run_dir))}"], [str(run_dir)]
    if not wanted or wanted[-1] in ("", "null"):
        return argv
    if sweep:
        raise UserError("resume= goes on with one run; it cannot be combined with a sweep (-m).")
    run_dir = find_run(wanted[-1])
    typed_now = {key_of(word) for word in argv if not word.startswith("-")}
    place = [] if "hydra.run.dir" in typed_now else [f"hydra.run.dir={quote(str(run_dir))}", "hydra.output_subdir=null"]
    return [*place, *argv]


def with_sweep_resume(argv: list[str]) -> list[str]:
    """A command line in which `sweep_resume=SWEEP` has brought what that sweep was started with, and its folder.

    Settings that are typed now take the place of those.

    Raises:
        UserError: when there is no such sweep.
    """
    wanted = [re.sub(r"^(['\"])(.*)\1$", r"\2", word.partition("=")[2]) for word in argv if key_of(word) == "sweep_resume"]
    if not wanted:
        return argv
    folder = find_sweep(wanted[-1])
    stored = OmegaConf.load(folder / SWEEP_SETTINGS).hydra.overrides
    typed_now = {key_of(word) for word in argv if not word.startswith("-")}
    before = [word for word in [*stored.hydra, *stored.task] if key_of(word) not in typed_now | {"hydra.mode", "hydra.sweep.dir"}]
    others = [word for word in argv if key_of(word) != "sweep_resume" and word not in ("-m", "--multirun")]
    return ["-m", *before, *others, f"hydra.sweep.dir={quote(str(folder))}"]


def without_traces(argv: list[str]) -> list[str]:
    """A command line that, where it asks for `plan=true`, has Hydra make no folder and no log; the run's place is still told.

    Raises:
        UserError: when a sweep is to be planned.
    """
    wanted = [word.partition("=")[2].strip("'\"").lower() for word in argv if key_of(word) == "plan"]
    if not wanted or wanted[-1] not in ("true", "yes", "on", "1"):
        return argv
    if {"-m", "--multirun"} & set(argv):
        raise UserError("plan=true looks at one run; it cannot be combined with a sweep (-m).")
    places = [word.partition("=")[2] for word in argv if key_of(word) == "hydra.run.dir"]
    kept = [word for word in argv if key_of(word) not in ("hydra.run.dir", "hydra.output_subdir", "hydra/job_logging")]
    nowhere = ["hydra.run.dir=.", "hydra.output_subdir=null", "hydra/job_logging=terminal"]
    return [*kept, *nowhere, f"run_dir={[str(OUTPUTS), *places][-1]}"]


def key_of(override: str) -> str:
    return override.split("=", 1)[0].lstrip("+~")
