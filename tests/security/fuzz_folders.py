"""More readers for the fuzzer: of a corpus that is reported on, of a ladder, and of records that a preparation has left out."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path

from gpt_pretrain.model.costs import num_parameters
from gpt_pretrain.prepare import corpus_folder
from gpt_pretrain.prepare.encoding import collect_rejected, failed_files, failed_files_error, first_rejected
from gpt_pretrain.prepare.report import print_failed_files, print_report
from gpt_pretrain.runs.charts.drawing import to_svg
from gpt_pretrain.sweeps.ladder import LadderChoice, Prediction, Rung
from gpt_pretrain.sweeps.ladder_chart import ladder_figure, measured_bits
from gpt_pretrain.sweeps.ladder_file import StoredLadder, read_ladder
from tests.security.fuzzed_reader import BLIND, COMPAT, JSON, TEXT, FuzzedReader


def _make_corpus(folder: Path) -> None:
    shutil.copytree(COMPAT / "corpus", folder, dirs_exist_ok=True)


def _report_corpus(folder: Path) -> None:
    manifest = corpus_folder.read_manifest(folder)
    assert manifest is not None
    corpus_folder.check_complete(folder, manifest)
    print_failed_files(manifest)
    print_report(manifest, folder)


def _make_ladder(folder: Path) -> None:
    rungs = [Rung(width, 2, 1024, 1.0, 60.0) for width in (64, 128, 192)]
    predictions = [Prediction(num_parameters(rung.config), 2.0, 1.9, 2.1) for rung in rungs]
    best = Rung(128, 2, 1024, 1.2, 500.0)
    StoredLadder(1000.0, rungs, 3.0, LadderChoice(best, predictions, predictions, False)).save(folder)


def _read_ladder(folder: Path) -> None:
    ladder = read_ladder(folder)
    assert ladder is not None
    to_svg(ladder_figure(ladder, measured_bits(ladder, {rung.name: {"best_bits_per_byte": 2.0} for rung in ladder.rungs})))
    json.dumps(asdict(ladder))


def _make_rejected(folder: Path) -> None:
    records = [
        {"file": "a.jsonl", "record": 3, "reason": "field missing", "detail": "an object with a"},
        {"file": "b.gz", "record": 9, "reason": "damaged archive", "detail": "it ends too early"},
    ]
    (folder / "task").mkdir()
    (folder / "task" / "rejected.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in records))


def _read_rejected(folder: Path) -> None:
    collect_rejected([folder / "task"], folder / "rejected.jsonl")
    first_rejected(folder / "rejected.jsonl")
    failed_files_error(failed_files(folder / "rejected.jsonl"))


FOLDER_READERS = {
    "corpus": FuzzedReader(
        _make_corpus,
        {"manifest.json": (JSON, JSON, BLIND), "train-00000.idx": (BLIND,), "train-00000.bin": (BLIND,)},
        _report_corpus,
    ),
    "ladder": FuzzedReader(_make_ladder, {"ladder.json": (JSON, JSON, BLIND)}, _read_ladder),
    "rejected": FuzzedReader(_make_rejected, {"task/rejected.jsonl": (JSON, BLIND, TEXT)}, _read_rejected),
}
