"""Everything that a command line starts: the work of the entry scripts, the commands of `gpt-pretrain`, and error reporting.

Each command has its own file. `command_line/` parses and checks what was typed, and `process/` is the frame in which commands
run. This is the top room. It may use all other rooms, and no other room imports it.
"""

import sys
from pathlib import Path


def _module_started_alone() -> str | None:
    """Return the name of the module of this room that was started by itself, with or without `python -m`, or None."""
    started = next(iter(sys.argv), "")
    if started == "-m" and "-m" in sys.orig_argv:  # packages of a module are imported first
        room, _, name = sys.orig_argv[sys.orig_argv.index("-m") + 1].rpartition(".")
        return name if f"{room}.".startswith(f"{__name__}.") else None
    file = Path(started).resolve()
    return file.stem if file.suffix == ".py" and Path(__file__).resolve().parent in file.parents else None


if (_module := _module_started_alone()) is not None:
    from gpt_pretrain.commands.main import COMMANDS, ENTRY_SCRIPTS

    _typed = f"gpt-pretrain {_module} and its settings" if _module in ENTRY_SCRIPTS | COMMANDS else "gpt-pretrain --help"
    sys.exit(f"{_module}.py is a part of gpt-pretrain and does nothing by itself. Type {_typed}.")
