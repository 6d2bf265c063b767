"""The command line `gpt-pretrain COMMAND`, also `python -m gpt_pretrain COMMAND`."""

from __future__ import annotations

import importlib
import sys

from gpt_pretrain.commands.failures import EXIT_INTERRUPTED, EXIT_USER_ERROR, print_defect, print_error
from gpt_pretrain.errors import UserError

# Each command is the function COMMAND_command in the module gpt_pretrain.commands.COMMAND.
COMMANDS = {
    "prepare": "turn text files or a dataset into token shards",
    "export": "export a model as a folder that transformers opens",
    "report": "write report.html for a run or a sweep",
    "compare": "plot the losses of several runs and print how their settings differ",
    "verify_resume": "check that a killed and resumed run ends like an uninterrupted one",
}


def main() -> None:
    """Run the command that the first argument names, and exit with its exit code."""
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        print(_usage())
        return
    try:
        if name not in COMMANDS:
            raise UserError(f"{name}: there is no such command. Choose from {', '.join(COMMANDS)}.")
        module = importlib.import_module(f"gpt_pretrain.commands.{name}")
        sys.exit(getattr(module, f"{name}_command")(arguments))
    except UserError as error:
        print_error(error)
        sys.exit(EXIT_USER_ERROR)
    except Exception as error:
        sys.exit(print_defect(error))
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)


def _usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {summary}" for name, summary in COMMANDS.items()]
    return "\n".join(
        ["Usage: gpt-pretrain COMMAND [setting=value ...]", "", *lines, "", "gpt-pretrain COMMAND --help explains its settings."]
    )
