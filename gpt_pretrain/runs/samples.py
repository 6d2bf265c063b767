"""The samples of a run: the file samples.txt, and their form in Markdown."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from gpt_pretrain.system.formatting import shorten_middle
from gpt_pretrain.system.reading import DamagedFileError, read_bytes

Item = TypeVar("Item")

MAX_SAMPLES_BYTES = 500_000_000
MAX_SHOWN = 20_000  # characters of a text in Markdown; each may become six, and a stranger's tokens are long

# Version 0.1.0 wrote "9 of 50 new tokens in a row stand in the training text".
HEADING = re.compile(
    r"--- epoch (?P<epoch>[0-9]{1,15}), step (?P<step>[0-9]{1,15}), (?P<tokens_seen>[0-9]{1,15}) tokens seen"
    r"(?:, (?P<sampler>temperature [^;]{1,200}))?"
    r"(?:; (?:longest memorized span: )?(?P<run_length>[0-9]{1,15}) of (?P<new_tokens>[0-9]{1,15}) new tokens"
    r"(?: in a row stand in the training text)?)?$"
)
HEADING_START = re.compile(r"^(?=--- epoch )", re.MULTILINE)


@dataclass(frozen=True)
class Sample:
    """A text that the model generated during training.

    Args:
        epoch: Counted from 1.
        step: The last optimizer step before it, counted from 0.
        tokens_seen: Tokens trained on up to this step.
        text: Prompt and continuation.
        sampler: The sampling settings; None if they are the run's own.
        new_tokens: Tokens of the continuation.
        run_length: The longest memorized span in tokens; None if it was not measured.
    """

    epoch: int
    step: int
    tokens_seen: int
    text: str
    sampler: str | None = None
    new_tokens: int = 0
    run_length: int | None = None

    def __str__(self) -> str:
        """Return the sample in the form of samples.txt. A line of the text that looks like a heading is indented by a space."""
        sampler = "" if self.sampler is None else f", {self.sampler}"
        span = "" if self.run_length is None else f"; {self.memorized_span}"
        heading = f"--- epoch {self.epoch}, step {self.step}, {self.tokens_seen} tokens seen{sampler}{span}"
        return f"{heading}\n{HEADING_START.sub(' ', self.text)}\n"

    @property
    def memorized_span(self) -> str:
        """The longest memorized span in words; empty if it was not measured."""
        return "" if self.run_length is None else f"longest memorized span: {self.run_length} of {self.new_tokens} new tokens"


def read_samples(file: Path) -> list[Sample]:
    """Return the samples in a file of a run's folder, in their order; an empty list if it is missing, too large or not text."""
    try:
        text = read_bytes(file, max_bytes=MAX_SAMPLES_BYTES, within=file.parent).decode()
    except (OSError, DamagedFileError, UnicodeDecodeError):
        return []
    blocks = HEADING_START.split(text)
    samples = []
    for block in blocks:
        heading, _, text = block.partition("\n")
        if (match := HEADING.match(heading)) is not None:
            samples.append(_parse(match, text.removesuffix("\n")))
    return samples


def markdown_table(samples: Sequence[Sample]) -> str:
    """Return samples as a table in Markdown, one per row. Markup in the texts has no effect."""
    rows = ["| epoch | step | sampler | memorized | text |", "|---|---|---|---|---|"]
    for sample in samples:
        memorized = "" if sample.run_length is None else f"{sample.run_length} of {sample.new_tokens}"
        text = _escape(shorten_middle(sample.text, MAX_SHOWN))
        rows.append(f"| {sample.epoch} | {sample.step} | {sample.sampler or ''} | {memorized} | {text} |")
    return "\n".join(rows)


def markdown_code_block(text: str) -> str:
    """Return a text as a code block in Markdown, with lines of at most 100 characters. The middle of a long text is left out."""
    lines = (part for line in shorten_middle(text, MAX_SHOWN).splitlines() for part in textwrap.wrap(line, 100) or [""])
    return "\n".join("    " + line for line in lines)


def pick_evenly(items: Sequence[Item], limit: int) -> list[Item]:
    """Return at most `limit` items, evenly spaced, including the first and, unless the limit is 1, the last."""
    if len(items) <= limit:
        return list(items)
    return [items[round(number * (len(items) - 1) / max(1, limit - 1))] for number in range(limit)]


def _parse(heading: re.Match[str], text: str) -> Sample:
    run_length = heading["run_length"]
    return Sample(
        epoch=int(heading["epoch"]),
        step=int(heading["step"]),
        tokens_seen=int(heading["tokens_seen"]),
        text=text,
        sampler=heading["sampler"],
        new_tokens=int(heading["new_tokens"] or 0),
        run_length=None if run_length is None else int(run_length),
    )


def _escape(text: str) -> str:
    """Escape a text for one line of Markdown."""
    shown = "".join(char if char.isprintable() else "\u23ce" if char == "\n" else " " for char in text)
    return "".join(char if char.isalnum() or char in " .,;:?'\"" or ord(char) > 127 else f"&#{ord(char)};" for char in shown)
