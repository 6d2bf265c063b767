"""The one exception that means: the user can mend this."""

from __future__ import annotations

from collections.abc import Iterable


class UserError(ValueError):
    """Something a user can put right, told as one or more problems.

    Each problem is a sentence or two that names the setting, its value, the rule it breaks and the remedy. The entry
    scripts print them together, without a traceback, and exit with code 2.
    """

    def __init__(self, problems: str | Iterable[str]) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        assert self.problems, "a UserError needs at least one problem"
        super().__init__("\n".join(self.problems))
