"""Find the folder of the entry scripts and conf/: the source folder, or a copy within the package of an installed program."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

from gpt_pretrain.system.shell import quote_word

CHECKOUT = Path(__file__).parents[2]
_COPIES = Path(__file__).parents[1] / "scripts"  # made by gpt_pretrain/system/packaging.py
IS_INSTALLED = (_COPIES / "train.py").is_file()  # without its source folder
SCRIPTS = _COPIES if IS_INSTALLED else CHECKOUT
CONF = SCRIPTS / "conf"
_TYPED = Path(next(iter(sys.argv), ""))  # the program that the user has started, before run_script replaces it
IS_COMMAND = IS_INSTALLED or _TYPED.name == "gpt-pretrain" or _TYPED.parts[-2:] == ("gpt_pretrain", "__main__.py")


def script_command(script: str) -> str:
    """Return the command for an entry script, in the form in which the user has started this program.

    It is `gpt-pretrain train` or `python train.py`, with the path of the script if the user has typed one.
    """
    if IS_COMMAND:
        return f"gpt-pretrain {script.removesuffix('.py')}"
    if _TYPED.suffix != ".py" or not (SCRIPTS / _TYPED.name).is_file() or _TYPED.parent == Path():
        return f"python {script}"
    beside = _TYPED.with_name(script)
    return f"python {quote_word(str(beside if beside.is_file() else SCRIPTS / script))}"


def run_script(script: str, arguments: list[str]) -> None:
    """Run an entry script in this process, like `python SCRIPT ARGUMENTS`."""
    sys.argv[:] = [str(SCRIPTS / script), *arguments]
    runpy.run_path(sys.argv[0], run_name="__main__")


def completion_hint(script: str) -> str:
    """Return a hint on shell completion for an entry script. Hydra cannot complete a command of two words."""
    if IS_INSTALLED:
        return ""
    if IS_COMMAND:
        return f'Shell completion in the source folder, for python {script}: eval "$(python {script} -sc install=bash)"; '
    return f'Shell completion: eval "$({script_command(script)} -sc install=bash)"; '


def git_revision() -> str | None:
    """Return the commit of the checkout, with "-dirty" appended if files have changed; None outside a git checkout."""
    if not (CHECKOUT / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "-C", str(CHECKOUT), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
