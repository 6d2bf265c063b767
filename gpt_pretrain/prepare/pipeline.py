"""Run a preparation: check the folder, encode the inputs into segments, write the shards, and write the manifest last."""

from __future__ import annotations

import errno
import math
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from gpt_pretrain.config.command_schema import PrepareSettings
from gpt_pretrain.data.shards.manifest import FORMAT, MANIFEST, VERSION
from gpt_pretrain.errors import UserError
from gpt_pretrain.prepare import corpus_folder
from gpt_pretrain.prepare.cluster import MAX_TASKS, EncodeTask, encode_on_cluster, group_files
from gpt_pretrain.prepare.corpus_folder import WORK, check_output_folder, folder_not_writable
from gpt_pretrain.prepare.encoding import (
    EncodingOptions,
    collect_rejected,
    describe_rejected,
    encode_inputs,
    failed_files,
    failed_files_error,
    is_without_library,
    rejection_error,
    start_without_library,
    too_many_rejected,
)
from gpt_pretrain.prepare.processes import Interrupt, WorkerPool, interruptible
from gpt_pretrain.prepare.progress import PreparationProgress
from gpt_pretrain.prepare.report import FAILED, print_failed_files, print_report, print_summary
from gpt_pretrain.prepare.resuming import check_old_rules_can_go_on, has_old_rules, start_or_resume
from gpt_pretrain.prepare.segments import REJECTED_FILE, RecordCounts, total_counts
from gpt_pretrain.prepare.shards import write_shards
from gpt_pretrain.prepare.tokenizing import cached_encoder, cached_tokenizer
from gpt_pretrain.system.environment import user_path
from gpt_pretrain.system.files import write_json, write_text
from gpt_pretrain.system.resources import cores
from gpt_pretrain.system.terminal import escape_line, print_escaped
from gpt_pretrain.texts.inputs import CorpusInputs, InputFile, find_inputs
from gpt_pretrain.tokenizers.base import fingerprint, token_itemsize
from gpt_pretrain.tokenizers.build import is_location_of_tokenizer
from gpt_pretrain.tokenizers.fast_encoding.fast_encoder import WORTHWHILE
from gpt_pretrain.tokenizers.saving import tokenizer_files
from gpt_pretrain.tokenizers.tiktoken_bpe import TiktokenTokenizer

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# The settings that a corpus depends on, besides the inputs and the tokenizer.
CONTENT_SETTINGS = ("text_field", "as_text", "document_separator", "shard_tokens", "val_fraction", "val_tokens", "dedup")
MAX_FAILED_OF_TASK = 100_000  # A cluster's task stops after this many files that cannot be read to their end.
TEXT_RULES = 2  # Increase it when the same text gets other tokens: an unfinished corpus must not mix both.


def prepare_corpus(settings: PrepareSettings) -> bool:
    """Prepare the corpus described by the settings, or resume its preparation, unless it is complete.

    Returns:
        Whether all files could be read to their end.

    Raises:
        UserError: If an input is missing, the folder contains a different corpus, or it cannot be written.
        SystemExit: If a signal has arrived.
    """
    folder = user_path(settings.out)
    _check_out(settings, folder)
    if not settings.inputs and settings.dataset is None:
        return _report_complete(folder)
    inputs = find_inputs(settings, out=folder)
    description = _describe(settings, inputs)
    manifest = None if settings.overwrite else corpus_folder.read_manifest(folder)
    if manifest is not None:
        corpus_folder.check_same(manifest, description, folder=folder, state="complete")
        corpus_folder.check_complete(folder, manifest)
        shutil.rmtree(folder / WORK, ignore_errors=True)
        print_failed_files(manifest)
        print_escaped(f"{folder}: the corpus is already {'prepared' if manifest.get(FAILED) else 'complete'}.")
        _warn_of_changed_inputs(inputs, folder)
    else:
        with _explain_disk_errors(folder), interruptible() as interrupt, corpus_folder.lock_corpus(folder):
            work = {"tasks": len(_group_inputs(settings, inputs)), "text_rules": TEXT_RULES}
            plan = start_or_resume(folder, description | {"source": inputs.stamps, "work": work}, overwrite=settings.overwrite)
            manifest, counts = _write_corpus(settings, inputs, plan, folder, interrupt)
            for name, content in tokenizer_files(cached_tokenizer(settings.tokenizer)).items():
                write_text(folder / name, content)
            write_json(folder / MANIFEST, manifest)
            shutil.rmtree(folder / WORK, ignore_errors=True)
        print_summary(manifest, counts, folder)
    if settings.report:
        print_report(manifest, folder)
    return not manifest.get(FAILED)


