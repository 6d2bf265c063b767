"""The command line `gpt-pretrain`, run in the test's own process."""

from __future__ import annotations

import sys
from unittest import mock

from gpt_pretrain.commands.main import main


def gpt_pretrain(*arguments: str) -> None:
    """Run `gpt-pretrain ARGUMENTS`.

    Raises:
        SystemExit: If the command fails.
    """
    with mock.patch.object(sys, "argv", ["gpt-pretrain", *arguments]):
        try:
            main()
        except SystemExit as end:
            if end.code:
                raise
