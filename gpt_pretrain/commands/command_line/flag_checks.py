"""Check the options of Hydra that are typed for an entry script, such as -m and --cfg."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

from gpt_pretrain.commands.command_line.command_words import (
    COMPLETION,
    COMPLETION_STEPS,
    CONFIGS,
    MULTIRUN_FLAGS,
    NO_RUN,
    SCHEMAS,
    SINGLE_FLAGS,
    VALUE_FLAGS,
    Arguments,
)
from gpt_pretrain.config.other_programs import EXPERIMENTS
from gpt_pretrain.system.checkout import IS_COMMAND

# What Hydra does in place of a run. It does one of them, unless it shows a help text.
ACTIONS = ({"-r", "--run"}, MULTIRUN_FLAGS, {"-c", "--cfg"}, {"-i", "--info"}, COMPLETION)
HELP = {"-h", "--help", "--hydra-help"}


def flag_problems(arguments: Arguments, *, script: str) -> list[str]:
    """List the problems of a script's options of Hydra, such as -m and --cfg."""
    problems = list[str]()
    if arguments.has_multirun_flag and (others := NO_RUN & set(arguments.flags)):
        problems.append(f"-m starts a sweep, and {min(others)} starts nothing. Leave out one of them.")
    elif len(actions := _typed_actions(arguments.flags)) > 1 and HELP.isdisjoint(arguments.flags):
        problems.append(f"{actions[0]} and {actions[1]} cannot be combined. Leave out one of them.")
    problems += [
        f"{flag}: this option takes no value. Type {name}"
        for flag in arguments.flags
        if (name := flag.partition("=")[0]) != flag and name in SINGLE_FLAGS
    ]
    chosen = [(flag, value) for flag, value in pairwise([*arguments.flags, ""]) if flag in ("-c", "--cfg")]
    problems += [
        f"{f'{flag} {value}'.rstrip()}: must be job, hydra or all.{f' {EXPERIMENTS}' * bool(Path(value).suffix)}"
        for flag, value in chosen
        if value not in CONFIGS
    ]
    named = [value for flag, value in pairwise([*arguments.flags, ""]) if flag in ("-cn", "--config-name")]
    problems += [
        f"--config-name={name}: this file has the settings of another script. Run {name}.py, or leave out --config-name."
        for name in named
        if name in SCHEMAS and name != script
    ]
    if "--experimental-rerun" in arguments.flags:
        problems.append(
            "--experimental-rerun is not allowed: Hydra unpickles the file that it names, which can run any code. To continue a "
            "run, type resume=RUN. To repeat one, type the command in its run.json."
        )
    if "--resolve" in arguments.flags and not {"-c", "--cfg", "-h", "--help"} & set(arguments.flags):
        problems.append("--resolve has no effect without --cfg. To see all settings, resolved: --cfg job --resolve")
    if {"-p", "--package"} & set(arguments.flags) and chosen == []:
        problems.append("-p selects a part of the settings for --cfg, and has no effect without it. A prompt: prompt=TEXT")
    if COMPLETION & set(arguments.flags) and IS_COMMAND:
        problems.append(
            f"gpt-pretrain {script}: Hydra cannot complete commands of two words. In the source folder, it completes python "
            f'{script}.py: eval "$(python {script}.py -sc install=bash)"'
        )
    elif COMPLETION & set(arguments.flags) and len([one for one in arguments.overrides if one.startswith(COMPLETION_STEPS)]) != 1:
        problems.append("-sc: name a shell, as in -sc install=bash, -sc install=zsh or -sc install=fish.")
    return problems


def _typed_actions(flags: list[str]) -> list[str]:
    """Return the flags that each ask Hydra for another action, as typed. The value of a flag is not one of them."""
    typed = [flag for before, flag in pairwise(["", *flags]) if before not in VALUE_FLAGS]
    found = (next((flag for flag in typed if flag in action), None) for action in ACTIONS)
    return [flag for flag in found if flag is not None]
