"""Write the shards of a corpus: files of tokens, and files with the offsets of the documents."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gpt_pretrain.config.command_schema import PrepareSettings
from gpt_pretrain.data.shards.corpus import MAX_COUNT
from gpt_pretrain.errors import UserError
from gpt_pretrain.prepare.assigning import TRAIN, VAL, DocumentSplit, choose_split, find_duplicates
from gpt_pretrain.prepare.corpus_folder import START_OVER, WORK, remove_other_shards
from gpt_pretrain.prepare.encoded_corpus import EncodedCorpus
from gpt_pretrain.prepare.processes import Interrupt, WorkerPool
from gpt_pretrain.prepare.progress import PreparationProgress
from gpt_pretrain.prepare.segments import MAX_JOURNAL, sha256
from gpt_pretrain.prepare.tokenizing import cached_byte_lengths
from gpt_pretrain.system.files import open_for_append, replacing, sync_file
from gpt_pretrain.system.json_files import parse_json
from gpt_pretrain.system.reading import read_bytes

NAMES = {TRAIN: "train", VAL: "val"}
COPIED_TOKENS = 1 << 18  # Tokens to copy at a time; they fit into the processor's cache.
COUNTS = ("documents", "tokens", "bytes")
DAMAGED = "{} is damaged: {}. Start over with overwrite=true."
FINISHED = "shards.jsonl"  # Lists the manifest entries of the shards that have been written.


@dataclass(frozen=True)
class ShardStart:
    """The first token of a shard.

    Args:
        row: Number of the token's document.
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
    """A shard to write, with all that a worker needs for it.

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
    """Write all shards, except for those that an interrupted preparation has written.

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
        NAMES[assigned]: _manifest_part(plan, [finished[name] for name, job in jobs.items() if job.assigned == assigned], folder)
        for assigned, plan in plans.items()
    }
    return {"parts": parts, "duplicates": n_duplicates}


def plan_shards(corpus: EncodedCorpus, split: DocumentSplit, *, shard_tokens: int) -> dict[int, SetPlan]:
    """Compute the sizes of the training and the validation set, and the start of each shard.

    Raises:
        UserError: If the documents have more or fewer tokens than the corpus, because the folder is damaged.
    """
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
    if source != corpus.n_tokens:
        raise UserError(f"The documents to write have {source:,} tokens, but {corpus.n_tokens:,} are stored. {START_OVER}.")
    return plans


def write_shard(job: ShardJob) -> dict[str, Any]:
    """Write one shard and return its entry in the manifest."""
    corpus = EncodedCorpus.open(job.segment_folders, itemsize=job.itemsize)
    path = job.folder / f"{job.name}.bin"
    byte_lengths = cached_byte_lengths(job.tokenizer)
    counts_bytes = bool(byte_lengths.any())
    digest, size, document_starts, written = hashlib.sha256(), 0, [np.empty(0, "<u8")], 0
    # There are often more cores than shards, so tokens are hashed while the next ones are read and written.
    with replacing(path) as scratch, open(scratch, "wb") as stream, ThreadPoolExecutor(1) as thread:
        hashed = thread.submit(digest.update, b"")
        for part in _slices(corpus, job):
            document_starts.append((part.starts + written).astype("<u8"))
            size += part.bytes_of_whole if counts_bytes else 0
            for tokens in _read_runs(corpus, part.cut_begins, part.cut_ends):
                size += int(byte_lengths.take(tokens).sum(dtype=np.int64))
            for tokens in _read_runs(corpus, part.begins, part.ends):
                hashed.result()
                hashed = thread.submit(digest.update, tokens.data)
                stream.write(tokens.data)
                written += len(tokens)
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
    """A part of a shard: runs of documents that follow each other directly in the encoded corpus.

    Args:
        begins: Index of the first token of each run.
        ends: Index after the last token of each run.
        starts: The offsets of document starts in the slice.
        bytes_of_whole: Bytes of the documents that lie in the slice as a whole.
        cut_begins: For each document that lies in the slice only in part, the index of the part's first token.
        cut_ends: For each of these, the index after the part's last token.
    """

    begins: np.ndarray
    ends: np.ndarray
    starts: np.ndarray
    bytes_of_whole: int
    cut_begins: np.ndarray
    cut_ends: np.ndarray