def _check_out(settings: PrepareSettings, folder: Path) -> None:
    """Check that the corpus folder is on this machine, is not a file or inside one, and is not an input.

    Raises:
        UserError: If a condition does not hold.
    """
    check_output_folder(folder, out=settings.out, content="the corpus")
    paths = [user_path(name) for name in settings.inputs]
    if any(path.is_dir() and folder.resolve() == path.resolve() for path in paths):
        raise UserError(f"out={settings.out} is also an input. Choose another folder for the corpus.")
    if is_location_of_tokenizer(settings.tokenizer):
        path = user_path(settings.tokenizer)
        if folder.resolve() in (path.resolve(), path.resolve().parent):
            raise UserError(f"out={settings.out} is the folder of the tokenizer. Choose another folder for the corpus.")


def _report_complete(folder: Path) -> bool:
    """Print the report of a complete corpus, and return whether all files could be read to their end.

    Raises:
        UserError: If there is no complete corpus.
    """
    if (manifest := corpus_folder.read_manifest(folder)) is None:
        raise UserError(f"{folder} contains no complete corpus to report on. To prepare one, name files or use dataset=NAME.")
    corpus_folder.check_complete(folder, manifest)
    print_failed_files(manifest)
    print_report(manifest, folder)
    return not manifest.get(FAILED)


def _warn_of_changed_inputs(inputs: CorpusInputs, folder: Path) -> None:
    """Print the names of the files that have changed since the corpus was completed.

    The time of the last status change decides: it changes only when a file is written or moved. A modification time may lie in
    the future.
    """
    completed = (folder / MANIFEST).stat().st_mtime_ns
    changed = [file.path for file in inputs.files if min(file.changed, _status_changed(file.path)) > completed]
    if changed:
        more = f" and {len(changed) - 1:,} more" * (len(changed) > 1)
        problem = f"{escape_line(changed[0])}{more} changed after the corpus was completed. overwrite=true prepares it again."
        print_escaped(problem, file=sys.stderr)


def _status_changed(path: str) -> float:
    """Return the time of the last status change of a file, in nanoseconds; infinity if the file is gone."""
    try:
        return os.stat(path).st_ctime_ns
    except OSError:
        return math.inf


def _write_corpus(
    settings: PrepareSettings, inputs: CorpusInputs, plan: dict[str, Any], folder: Path, interrupt: Interrupt
) -> tuple[dict[str, Any], RecordCounts]:
    """Write everything except the manifest. Return the content of the manifest, and the counts of all records.

    Args:
        plan: The plan of the preparation.
    """
    itemsize = token_itemsize(cached_tokenizer(settings.tokenizer).vocab_size)
    rejected_file = folder / REJECTED_FILE
    groups = _group_inputs(settings, inputs)
    task_folders = [folder / WORK / f"task-{number:05d}" for number in range(len(groups))]
    options = EncodingOptions(
        settings.tokenizer,
        itemsize,
        settings.text_field,
        settings.max_rejected,
        settings.max_failed_files,
        rejected_file,
        records_as_is=has_old_rules(plan),
        fast=inputs.size is None or inputs.size >= WORTHWHILE,
    )
    if options.records_as_is:
        check_old_rules_can_go_on(inputs, task_folders, folder)
    if options.fast:
        _report_slow_encoding(settings.tokenizer)
    if settings.executor is not None:
        _encode_in_tasks(settings, inputs, options, groups, task_folders, work=folder / WORK, interrupt=interrupt)
    pool = WorkerPool(settings.workers or cores(), settings.tokenizer, fast=options.fast and settings.executor is None)
    with pool as workers, PreparationProgress(inputs.size) as progress:
        if settings.executor is None:
            encode_inputs(inputs, options, task_folders[0], workers=workers, progress=progress, interrupt=interrupt)
        counts = total_counts(task_folders)
        failed = _judge_rejected(settings, counts, task_folders, rejected_file)
        shards = write_shards(
            task_folders, settings, folder, itemsize=itemsize, workers=workers, progress=progress, interrupt=interrupt
        )
    manifest = _manifest(plan, shards, counts, failed, source=inputs.source, itemsize=itemsize)
    return manifest, counts


