"""The course of a preparation: look what is there, encode the files in pieces, write the shards, and the manifest last."""

from __future__ import annotations

import errno
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from gpt_pretrain.config.command_schema import PrepareSettings
from gpt_pretrain.data.manifest import FORMAT, MANIFEST, VERSION
from gpt_pretrain.errors import UserError
from gpt_pretrain.prepare import corpus_folder
from gpt_pretrain.prepare.cluster import MOST_TASKS, EncodeTask, encode_on_cluster, grouped
from gpt_pretrain.prepare.corpus import CorpusInputs, find_corpus
from gpt_pretrain.prepare.corpus_folder import PLAN, REJECTED, WORK
from gpt_pretrain.prepare.encode_stage import Encoding, encode_all
from gpt_pretrain.prepare.encoding import tokenizer_of
from gpt_pretrain.prepare.finishing import write_parts
from gpt_pretrain.prepare.pieces import REJECTS, Counts, total_counts
from gpt_pretrain.prepare.pool import Workers
from gpt_pretrain.prepare.progress import Progress
from gpt_pretrain.prepare.rejects import collect, refusal, too_many
from gpt_pretrain.prepare.report import print_report
from gpt_pretrain.prepare.sources import InputFile
from gpt_pretrain.prepare.stopping import Stop, stoppable
from gpt_pretrain.prepare.summary import print_summary
from gpt_pretrain.system.files import write_json
from gpt_pretrain.system.resources import cores
from gpt_pretrain.tokenizers.base import fingerprint, token_itemsize

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
CONTENT = (
    "text_field",
    "document_separator",
    "shard_tokens",
    "val_fraction",
    "val_tokens",
    "dedup",
)  # what the corpus depends on


def prepare_corpus(settings: PrepareSettings) -> None:
    """Make the corpus that the settings name, or go on with it, unless it is there.

    Raises:
        UserError: when something is not there, differs from what was begun, or cannot be written.
        SystemExit: when a signal asked for that.
    """
    folder = Path(settings.out).expanduser()
    if folder.exists() and not folder.is_dir():
        raise UserError(f"out={settings.out}: this is a file. Choose a folder of its own for the corpus.")
    if any(
        Path(word).expanduser().is_dir() and folder.resolve() == Path(word).expanduser().resolve() for word in settings.inputs
    ):
        raise UserError(f"out={settings.out}: this folder is to be read. Choose another one for the corpus.")
    if not settings.inputs and settings.dataset is None:  # what is there is to be reported
        if (manifest := corpus_folder.read_manifest(folder)) is None:
            raise UserError(f"{folder}: there is no complete corpus to report on. To make one, name files, or dataset=NAME.")
        corpus_folder.check_complete(folder, manifest)
        print_report(manifest, folder)
        return
    corpus = find_corpus(settings, out=folder)
    wanted = _description(settings, corpus)
    manifest = None if settings.overwrite else corpus_folder.read_manifest(folder)
    if manifest is not None:
        corpus_folder.check_same(manifest, wanted, folder=folder, state="complete")
        corpus_folder.check_complete(folder, manifest)
        shutil.rmtree(folder / WORK, ignore_errors=True)
        print(f"{folder}: this corpus is complete already.")
        made = (folder / MANIFEST).stat().st_mtime_ns
        if newer := [one.path for one in corpus.files if one.changed > made]:
            more = f" and {len(newer) - 1:,} more" * (len(newer) > 1)
            print(f"{newer[0]}{more} changed after it was made: overwrite=true makes it anew.", file=sys.stderr)
        if settings.report:
            print_report(manifest, folder)
        return
    with _disk_told(folder), stoppable() as stop, corpus_folder.locked(folder / WORK):
        work = {"tasks": len(_groups(settings, corpus))}
        _begin(folder, wanted | {"source": corpus.stamps, "work": work}, overwrite=settings.overwrite)
        manifest, counts = _make(settings, corpus, wanted, folder, stop)
        write_json(folder / MANIFEST, manifest)
        shutil.rmtree(folder / WORK, ignore_errors=True)
    print_summary(manifest, counts, folder)
    if settings.report:
        print_report(manifest, folder)


