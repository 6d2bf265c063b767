"""Explain in one message why the tensors of a file do not fit a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from gpt_pretrain.system.formatting import shorten_middle
from gpt_pretrain.system.terminal import escape_line

MAX_NAMED, MAX_NAME = 3, 200  # tensors of each kind that a message names, and characters of a name


@dataclass
class Misfits:
    """The reasons why the tensors of a file cannot be loaded.

    Args:
        causes: Sentences that explain all other reasons, such as the kind of model in the file. Only the first is shown.
        missing: Names of tensors that the model needs.
        unknown: Names of tensors that the model does not have.
        misshapen: Clauses on tensors, each with its shape and the model's.
        unreadable: Clauses on tensors, each with what it holds instead of floating-point numbers.
        conflicts: Clauses on tensors that contradict each other.
    """

    causes: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    misshapen: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    conflicts: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        groups = (self.causes, self.missing, self.unknown, self.misshapen, self.unreadable, self.conflicts)
        return sum(map(len, groups))

    def __add__(self, other: Misfits) -> Misfits:
        return Misfits(**{name: [*mine, *vars(other)[name]] for name, mine in vars(self).items()})

    def message(self, source: str) -> str:
        """Return one message on all misfits of a source."""
        if self.causes:
            return f"{source}: {self.causes[0]}"
        clauses = [
            _clause(self.missing, "is missing", "are missing"),
            _clause(self.unknown, "does not belong to the model", "do not belong to the model"),
            _clause(self.misshapen, "has the wrong shape", "have the wrong shape"),
            _clause(self.unreadable, "is not in fp64, fp32, fp16 or bf16", "are not in fp64, fp32, fp16 or bf16"),
            *self.conflicts,
        ]
        remedy = ""
        if len(self.unknown) == len(self):
            them = "it" if len(self) == 1 else "them"
            remedy = f" If the model's output does not depend on {them}, save the state_dict() without {them}."
        return f"{source} does not fit a GPT-2: {'; '.join(clause for clause in clauses if clause)}. Nothing was loaded.{remedy}"


def name_some(names: Sequence[str]) -> str:
    """Return the first names of a list, and how many more there are."""
    more = len(names) - MAX_NAMED
    return ", ".join(escape_line(shorten_middle(name, MAX_NAME)) for name in names[:MAX_NAMED]) + (
        f" and {more:,} more" if more > 0 else ""
    )


def _clause(names: Sequence[str], singular: str, plural: str) -> str:
    if not names:
        return ""
    count = "1 tensor" if len(names) == 1 else f"{len(names):,} tensors"
    return f"{count} {singular if len(names) == 1 else plural} ({name_some(sorted(names))})"
