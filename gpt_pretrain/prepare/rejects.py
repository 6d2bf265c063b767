"""How many bad records a corpus may have, and what is said about them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from gpt_pretrain.errors import UserError
from gpt_pretrain.prepare.items import FIELD_MISSING
from gpt_pretrain.prepare.pieces import Counts
from gpt_pretrain.system.formatting import format_count

MOST_LEFT_OUT = 0.5  # share of bad records up to which leaving them out is a way
ENOUGH = 10_000  # records from which a share says something before all have been read
NAMED = 3  # bad records that a message tells


def collect(files: Iterable[Path], target: Path) -> None:
    """Write the rejected records of several folders into one file; none where there are none."""
    target.unlink(missing_ok=True)
    for file in files:
        if file.is_file() and file.stat().st_size:
            with open(file, "rb") as source, open(target, "ab") as stream:
                while block := source.read(1 << 20):
                    stream.write(block)


def too_many(counts: Counts, max_rejected: float, *, at_end: bool) -> bool:
    """Whether more records were bad than are allowed; before the end only once there were enough to tell."""
    return counts.rejected > max_rejected * counts.records and (at_end or counts.records >= ENOUGH)


def refusal(counts: Counts, file: Path, *, max_rejected: float) -> UserError:
    """What to say where there are too many.

    Args:
        file: where they all are.
    """
    share = counts.rejected / counts.records
    reasons = ", ".join(f"{reason}: {number:,}" for reason, number in sorted(counts.by_reason.items()))
    remedy = "Mend them and begin again with overwrite=true"
    if counts.by_reason.get(FIELD_MISSING, 0) > counts.rejected / 2:
        remedy = "Name the field that has the text with text_field=, or mend them and begin again with overwrite=true"
    if share < MOST_LEFT_OUT:
        remedy += f", or leave them out with max_rejected={_rounded_up(share):g}: the same command then goes on where it was"
    return UserError(
        f"{counts.rejected:,} of {format_count(counts.records, 'record')} ({100 * share:.3g} %) cannot be used, more than "
        f"max_rejected={max_rejected:g} allows ({reasons}). {told(file)} All are in {file}. {remedy}."
    )


def told(file: Path) -> str:
    """The first rejected records of a file, in words."""
    words = []
    with open(file, encoding="utf-8") as stream:
        for _, line in zip(range(NAMED), stream, strict=False):
            bad = json.loads(line)
            detail = f" ({bad['detail']})" if "detail" in bad else ""
            words.append(f"{bad['file']}, record {bad['record']}: {bad['reason']}{detail}")
    return "The first: " + "; ".join(words) + "."


def _rounded_up(share: float) -> float:
    """A share a little larger, to two digits."""
    return min(float(f"{1.1 * share:.1e}"), 1.0)
