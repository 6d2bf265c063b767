"""The one exception that means: the user can mend this."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


class UserError(ValueError):
    """Something a user can put right, told as one or more problems.

    Each problem is a sentence or two that names the setting, its value, the rule it breaks and the remedy. The entry
    scripts print them together, without a traceback, and exit with code 2.
    """

    def __init__(self, problems: str | Iterable[str]) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        assert self.problems, "a UserError needs at least one problem"
        super().__init__("\n".join(self.problems))


class AlreadyCompleteError(UserError):
    """A run that was to go on has nothing left to do.

    Attributes:
        result: what came out of it, as a record has that.
    """

    def __init__(self, problem: str, *, result: dict[str, Any]) -> None:
        super().__init__(problem)
        self.result = result


class LostEndError(RuntimeError):
    """A run came to its end, and that end could not be saved."""
