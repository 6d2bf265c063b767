"""One file under many names, and one place named many times: it is read or looked at a few times only."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from gpt_pretrain.checkpoints.checkpoint_file import first_readable, write_checkpoint
from gpt_pretrain.checkpoints.recognition import indexed_files
from gpt_pretrain.checkpoints.recognition.indexed_files import read_indexed
from gpt_pretrain.commands.command_line.stored_overrides import MAX_LOCATIONS, admit_overrides
from gpt_pretrain.errors import UserError
from gpt_pretrain.prepare.corpus_folder import check_complete
from gpt_pretrain.sweeps.results import search_by_bits
from gpt_pretrain.sweeps.runner import JobRunner
from gpt_pretrain.system import reading
from gpt_pretrain.system.reading import read_bytes
from gpt_pretrain.training.distributed import fsdp
from hydra_plugins.gpt_pretrain_sweepers import GridSweeper
from tests.helpers.hostile_files import hostile_sweep
from tests.helpers.resource_limits import allocating_at_most
from tests.helpers.shown_runs import made


def test_a_file_of_a_folder_with_very_many_names_is_read_a_few_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MAX_NAMES", 3)
    file = tmp_path / "0"
    file.write_bytes(b"x")
    names = [file, *(tmp_path / str(number) for number in range(1, 6))]
    for name in names[1:]:
        os.link(file, name)
    for name in [*names[:3], names[0]]:
        assert read_bytes(name, within=tmp_path) == b"x"
    with pytest.raises(OSError, match="it has very many names, of which 3 have been read"):
        read_bytes(names[3], within=tmp_path)
    assert read_bytes(names[3]) == b"x", "a file that is named by itself"
    for name in names[3:]:
        name.unlink()
    os.link(file, names[3])
    names[1].unlink()
    assert read_bytes(names[3], within=tmp_path) == b"x", "it has three names again"


def test_links_are_names_of_a_file_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MAX_NAMES", 3)
    (tmp_path / "0").write_bytes(b"x")
    for number in range(1, 6):
        (tmp_path / str(number)).symlink_to("0")
    (tmp_path / "folder").symlink_to(".")
    for name in ("0", "1", "2", "folder/0", "1", "0"):
        assert read_bytes(tmp_path / name, within=tmp_path) == b"x"
    with pytest.raises(OSError, match="it has very many names, of which 3 have been read"):
        read_bytes(tmp_path / "3", within=tmp_path)


@pytest.mark.parametrize("link", [os.link, os.symlink])
def test_an_index_does_not_list_one_file_under_many_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, link: Callable[[Path, Path], None]
) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"x")
    link(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}))
    monkeypatch.delattr(indexed_files, "read_tensors")
    with pytest.raises(UserError, match=r"lists one file under two names: a\.safetensors, b\.safetensors\."):
        read_indexed(index)


@pytest.mark.parametrize("repeat", ["listed", "linked"])
def test_a_corpus_does_not_list_one_shard_many_times(tmp_path: Path, repeat: str) -> None:
    for name in ("train-00000.bin", "train-00000.idx"):
        (tmp_path / name).write_bytes(bytes(8))
    names = [f"train-{number * (repeat == 'linked'):05d}" for number in range(30)]
    for name in names[1:] if repeat == "linked" else []:
        for ending in ("bin", "idx"):
            os.link(tmp_path / f"train-00000.{ending}", tmp_path / f"{name}.{ending}")
    shards = [{"file": f"{name}.bin", "starts": f"{name}.idx", "tokens": 4, "documents": 1} for name in names]
    for number, expected in (
        (20, nullcontext()),
        (30, pytest.raises(UserError, match="is listed more than 20 times")),
    ):
        part = {"shards": shards[:number], "tokens": 4 * number, "documents": number, "bytes": 1}
        with expected:
            check_complete(tmp_path, {"itemsize": 2, "parts": {"train": part}})


def test_a_link_is_no_complete_job(tmp_path: Path) -> None:
    made(tmp_path / "seed=1", run_json=json.dumps({"state": "finished", "overrides": []}))
    (tmp_path / "seed=2").symlink_to("seed=1")
    launched = list[Any]()
    runner = JobRunner(tmp_path, launch=lambda jobs, number: launched.append(jobs), common=[])
    with pytest.raises(UserError, match="seed=2 is a link"):
        runner.run([([], "seed=1"), ([], "seed=2")])
    assert runner.unfinished() == ["seed=2"] and not launched


def test_the_folder_of_a_sweep_is_listed_once_for_all_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    sweeper = GridSweeper()
    sweeper.script, sweeper.swept, sweeper.existing = "train", {"tokenizer"}, {"tokenizer.name=A"}
    monkeypatch.setattr(os, "listdir", None)
    assert [sweeper.folder_name([f"tokenizer.name={name}"]) for name in "Ab"] == ["tokenizer.name=A", "tokenizer=b"]


def test_only_some_places_of_a_stranger_s_sweep_are_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for count in (MAX_LOCATIONS, MAX_LOCATIONS + 1):
        sweep = hostile_sweep(tmp_path / "sweep", task=[f"data.path={','.join(['texts'] * count)}"])
        if count == MAX_LOCATIONS:
            assert len(admit_overrides(sweep, script="train", typed=set()).kept) == 1
    with pytest.raises(UserError, match=r"data\.path=texts,.* comes from"):
        admit_overrides(sweep, script="train", typed=set())


@pytest.mark.parametrize("link", [os.link, os.symlink])
def test_a_damaged_checkpoint_with_many_names_is_tried_once(tmp_path: Path, link: Callable[[Path, Path], None]) -> None:
    (tmp_path / "0").write_bytes(b"")
    for number in range(1, 5):
        link(tmp_path / "0", tmp_path / str(number))
    (tmp_path / "5").write_bytes(b"")
    tried = list[str]()

    def read(path: Path) -> str:
        tried.append(path.name)
        if path.name == "6":
            raise UserError("there is no such file")
        if path.name != "5":
            raise UserError("damaged")
        return path.name

    assert first_readable([tmp_path / str(number) for number in range(6)], read) == "5"
    assert tried == ["0", "5"]
    with pytest.raises(UserError, match="no such file"):
        first_readable([tmp_path / "6"], read)


def test_the_contents_of_damaged_checkpoints_are_not_kept(tmp_path: Path) -> None:
    def read(path: Path) -> str:
        content = bytearray(10_000_000)
        raise UserError(f"{path.name} is damaged: it begins with {content[0]}.")

    with allocating_at_most(megabytes=25), pytest.raises(UserError, match=r"0 is damaged.* No other checkpoint"):
        first_readable([tmp_path / str(number) for number in range(20)], read)


@pytest.mark.parametrize("link", [os.link, os.symlink])
def test_a_checkpoint_with_many_names_is_searched_once_for_its_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, link: Callable[[Path, Path], None]
) -> None:
    write_checkpoint({"state_dict": {}, "architecture": {}, "tokenizer": "byte"}, tmp_path / "last.ckpt")
    for number in range(5):
        link(tmp_path / "last.ckpt", tmp_path / f"step-{number}.ckpt")
    (tmp_path / "shards-1-aaaaaa").mkdir()
    asked, read = list[Path](), fsdp.read_checkpoint
    monkeypatch.setattr(fsdp, "read_checkpoint", lambda path, **options: asked.append(path) or read(path, **options))
    fsdp.remove_unused_shards(tmp_path)
    assert len(asked) == 1 and not (tmp_path / "shards-1-aaaaaa").exists()


def test_a_search_with_one_tokenizer_reads_no_jobs_to_compare_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpt_pretrain.sweeps.results.read_sweep", None)
    assert not search_by_bits(["optimizer.lr"], tmp_path)
