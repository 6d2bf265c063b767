"""Exceptions with a meaning for the user."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


class UserError(ValueError):
    """One or more problems that the user can fix.

    Each problem is a sentence or two that names the setting, its value, the rule that it breaks and the remedy. The entry scripts
    print all problems together, without a traceback, and exit with code 2.
    """

    def __init__(self, problems: str | Iterable[str]) -> None:
        # Two checks may find the same problem.
        self.problems = [problems] if isinstance(problems, str) else list(dict.fromkeys(problems))
        assert self.problems, "a UserError needs at least one problem"
        super().__init__("\n".join(self.problems))


def describe_damage(error: Exception) -> str:
    """Return what is wrong with the content of a file, by the exception that its use raised, without Python's own terms."""
    if isinstance(error, KeyError):
        return f"its entry {error} is missing"
    return "an entry has the wrong type" if isinstance(error, TypeError | AttributeError | OverflowError) else str(error)


def first_line(error: BaseException, *, otherwise: str | None = None) -> str:
    """Return the first line of a library's message. For an error without one, return another text, by default its type."""
    lines = str(error).strip().splitlines() or [otherwise or type(error).__name__]
    return lines[0][:200]


class AlreadyCompleteError(UserError):
    """A resumed run has nothing left to train.

    Attributes:
        result: The result of the run, as stored in its metadata.
    """

    def __init__(self, problem: str, *, result: dict[str, Any]) -> None:
        super().__init__(problem)
        self.result = result


class LostEndError(RuntimeError):
    """A run reached its end, but its last checkpoint could not be saved."""