def _make(
    settings: PrepareSettings, corpus: CorpusInputs, wanted: dict[str, Any], folder: Path, stop: Stop
) -> tuple[dict[str, Any], Counts]:
    """Write all but the manifest, and return that and what was counted on the way."""
    itemsize = token_itemsize(tokenizer_of(settings.tokenizer).vocab_size)
    rejected = folder / REJECTED
    encoding = Encoding(settings.tokenizer, itemsize, settings.text_field, settings.max_rejected, rejected)
    groups = _groups(settings, corpus)
    tasks = [folder / WORK / f"task-{number:05d}" for number in range(len(groups))]
    if settings.executor is not None:
        later = replace(encoding, max_rejected=1.0)  # judged when all tasks are done
        here = settings.executor == "local"
        task = EncodeTask(groups, corpus.reading, later, tasks, 1 if here else settings.workers or 1, quiet=here)
        encode_on_cluster(settings, task, folder / WORK, stop=stop)
    with Workers(settings.workers or cores(), settings.tokenizer) as workers, Progress(corpus.size) as progress:
        if settings.executor is None:
            encode_all(corpus.reader, encoding, tasks[0], workers=workers, progress=progress, stop=stop)
        counts = total_counts(tasks)
        collect([task / REJECTS for task in tasks], rejected)
        if too_many(counts, settings.max_rejected, at_end=True):
            raise refusal(counts, rejected, max_rejected=settings.max_rejected)
        parts = write_parts(tasks, settings, folder, itemsize=itemsize, workers=workers, progress=progress, stop=stop)
    by_reason = dict(sorted(counts.by_reason.items()))
    return {
        "format": FORMAT,
        "version": VERSION,
        "tokenizer": wanted["tokenizer"],
        "itemsize": itemsize,
        "parts": parts["parts"],
        "source": wanted["source"],
        "options": wanted["options"],
        "rejected": {"records": counts.rejected, "by_reason": by_reason},
        "duplicates": parts["duplicates"],
    }, counts


def _groups(settings: PrepareSettings, corpus: CorpusInputs) -> list[list[InputFile]]:
    """The files of each task."""
    if settings.executor is None:
        return [corpus.files]
    return grouped(corpus.files, settings.tasks or MOST_TASKS)


def _description(settings: PrepareSettings, corpus: CorpusInputs) -> dict[str, Any]:
    """What a corpus depends on, as its manifest has it."""
    tokenizer = tokenizer_of(settings.tokenizer)
    options = {name: getattr(settings, name) for name in CONTENT}
    if settings.val_tokens is not None:
        options["val_fraction"] = None
    about = {"name": tokenizer.name, "vocab_size": tokenizer.vocab_size, "sha256": fingerprint(tokenizer)}
    return {"tokenizer": about | {"end_of_text": tokenizer.eos_id}, "source": corpus.source, "options": options}


def _begin(folder: Path, wanted: dict[str, Any], *, overwrite: bool) -> None:
    """Note what is being made; or make sure that it is the same that was begun.

    Args:
        overwrite: remove what is there, unless that was done already and this is the same command once more.

    Raises:
        UserError: when the folder holds something else.
    """
    plan, noted = corpus_folder.read_plan(folder), wanted | {"overwrite": overwrite}
    if overwrite and plan != noted:
        corpus_folder.clear(folder)
        plan = None
    elif plan is not None and plan | {"overwrite": None} != noted | {"overwrite": None} and not _anything_encoded(folder):
        corpus_folder.clear(folder)  # nothing of worth, such as records without the field that was named
        plan = None
    if plan is None:
        corpus_folder.check_own(folder)
        write_json(folder / WORK / PLAN, noted)
        return
    corpus_folder.check_same(plan, wanted, folder=folder, state="begun")
    print(f"{folder}: going on with what was begun.", file=sys.stderr)


def _anything_encoded(folder: Path) -> bool:
    """Whether what was begun in a folder has any tokens so far."""
    return total_counts(sorted((folder / WORK).glob("task-*"))).tokens > 0


@contextmanager
def _disk_told(folder: Path) -> Iterator[None]:
    """Tell what the disk refuses in plain words.

    Raises:
        UserError: instead of the error.
    """
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise UserError(
                f"{folder} cannot be written: {error.strerror}. Make room and start the same command again; "
                "it goes on where it was."
            ) from error
        if error.filename is not None:
            raise UserError(f"{error.filename} cannot be read or written: {error.strerror}.") from error
        raise
