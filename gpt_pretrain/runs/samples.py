"""Samples of a run: what is kept of each, and the file that they stand in, samples.txt."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

Item = TypeVar("Item")

HEAD = re.compile(
    r"--- epoch (?P<epoch>\d+), step (?P<step>\d+), (?P<tokens_seen>\d+) tokens seen(?:, (?P<sampler>temperature [^;]*))?"
    r"(?:; (?P<run_length>\d+) of (?P<new_tokens>\d+) new tokens in a row stand in the training text)?$"
)
LOOKS_LIKE_HEAD = re.compile(r"^(?=--- epoch )", re.MULTILINE)


@dataclass(frozen=True)
class Sample:
    """A continuation that a model made while it was being trained.

    Args:
        epoch: counted from 1.
        step: the last optimizer step before it, the first being 0.
        tokens_seen: tokens trained on until then.
        text: prompt and continuation.
        sampler: how it was drawn, where that is not the run's own way.
        new_tokens: tokens of the continuation.
        run_length: the longest run of them that stands in the training text as it is; None where that was not looked for.
    """

    epoch: int
    step: int
    tokens_seen: int
    text: str
    sampler: str | None = None
    new_tokens: int = 0
    run_length: int | None = None

    def __str__(self) -> str:
        sampler = "" if self.sampler is None else f", {self.sampler}"
        run = (
            ""
            if self.run_length is None
            else f"; {self.run_length} of {self.new_tokens} new tokens in a row stand in the training text"
        )
        head = f"--- epoch {self.epoch}, step {self.step}, {self.tokens_seen} tokens seen{sampler}{run}"
        return f"{head}\n{LOOKS_LIKE_HEAD.sub(' ', self.text)}\n"  # a line of the text that looks like a head is moved by a space


def read_samples(file: Path) -> list[Sample]:
    """The samples in a file, in their order; none if there is no such file."""
    try:
        with open(file, encoding="utf-8", newline="") as stream:
            parts = LOOKS_LIKE_HEAD.split(stream.read())
    except (OSError, UnicodeDecodeError):
        return []
    samples = []
    for part in parts:
        head, _, text = part.partition("\n")
        if (match := HEAD.match(head)) is not None:
            fields = match.groupdict()
            numbers = {name: int(fields[name]) for name in ("epoch", "step", "tokens_seen")}
            length = None if fields["run_length"] is None else int(fields["run_length"])
            samples.append(
                Sample(
                    **numbers,
                    text=text.removesuffix("\n"),
                    sampler=fields["sampler"],
                    new_tokens=int(fields["new_tokens"] or 0),
                    run_length=length,
                )
            )
    return samples


def samples_table(samples: Sequence[Sample]) -> str:
    """Samples as a table in Markdown, one a row, their texts shown as they are."""
    rows = ["| epoch | step | drawn by | memorised | text |", "|---|---|---|---|---|"]
    for sample in samples:
        memorised = "" if sample.run_length is None else f"{sample.run_length} of {sample.new_tokens}"
        rows.append(f"| {sample.epoch} | {sample.step} | {sample.sampler or ''} | {memorised} | {_plain(sample.text)} |")
    return "\n".join(rows)


def code_block(text: str) -> str:
    """Markdown that shows a text as it is, in lines that fit a page."""
    lines = (part for line in text.splitlines() for part in textwrap.wrap(line, 100) or [""])
    return "\n".join("    " + line for line in lines)


def _plain(text: str) -> str:
    """Markdown for one line that means these characters and nothing else."""
    shown = "".join(char if char.isprintable() else "\u23ce" if char == "\n" else " " for char in text)
    return "".join(char if char.isalnum() or char in " .,;:?'\"" or ord(char) > 127 else f"&#{ord(char)};" for char in shown)


def thin_out(items: Sequence[Item], most: int) -> list[Item]:
    """At most so many of some items, evenly spaced, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    return [items[round(place * (len(items) - 1) / (most - 1))] for place in range(most)]
