"""Write the shards of a corpus: files of tokens, and files with the offsets where documents start."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gpt_pretrain.config.command_schema import PrepareSettings
from gpt_pretrain.prepare.assigning import TRAIN, VAL, DocumentSplit, choose_split, find_duplicates
from gpt_pretrain.prepare.corpus_folder import WORK, remove_other_shards
from gpt_pretrain.prepare.processes import Interrupt, WorkerPool
from gpt_pretrain.prepare.progress import PreparationProgress
from gpt_pretrain.prepare.segments import MAX_JOURNAL, EncodedCorpus, sha256
from gpt_pretrain.prepare.tokenizing import cached_byte_lengths
from gpt_pretrain.system.files import open_for_append, replacing, sync_file
from gpt_pretrain.system.reading import parse_json, read_bytes

NAMES = {TRAIN: "train", VAL: "val"}
COPIED_TOKENS = 1 << 18  # Tokens copied at a time; so few stay in the processor's cache.
FINISHED = "shards.jsonl"  # Lists the manifest entries of the shards that have been written.


@dataclass(frozen=True)
class ShardStart:
    """The first token of a shard.

    Args:
        row: Number of the document that the token belongs to.
        offset: Index of the token in the document.
        source: Index of the document's first token in the encoded corpus.
    """

    row: int
    offset: int
    source: int


@dataclass
class SetPlan:
    """The size of the training or validation set, and the start of each of its shards."""

    documents: int = 0
    tokens: int = 0
    bytes: int = 0
    starts: list[ShardStart] = field(default_factory=list)


@dataclass(frozen=True)
class ShardJob:
    """A shard to write, with everything that a worker needs for it.

    Args:
        name: Name of the files, without suffix.
        folder: The corpus folder.
        assigned: TRAIN or VAL.
        tokens: Number of tokens in the shard.
        segment_folders: The folders of the segments, in the order of the inputs.
    """

    name: str
    folder: Path
    assigned: int
    start: ShardStart
    tokens: int
    segment_folders: tuple[Path, ...]
    split: DocumentSplit
    itemsize: int
    tokenizer: str


def write_shards(
    segment_folders: Sequence[Path],
    settings: PrepareSettings,
    folder: Path,
    *,
    itemsize: int,
    workers: WorkerPool,
    progress: PreparationProgress,
    interrupt: Interrupt,
) -> dict[str, Any]:
    """Write all shards that an interrupted preparation has not written.

    Args:
        segment_folders: The folders of the segments, in the order of the inputs.

    Returns:
        The manifest's entries `parts` and `duplicates`.

    Raises:
        UserError: If no document is left for training.
        SystemExit: If a signal has arrived.
    """
    corpus = EncodedCorpus.open(segment_folders, itemsize=itemsize)
    duplicates, n_duplicates = find_duplicates(corpus, folder / WORK) if settings.dedup == "exact" else (None, 0)
    split = choose_split(corpus, val_fraction=settings.val_fraction, val_tokens=settings.val_tokens, duplicates=duplicates)
    plans = plan_shards(corpus, split, shard_tokens=settings.shard_tokens)
    jobs = {job.name: job for job in _shard_jobs(plans, split, tuple(segment_folders), settings, folder, itemsize)}
    finished = _finished_shards(folder, jobs)
    progress.start_writing(len(jobs), done=len(finished))
    for job, entry in workers.map(write_shard, [job for name, job in jobs.items() if name not in finished]):
        finished[job.name] = entry
        _append_finished(folder, entry)
        progress.advance_writing()
        interrupt.exit_if_requested()
    remove_other_shards(folder, set(jobs))
    parts = {
        NAMES[assigned]: _manifest_part(plan, [finished[name] for name, job in jobs.items() if job.assigned == assigned])
        for assigned, plan in plans.items()
    }
    return {"parts": parts, "duplicates": n_duplicates}


def plan_shards(corpus: EncodedCorpus, split: DocumentSplit, *, shard_tokens: int) -> dict[int, SetPlan]:
    """Compute the sizes of the training and the validation set, and where each shard starts."""
    plans = {assigned: SetPlan() for assigned in NAMES}
    source = 0
    for first, rows in corpus.rows():
        ends = source + rows["tokens"].cumsum()
        assignment = split.assign(first, rows)
        for assigned, plan in plans.items():
            (chosen,) = np.nonzero(assignment == assigned)
            set_ends = plan.tokens + rows["tokens"][chosen].cumsum()
            total = int(set_ends[-1]) if len(chosen) else plan.tokens
            for shard_start in range(len(plan.starts) * shard_tokens, total, shard_tokens):
                index = int(np.searchsorted(set_ends, shard_start, side="right"))
                number = int(chosen[index])
                length = int(rows["tokens"][number])
                offset = shard_start - (int(set_ends[index]) - length)
                plan.starts.append(ShardStart(first + number, offset, int(ends[number]) - length))
            plan.documents += len(chosen)
            plan.bytes += int(rows["bytes"][chosen].sum())
            plan.tokens = total
        source = int(ends[-1])
    return plans


def write_shard(job: ShardJob) -> dict[str, Any]:
    """Write one shard and return its entry in the manifest."""
    corpus = EncodedCorpus.open(job.segment_folders, itemsize=job.itemsize)
    path = job.folder / f"{job.name}.bin"
    byte_lengths = cached_byte_lengths(job.tokenizer)
    counts_bytes = bool(byte_lengths.any())
    digest, size, document_starts, written = hashlib.sha256(), 0, [np.empty(0, "<u8")], 0
    with replacing(path) as scratch, open(scratch, "wb", buffering=1 << 20) as stream:
        for part in _slices(corpus, job):
            document_starts.append((part.starts + written).astype("<u8"))
            size += part.bytes_of_whole if counts_bytes else 0
            for first, end in part.cut:
                for index in range(first, end, COPIED_TOKENS):
                    tokens = corpus.tokens(index, min(COPIED_TOKENS, end - index))
                    size += int(byte_lengths.take(tokens).sum(dtype=np.int64))
            end = part.source + part.tokens
            for index in range(part.source, end, COPIED_TOKENS):
                tokens = corpus.tokens(index, min(COPIED_TOKENS, end - index))
                digest.update(tokens.data)
                stream.write(tokens.data)
            written += part.tokens
    all_starts = np.concatenate(document_starts)
    starts_path = path.with_suffix(".idx")
    with replacing(starts_path) as scratch:
        scratch.write_bytes(all_starts.tobytes())
    return {
        "file": path.name,
        "tokens": written,
        "documents": len(all_starts),
        "bytes": size,
        "sha256": digest.hexdigest(),
        "starts": starts_path.name,
        "starts_sha256": hashlib.sha256(all_starts.tobytes()).hexdigest(),
    }


@dataclass(frozen=True)
class _Slice:
    """A slice of the encoded corpus.

    Args:
        starts: The offsets in the slice where documents start.
        source: Index of its first token.
        tokens: Number of its tokens.
        bytes_of_whole: Bytes of the documents that it contains as a whole.
        cut: For each document that only a part belongs to, the indices of the first token of this part and of the one after it.
    """

    starts: np.ndarray
    source: int
    tokens: int
    bytes_of_whole: int
    cut: list[tuple[int, int]]


def _slices(corpus: EncodedCorpus, job: ShardJob) -> Iterator[_Slice]:
    """Yield the slices of the encoded corpus that make up a shard."""
    left, source, skip = job.tokens, job.start.source, job.start.offset
    for first, rows in corpus.rows(job.start.row):
        lengths = rows["tokens"].astype(np.int64)
        begins = source + lengths.cumsum() - lengths
        source += int(lengths.sum())
        (chosen,) = np.nonzero(job.split.assign(first, rows) == job.assigned)
        # Documents that follow each other directly are copied together.
        for run in np.split(chosen, np.nonzero(np.diff(chosen) > 1)[0] + 1) if len(chosen) else []:
            begin = int(begins[run[0]]) + skip
            count = min(int(begins[run[-1]] + lengths[run[-1]]) - begin, left)
            offsets = begins[run] - begin
            ends = offsets + lengths[run]
            is_whole = (offsets >= 0) & (ends <= count)
            parts = [(max(first, 0), min(end, count)) for first, end in zip(offsets[~is_whole], ends[~is_whole], strict=True)]
            yield _Slice(
                offsets[(offsets >= 0) & (offsets < count)],
                begin,
                count,
                int(rows["bytes"][run][is_whole].sum()),
                [(begin + int(first), begin + int(end)) for first, end in parts if end > first],
            )
            skip, left = 0, left - count
            if not left:
                return


def _shard_jobs(
    plans: dict[int, SetPlan],
    split: DocumentSplit,
    segment_folders: tuple[Path, ...],
    settings: PrepareSettings,
    folder: Path,
    itemsize: int,
) -> list[ShardJob]:
    jobs = []
    for assigned, plan in plans.items():
        for number, start in enumerate(plan.starts):
            tokens = min(settings.shard_tokens, plan.tokens - number * settings.shard_tokens)
            name = f"{NAMES[assigned]}-{number:05d}"
            jobs.append(ShardJob(name, folder, assigned, start, tokens, segment_folders, split, itemsize, settings.tokenizer))
    return jobs


def _finished_shards(folder: Path, jobs: dict[str, ShardJob]) -> dict[str, dict[str, Any]]:
    """Return the manifest entries of the shards that an interrupted preparation has written and that are still intact."""
    finished: dict[str, dict[str, Any]] = {}
    try:
        lines = read_bytes(folder / WORK / FINISHED, max_bytes=MAX_JOURNAL).splitlines(keepends=True)
    except FileNotFoundError:
        return finished
    for line in lines:
        if not line.endswith(b"\n"):  # The process was killed while it wrote this line.
            continue
        try:
            entry = parse_json(line)
            name = Path(entry["file"]).stem
            hashes = {entry["file"]: entry["sha256"], entry["starts"]: entry["starts_sha256"]}
        except (ValueError, KeyError, TypeError, AttributeError):
            continue  # The shard is written again.
        if entry["file"] != f"{name}.bin" or entry["starts"] != f"{name}.idx":
            continue
        if name in jobs and all((folder / file).is_file() and sha256(folder / file) == value for file, value in hashes.items()):
            finished[name] = entry
    return finished


def _append_finished(folder: Path, entry: dict[str, Any]) -> None:
    with open_for_append(folder / WORK / FINISHED) as stream:
        stream.write(json.dumps(entry).encode() + b"\n")
        sync_file(stream)


def _manifest_part(plan: SetPlan, shards: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the manifest's entry for the training or validation set."""
    found = {name: sum(shard[name] for shard in shards) for name in ("documents", "tokens", "bytes")}
    expected = {"documents": plan.documents, "tokens": plan.tokens, "bytes": plan.bytes}
    if not found["bytes"]:  # the tokens do not tell the size of their text, so it is divided in proportion to them
        ends = np.cumsum([shard["tokens"] for shard in shards])
        sizes = np.diff(np.rint(ends / max(plan.tokens, 1) * plan.bytes).astype(np.int64), prepend=0)
        shards = [{**shard, "bytes": int(size)} for shard, size in zip(shards, sizes, strict=True)]
        found["bytes"] = int(sizes.sum())
    assert found == expected, f"the shards contain {found}, the documents {expected}"
    return {**expected, "shards": shards}