def _manifest(
    plan: Mapping[str, Any],
    shards: Mapping[str, Any],
    counts: RecordCounts,
    failed: Sequence[dict[str, Any]],
    *,
    source: Any,
    itemsize: int,
) -> dict[str, Any]:
    """Return the content of the manifest of a corpus.

    Args:
        failed: The rejected records that stand for files that cannot be read to their end.
        source: The inputs, as `CorpusInputs` describes them.
        itemsize: Bytes of a token id.
    """
    return {
        "format": FORMAT,
        "version": VERSION,
        "tokenizer": plan["tokenizer"],
        "itemsize": itemsize,
        "parts": shards["parts"],
        "source": source,
        "options": plan["options"],
        "rejected": {"records": counts.rejected, "by_reason": dict(sorted(counts.by_reason.items()))},
        "duplicates": shards["duplicates"],
        **({FAILED: [describe_rejected(record) for record in failed]} if failed else {}),
    }


def _judge_rejected(
    settings: PrepareSettings, counts: RecordCounts, task_folders: list[Path], rejected_file: Path
) -> list[dict[str, Any]]:
    """Write the list of rejected records. Return the ones that stand for files that cannot be read to their end.

    Raises:
        UserError: If the settings allow fewer rejected records, or fewer such files.
    """
    collect_rejected(task_folders, rejected_file)
    failed = failed_files(rejected_file) if counts.failed_files else []
    if len(failed) > settings.max_failed_files:
        raise failed_files_error(failed)
    if too_many_rejected(counts, settings.max_rejected, at_end=True):
        raise rejection_error(counts, rejected_file, max_rejected=settings.max_rejected)
    return failed


def _encode_in_tasks(
    settings: PrepareSettings,
    inputs: CorpusInputs,
    options: EncodingOptions,
    groups: list[list[InputFile]],
    task_folders: list[Path],
    *,
    work: Path,
    interrupt: Interrupt,
) -> None:
    """Encode the groups of inputs with the executor. If one had to start again without the fast library, all do without it."""
    # Failed files are judged when all tasks have finished. Each task lists all of its failed files.
    unlimited = replace(options, max_rejected=1.0, max_failed_files=max(MAX_FAILED_OF_TASK, settings.max_failed_files))
    local = settings.executor == "local"
    task = EncodeTask(groups, inputs, unlimited, task_folders, 1 if local else settings.workers or 1, quiet=local)
    encode_on_cluster(settings, task, work, interrupt=interrupt)
    if differing := [other for other in task_folders if is_without_library(other)]:
        # The samples of another task may have missed the difference that one task found.
        for other in task_folders:
            if other not in differing:
                start_without_library(other)
        encode_on_cluster(settings, task, work, interrupt=interrupt)


def _report_slow_encoding(tokenizer: str) -> None:
    """Print the reason why the fast library is not used for a corpus that is large enough for it."""
    encoder = cached_encoder(tokenizer, use_library=True)
    if encoder.slow_because and isinstance(cached_tokenizer(tokenizer), TiktokenTokenizer):
        print_escaped(f"Encoding takes about ten times as long as with gigatoken: {encoder.slow_because}.", file=sys.stderr)


def _group_inputs(settings: PrepareSettings, inputs: CorpusInputs) -> list[list[InputFile]]:
    """Return the files of each task."""
    if settings.executor is None:
        return [inputs.files]
    return group_files(inputs.files, settings.tasks or MAX_TASKS)


def _describe(settings: PrepareSettings, inputs: CorpusInputs) -> dict[str, Any]:
    """Return everything that determines the content of a corpus, in the form of the manifest."""
    tokenizer = cached_tokenizer(settings.tokenizer)
    options = {name: getattr(settings, name) for name in CONTENT_SETTINGS}
    if not settings.as_text:
        del options["as_text"]  # Corpora of earlier versions lack this entry.
    if settings.val_tokens is not None:
        options["val_fraction"] = None
    about = {"name": tokenizer.name, "vocab_size": tokenizer.vocab_size, "sha256": fingerprint(tokenizer)}
    return {"tokenizer": about | {"end_of_text": tokenizer.eos_id}, "source": inputs.source, "options": options}


@contextmanager
def _explain_disk_errors(folder: Path) -> Iterator[None]:
    """Turn errors of the operating system into messages for the user.

    Raises:
        UserError: In place of an OSError.
    """
    try:
        yield
    except OSError as error:
        if error.errno in DISK_FULL:
            remedy = "Allow larger files (ulimit -f unlimited)" if error.errno == errno.EFBIG else "Free some space"
            raise UserError(
                f"{folder} cannot be written: {error.strerror}. {remedy} and run the same command again to resume."
            ) from error
        if error.filename is not None:
            if error.errno in (errno.EACCES, errno.EROFS) and Path(os.fsdecode(error.filename)).is_relative_to(folder):
                raise folder_not_writable(folder, error) from error
            raise UserError(f"{error.filename} cannot be read or written: {error.strerror}.") from error
        raise
