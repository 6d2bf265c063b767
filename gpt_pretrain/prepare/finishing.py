"""From pieces to the shards of a corpus: duplicates, parts, files; a shard that is whole is not written again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gpt_pretrain.config.command_schema import PrepareSettings
from gpt_pretrain.prepare.choosing import DocumentSplit, choose, find_duplicates
from gpt_pretrain.prepare.corpus_folder import OWN, WORK
from gpt_pretrain.prepare.pieces import sha256
from gpt_pretrain.prepare.pool import Workers
from gpt_pretrain.prepare.progress import Progress
from gpt_pretrain.prepare.shards import NAMES, PartPlan, ShardJob, plan_parts, write_shard
from gpt_pretrain.prepare.stage import Stage
from gpt_pretrain.prepare.stopping import Stop
from gpt_pretrain.system.files import sync_file

DONE = "shards.jsonl"  # the entries of the shards that are whole


def write_parts(
    tasks: Sequence[Path],
    settings: PrepareSettings,
    folder: Path,
    *,
    itemsize: int,
    workers: Workers,
    progress: Progress,
    stop: Stop,
) -> dict[str, Any]:
    """Write all shards of a corpus that are not there yet, and tell what the manifest says of them.

    Args:
        tasks: the folders of the pieces, in the order of the corpus.

    Raises:
        UserError: when no document is left for training.
        SystemExit: when a signal asked for that.
    """
    stage = Stage.of(tasks, itemsize=itemsize)
    duplicates, n_duplicates = find_duplicates(stage, folder / WORK) if settings.dedup == "exact" else (None, 0)
    choice = choose(stage, val_fraction=settings.val_fraction, val_tokens=settings.val_tokens, duplicates=duplicates)
    plans = plan_parts(stage, choice, shard_tokens=settings.shard_tokens)
    jobs = {job.name: job for job in _jobs(plans, choice, tuple(tasks), settings, folder, itemsize)}
    done = _done(folder, jobs)
    progress.writing(len(jobs), done=len(done))
    for job, entry in workers.map(write_shard, [job for name, job in jobs.items() if name not in done]):
        done[job.name] = entry
        with open(folder / WORK / DONE, "a", encoding="utf-8") as stream:
            stream.write(json.dumps(entry) + "\n")
            sync_file(stream)
        progress.written()
        stop.check()
    _remove_others(folder, set(jobs))
    parts = {
        NAMES[part]: _part(plan, [done[name] for name, job in jobs.items() if job.part == part]) for part, plan in plans.items()
    }
    return {"parts": parts, "duplicates": n_duplicates}


def _jobs(
    plans: dict[int, PartPlan],
    choice: DocumentSplit,
    tasks: tuple[Path, ...],
    settings: PrepareSettings,
    folder: Path,
    itemsize: int,
) -> list[ShardJob]:
    jobs = []
    for part, plan in plans.items():
        for number, start in enumerate(plan.starts):
            tokens = min(settings.shard_tokens, plan.tokens - number * settings.shard_tokens)
            name = f"{NAMES[part]}-{number:05d}"
            jobs.append(ShardJob(name, folder, part, start, tokens, tasks, choice, itemsize, settings.tokenizer))
    return jobs


def _done(folder: Path, jobs: dict[str, ShardJob]) -> dict[str, dict[str, Any]]:
    """The entries of shards that an interrupted process has written, and that are still what they were."""
    done: dict[str, dict[str, Any]] = {}
    try:
        lines = (folder / WORK / DONE).read_bytes().splitlines(keepends=True)
    except FileNotFoundError:
        return done
    for line in lines:
        if not line.endswith(b"\n"):  # the process was killed while it wrote this one
            continue
        entry = json.loads(line)
        name = Path(entry["file"]).stem
        files = {entry["file"]: entry["sha256"], entry["starts"]: entry["starts_sha256"]}
        if name in jobs and all((folder / file).is_file() and sha256(folder / file) == found for file, found in files.items()):
            done[name] = entry
    return done


def _remove_others(folder: Path, names: set[str]) -> None:
    """Remove shards that another corpus has left here, and files that were not finished."""
    for path in folder.iterdir():
        if OWN.fullmatch(path.name) and path.suffix != ".json" and path.suffix != ".jsonl" and path.stem not in names:
            path.unlink()


def _part(plan: PartPlan, shards: list[dict[str, Any]]) -> dict[str, Any]:
    """A part as the manifest has it."""
    found = {name: sum(shard[name] for shard in shards) for name in ("documents", "tokens", "bytes")}
    expected = {"documents": plan.documents, "tokens": plan.tokens, "bytes": plan.bytes}
    assert found == expected, f"the shards hold {found}, the documents {expected}"
    return {**expected, "shards": shards}