def _slices(corpus: EncodedCorpus, job: ShardJob) -> Iterator[_Slice]:
    """Yield the slices of the encoded corpus that make up a shard, one for each block of rows."""
    left, source, skip = job.tokens, job.start.source, job.start.offset
    for first, rows in corpus.rows(job.start.row):
        all_ends = source + rows["tokens"].astype(np.int64).cumsum()
        source = int(all_ends[-1])
        (chosen,) = np.nonzero(job.split.assign(first, rows) == job.assigned)
        if not len(chosen):
            continue
        lengths = rows["tokens"][chosen].astype(np.int64)
        lengths[0] -= skip
        totals = lengths.cumsum()
        count = min(int(np.searchsorted(totals, left)) + 1, len(chosen))  # documents; the last one may be in part
        ends, lengths, beyond = all_ends[chosen][:count], lengths[:count], max(int(totals[count - 1]) - left, 0)
        begins, starts = ends - lengths, totals[:count] - lengths
        ends[-1] -= beyond
        is_whole = np.ones(count, bool)
        is_whole[0] &= skip == 0
        is_whole[-1] &= beyond == 0
        gaps = np.nonzero(begins[1:] != ends[:-1])[0] + 1
        yield _Slice(
            begins[np.r_[0, gaps]],
            ends[np.r_[gaps - 1, count - 1]],
            starts[1:] if skip else starts,
            int(rows["bytes"][chosen[:count]][is_whole].sum()),
            begins[~is_whole],
            ends[~is_whole],
        )
        skip, left = 0, left - int(totals[count - 1]) + beyond
        if not left:
            return


def _read_runs(corpus: EncodedCorpus, begins: np.ndarray, ends: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the tokens of runs in order, without the tokens between them, in arrays of at most COPIED_TOKENS tokens."""
    run, begin = 0, int(begins[0]) if len(begins) else 0
    while run < len(begins):
        end = min(begin + COPIED_TOKENS, int(ends[-1]))
        tokens = corpus.tokens(begin, end - begin)
        after = int(np.searchsorted(begins, end))  # the first run that begins after the tokens read so far
        firsts, lasts = np.maximum(begins[run:after], begin) - begin, np.minimum(ends[run:after], end) - begin
        parts = [tokens[first:last] for first, last in zip(firsts.tolist(), lasts.tolist(), strict=True)]
        yield parts[0] if len(parts) == 1 else np.concatenate(parts)
        if ends[after - 1] > end:
            run, begin = after - 1, end
        else:
            run, begin = after, int(begins[after]) if after < len(begins) else end


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
    """Return the manifest entries of the intact shards that an interrupted preparation has written."""
    finished: dict[str, tuple[dict[str, Any], dict[str, str]]] = {}
    try:
        lines = read_bytes(folder / WORK / FINISHED, max_bytes=MAX_JOURNAL).splitlines(keepends=True)
    except FileNotFoundError:
        return {}
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
        if not all(type(entry.get(count)) is int and 0 <= entry[count] < MAX_COUNT for count in COUNTS):
            continue
        if name in jobs:
            finished[name] = entry, hashes
    # Each shard is read once, however often it is listed.
    return {
        name: entry
        for name, (entry, hashes) in finished.items()
        if all((folder / file).is_file() and sha256(folder / file) == hashes[file] for file in hashes)
    }


def _append_finished(folder: Path, entry: dict[str, Any]) -> None:
    with open_for_append(folder / WORK / FINISHED) as stream:
        stream.write(json.dumps(entry).encode() + b"\n")
        sync_file(stream)


def _manifest_part(plan: SetPlan, shards: list[dict[str, Any]], folder: Path) -> dict[str, Any]:
    """Return the manifest's entry for the training or validation set.

    Raises:
        UserError: If the shards and their documents have different counts.
    """
    found = {name: sum(shard[name] for shard in shards) for name in COUNTS}
    expected = {"documents": plan.documents, "tokens": plan.tokens, "bytes": plan.bytes}
    if not found["bytes"]:  # The tokens do not show the size of their text, so divide it in proportion.
        ends = np.cumsum([shard["tokens"] for shard in shards])
        sizes = np.diff(np.rint(ends / max(plan.tokens, 1) * plan.bytes).astype(np.int64), prepend=0)
        shards = [{**shard, "bytes": int(size)} for shard, size in zip(shards, sizes, strict=True)]
        found["bytes"] = int(sizes.sum())
    if found != expected:
        raise UserError(DAMAGED.format(folder / WORK, f"its shards contain {found}, its documents {expected}"))
    return {**expected, "shards": shards}
