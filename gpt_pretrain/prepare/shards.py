"""The files of a corpus: shards of tokens with the places where documents begin."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gpt_pretrain.prepare.choosing import TRAIN, VAL, DocumentSplit
from gpt_pretrain.prepare.encoding import byte_lengths_of
from gpt_pretrain.prepare.stage import Stage
from gpt_pretrain.system.files import replacing

NAMES = {TRAIN: "train", VAL: "val"}
AT_ONCE = 1 << 22  # tokens that are copied at once


@dataclass(frozen=True)
class Start:
    """Where a shard begins.

    Args:
        row: the number of the document whose token is its first.
        offset: of that token in the document.
        source: of the document's first token in the stage.
    """

    row: int
    offset: int
    source: int


@dataclass
class PartPlan:
    """A part of the corpus, before it is written.

    Args:
        tokens: all of them.
        starts: of its shards.
    """

    documents: int = 0
    tokens: int = 0
    bytes: int = 0
    starts: list[Start] = field(default_factory=list)


@dataclass(frozen=True)
class ShardJob:
    """One shard to be written, as a worker needs to know it."""

    name: str
    folder: Path
    part: int
    start: Start
    tokens: int
    tasks: tuple[Path, ...]
    choice: DocumentSplit
    itemsize: int
    tokenizer: str


def plan_parts(stage: Stage, choice: DocumentSplit, *, shard_tokens: int) -> dict[int, PartPlan]:
    """How large the parts are, and where each shard begins."""
    plans = {part: PartPlan() for part in NAMES}
    source = 0
    for first, rows in stage.rows():
        ends = source + rows["tokens"].cumsum()
        parts = choice.parts(first, rows)
        for part, plan in plans.items():
            (chosen,) = np.nonzero(parts == part)
            behind = plan.tokens + rows["tokens"][chosen].cumsum()
            total = int(behind[-1]) if len(chosen) else plan.tokens
            for position in range(len(plan.starts) * shard_tokens, total, shard_tokens):
                place = int(np.searchsorted(behind, position, side="right"))
                number = int(chosen[place])
                count = int(rows["tokens"][number])
                offset = position - (int(behind[place]) - count)
                plan.starts.append(Start(first + number, offset, int(ends[number]) - count))
            plan.documents += len(chosen)
            plan.bytes += int(rows["bytes"][chosen].sum())
            plan.tokens = total
        source = int(ends[-1])
    return plans


def write_shard(job: ShardJob) -> dict[str, Any]:
    """Write one shard, each file beside its place and then renamed, and return its entry in the manifest."""
    stage = Stage.of(job.tasks, itemsize=job.itemsize)
    path = job.folder / f"{job.name}.bin"
    lengths = byte_lengths_of(job.tokenizer)
    digest, size, beginnings, position = hashlib.sha256(), 0, [np.empty(0, "<u8")], 0
    with replacing(path) as scratch, open(scratch, "wb", buffering=1 << 20) as stream:
        for begins, source, count in _runs(stage, job):
            beginnings.append((begins + position).astype("<u8"))
            for place in range(source, source + count, AT_ONCE):
                tokens = stage.tokens(place, min(AT_ONCE, source + count - place))
                size += int(lengths[tokens].sum())
                data = tokens.tobytes()
                digest.update(data)
                stream.write(data)
            position += count
    starts = np.concatenate(beginnings)
    starts_path = path.with_suffix(".idx")
    with replacing(starts_path) as scratch:
        scratch.write_bytes(starts.tobytes())
    return {
        "file": path.name,
        "tokens": position,
        "documents": len(starts),
        "bytes": size,
        "sha256": digest.hexdigest(),
        "starts": starts_path.name,
        "starts_sha256": hashlib.sha256(starts.tobytes()).hexdigest(),
    }


def _runs(stage: Stage, job: ShardJob) -> Iterator[tuple[np.ndarray, int, int]]:
    """The stretches of the stage that make up a shard: where in each documents begin, where it begins, and how long it is."""
    left, source, skip = job.tokens, job.start.source, job.start.offset
    for first, rows in stage.rows(job.start.row):
        counts = rows["tokens"].astype(np.int64)
        begins = source + counts.cumsum() - counts
        source += int(counts.sum())
        (chosen,) = np.nonzero(job.choice.parts(first, rows) == job.part)
        for run in np.split(chosen, np.nonzero(np.diff(chosen) > 1)[0] + 1) if len(chosen) else []:
            begin = int(begins[run[0]]) + skip
            count = min(int(begins[run[-1]] + counts[run[-1]]) - begin, left)
            inside = begins[run] - begin
            yield inside[(inside >= 0) & (inside < count)], begin, count
            skip, left = 0, left - count
            if not left:
                return
