"""The git checkout that the program runs from, if there is one."""

from __future__ import annotations

import subprocess
from pathlib import Path

from gpt_pretrain.errors import UserError

CHECKOUT = Path(__file__).parents[2]


def checkout_path(name: str) -> Path:
    """Return the path of train.py, of conf or of another part of the checkout.

    Raises:
        UserError: If the program was installed without its checkout.
    """
    path = CHECKOUT / name
    if not path.exists():
        raise UserError(
            f"{name} is missing: gpt-pretrain was installed without its source folder, which has train.py and conf/. "
            "In the source folder, run: pip install -e ."
        )
    return path


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
