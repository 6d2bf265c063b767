"""Settings that a checkpoint brings: which are taken, which are asked for again, and which never come from a file."""

from __future__ import annotations

import dataclasses
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import pytest
import torch
import yaml

from gpt_pretrain.config.checkpoint_settings import has_signed_settings, read_data_settings, read_stored_settings
from gpt_pretrain.config.inference_schema import GenerateSettings
from gpt_pretrain.config.schema import TrainSettings
from gpt_pretrain.config.stored_locations import stays_inside
from gpt_pretrain.config.stored_settings import (
    ASKED,
    BOUNDED,
    BOUNDS,
    GENERATE_KINDS,
    LOCAL,
    NAMED,
    NEVER,
    SWEEP_KINDS,
    TAKEN,
    TRAIN_KINDS,
    override_kind,
)
from gpt_pretrain.errors import UserError
from gpt_pretrain.training.distributed import requeue
from tests.helpers.hostile_files import SMALL, hostile_run

Script = Callable[..., "subprocess.CompletedProcess[str]"]


Change = Callable[[dict[str, Any]], object]


def test_every_setting_is_in_the_table() -> None:
    assert set(leaf_settings(TrainSettings)) == set(TRAIN_KINDS)
    assert set(leaf_settings(GenerateSettings)) == set(GENERATE_KINDS)
    for kinds in (TRAIN_KINDS, GENERATE_KINDS, SWEEP_KINDS):
        assert set(kinds.values()) <= {TAKEN, BOUNDED, ASKED, LOCAL, NAMED, NEVER}
        assert {key for key, kind in kinds.items() if kind == BOUNDED} <= set(BOUNDS)
    assert override_kind("a.new.setting", 1, script="train") == NEVER


def leaf_settings(schema: type, prefix: str = "") -> Iterator[str]:
    """Yield the names of all settings in nested dataclasses."""
    for name, hint in get_type_hints(schema).items():
        groups = [kind for kind in (hint, *get_args(hint)) if dataclasses.is_dataclass(kind)]
        if groups and get_origin(hint) is not list:
            yield from leaf_settings(groups[0], f"{prefix}{name}.")  # type: ignore[arg-type]
        else:
            yield f"{prefix}{name}"


def with_data(**fields: Any) -> Change:
    """Return a change of the `data` settings in a checkpoint."""
    return lambda content: content["config"]["data"].update(fields)


def test_a_run_without_a_signature_is_resumed(script: Script, finished_run: Path, tmp_path: Path) -> None:
    run = hostile_run(finished_run, tmp_path / "run")
    done = script("train.py", f"resume={run}")
    assert done.returncode == 0, done.stderr


PLACES = {
    "data.path=http://127.0.0.1:1/corpus": with_data(name="shards", path="http://127.0.0.1:1/corpus"),
    "data.path=/etc/hostname": with_data(path="/etc/hostname"),
    "'data.path=~/secret.txt'": with_data(path="~/secret.txt"),
    "data.path=../secret.txt": with_data(path="../secret.txt"),
    "data.path=.ssh/id_rsa": with_data(path=".ssh/id_rsa"),
    "data.path=link.txt": with_data(path="link.txt"),
    "data.path=folder": with_data(path="folder"),
    "'data.url=https://***@127.0.0.1:1/t.txt'": with_data(url="https://user:secret@127.0.0.1:1/t.txt"),
    "'data.sources=[{path: ": with_data(
        name="mixture", sources=[{"path": "text.txt", "weight": 1.0}, {"path": "/x", "weight": 1.0}]
    ),
    "logger=wandb logger.wandb.project=theirs": lambda content: content["config"]["logger"].update(
        wandb={"project": "theirs", "name": None, "offline": False}
    ),
    "logger=mlflow logger.mlflow.experiment_name=x logger.mlflow.tracking_uri=http://127.0.0.1:1": lambda content: content[
        "config"
    ]["logger"].update(mlflow={"experiment_name": "x", "tracking_uri": "http://127.0.0.1:1"}),
}


@pytest.mark.parametrize("words", PLACES)
def test_a_place_in_a_checkpoint_is_asked_for(script: Script, finished_run: Path, tmp_path: Path, words: str) -> None:
    outside = tmp_path / "outside.txt"
    outside.write_text("Nobody else's business. " * 40)
    (tmp_path / "here" / "folder").mkdir(parents=True)
    for link in ("link.txt", "folder/a.txt"):
        (tmp_path / "here" / link).symlink_to(outside)
    run = hostile_run(finished_run, tmp_path / "here" / "run", PLACES[words])
    done = script("train.py", f"resume={run}", "plan=true", cwd=tmp_path / "here")
    assert done.returncode == 2
    assert f"To use {'them' if 'mlflow' in words else 'it'}, add: {words}" in done.stderr
    assert "not signed with your key" in done.stderr
    assert "secret@" not in done.stderr and "Traceback" not in done.stderr


def test_all_places_are_reported_together_and_used_when_typed(
    script: Script, finished_run: Path, tmp_path: Path, story: str
) -> None:
    (tmp_path / "text.txt").write_text(story)
    change = with_data(path=str(tmp_path / "text.txt"), url="http://127.0.0.1:1/x")
    run = hostile_run(finished_run, tmp_path / "run", change)
    refused = script("train.py", f"resume={run}")
    assert refused.returncode == 2
    assert f"To use them, add: data.path={tmp_path / 'text.txt'} data.url=http://127.0.0.1:1/x" in refused.stderr
    assert refused.stderr.count("not signed with your key") == 1
    done = script("train.py", f"resume={run}", f"data.path={tmp_path / 'text.txt'}", "data.url=null", "resume_force=true")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", ["text.txt", "{run}/text.txt", "texts/*.txt"])
def test_a_text_beside_the_run_is_taken(script: Script, finished_run: Path, tmp_path: Path, story: str, path: str) -> None:
    run = hostile_run(finished_run, tmp_path / "run", with_data(path=path.format(run=tmp_path / "run")))
    (tmp_path / "texts").mkdir()
    for file in (tmp_path / "text.txt", run / "text.txt", tmp_path / "texts" / "a.txt"):
        file.write_text(story)
    done = script("train.py", f"resume={run}", "resume_force=true")
    assert done.returncode == 0, done.stderr
    stored = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["config"]["data"]["path"]
    assert stored == os.path.abspath(tmp_path / path.format(run=run)), "it is signed, and must not mean another file elsewhere"


def test_a_cache_folder_in_a_checkpoint_is_not_used(script: Script, finished_run: Path, tmp_path: Path) -> None:
    change = with_data(cache_dir=str(tmp_path / "cache"), remote={"cache_bytes": 1_000_000})
    run = hostile_run(finished_run, tmp_path / "run", change)
    done = script("train.py", f"resume={run}")
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "cache").exists()
    assert f"data.cache_dir={tmp_path / 'cache'}" in done.stdout
    stored = yaml.safe_load((run / "config.yaml").read_text())["data"]
    assert (stored["cache_dir"], stored["remote"]["cache_bytes"]) == (None, 50_000_000_000)


def test_the_user_s_own_run_keeps_its_places(script: Script, tmp_path: Path, story: str) -> None:
    text, cache = tmp_path / "elsewhere" / "text.txt", tmp_path / "elsewhere" / "cache"
    text.parent.mkdir()
    text.write_text(story)
    (tmp_path / "here").mkdir()
    places = [f"data.path={text}", f"data.cache_dir={cache}", "data.remote.threads=100", "hydra.run.dir=run"]
    done = script("train.py", *SMALL, *places, cwd=tmp_path / "here")
    assert done.returncode == 0, done.stderr
    resumed = script("train.py", "resume=run", "trainer.max_steps=6", cwd=tmp_path / "here")
    assert resumed.returncode == 0, resumed.stderr
    assert "signature" not in resumed.stderr + resumed.stdout
    stored = yaml.safe_load((tmp_path / "here" / "run" / "config.yaml").read_text())["data"]
    assert (stored["path"], stored["cache_dir"], stored["remote"]["threads"]) == (str(text), str(cache), 100)


def test_a_signature_covers_the_places(script: Script, finished_run: Path, tmp_path: Path) -> None:
    signed: list[str] = []
    hostile_run(finished_run, tmp_path / "run", signed_by(finished_run, signed))
    assert signed, "the program signs its checkpoints"
    run = hostile_run(
        finished_run, tmp_path / "run", lambda content: (signed_by(finished_run, signed)(content), with_data(path="/x")(content))
    )
    done = script("train.py", f"resume={run}")
    assert (done.returncode, "To use it, add: data.path=/x" in done.stderr) == (2, True)


def signed_by(base: Path, found: list[str]) -> Change:
    """Return a change that puts back the signature of the run that a hostile one is copied from."""

    def change(content: dict[str, Any]) -> None:
        content["settings_signature"] = torch.load(base / "checkpoints" / "last.ckpt", weights_only=True)["settings_signature"]
        found.append(content["settings_signature"])

    return change


def test_the_options_of_a_file_system_are_dropped_and_named(script: Script, finished_run: Path, tmp_path: Path) -> None:
    run = hostile_run(finished_run, tmp_path / "run", with_data(remote={"options": {"anon": True, "key": "hunter2"}}))
    done = script("train.py", f"resume={run}")
    assert done.returncode == 0, done.stderr
    assert "data.remote.options are never restored" in done.stdout + done.stderr
    assert "anon, key" in done.stdout + done.stderr
    assert "hunter2" not in done.stdout + done.stderr
    assert yaml.safe_load((run / "config.yaml").read_text())["data"]["remote"]["options"] == {}


def test_stored_numbers_of_workers_are_bounded(script: Script, finished_run: Path, tmp_path: Path) -> None:
    remote = {"threads": 10**6, "prefetch_batches": 10**9, "retries": 10**6, "timeout": 1e9}
    run = hostile_run(finished_run, tmp_path / "run", with_data(num_workers=5000, remote=remote))
    done = script("train.py", f"resume={run}")
    assert done.returncode == 0, done.stderr
    stored = yaml.safe_load((run / "config.yaml").read_text())["data"]
    assert stored["num_workers"] <= 256
    assert stored["remote"] | {"cache_bytes": 0, "options": 0} == {
        **{"threads": 64, "prefetch_batches": 64, "retries": 10, "timeout": 300.0, "cache_bytes": 0, "options": 0}
    }


def test_stored_amounts_are_bounded(script: Script, finished_run: Path, tmp_path: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        config = content["config"]
        config["eval_iter"], config["checkpoint"]["keep"], config["sampler"]["max_new_tokens"] = 10**9, 10**9, 10**9
        grid = {"prompts": ["a"] * 50, "temperatures": [0.1, 1.0], "top_ks": [1] * 50}
        config["callbacks"] |= {"grid": grid, "samples": False}
        config["callbacks"]["doctor"] |= {"window": 2**63 - 1, "patience": 2**63 - 1}

    run = hostile_run(finished_run, tmp_path / "run", change)
    done = script("train.py", f"resume={run}", "eval_iter=1", "plan=true")
    assert done.returncode == 0, done.stderr
    said = done.stdout + done.stderr
    assert "sampler.max_new_tokens=1000000000 comes from" in said and "This run uses 10000." in said
    assert "This run uses the first 10 of them." in said
    done = script("train.py", f"resume={run}", "eval_iter=1", "sampler.max_new_tokens=2")
    assert done.returncode == 0, done.stderr
    stored = yaml.safe_load((run / "config.yaml").read_text())
    grid = stored["callbacks"]["grid"]
    assert [len(grid[name]) for name in ("prompts", "temperatures", "top_ks")] == [10, 2, 10]
    assert (stored["eval_iter"], stored["sampler"]["max_new_tokens"], stored["checkpoint"]["keep"]) == (1, 2, 0)
    assert stored["callbacks"]["doctor"]["window"] == 10_000


@pytest.mark.parametrize("devices", ["20000", "-3", "[1]", "'${oc.env:HOME}'", "1" * 5000])
def test_stored_numbers_of_processes_are_bounded(script: Script, finished_run: Path, tmp_path: Path, devices: str) -> None:
    run = hostile_run(finished_run, tmp_path / "run")
    config = (run / "config.yaml").read_text()
    assert "devices: 1\n" in config
    (run / "config.yaml").write_text(config.replace("devices: 1\n", f"devices: {devices}\n"))
    done = script("train.py", f"resume={run}")
    assert done.returncode == 2
    assert "trainer.devices=" in done.stderr and "Traceback" not in done.stderr
    assert script("train.py", f"resume={run}", "trainer.devices=1").returncode == 0


def test_typed_numbers_of_processes_make_sense(script: Script) -> None:
    done = script("train.py", *SMALL, "trainer.devices=999")
    assert done.returncode == 2
    assert "trainer.devices=999: a training on this machine may have at most" in done.stderr


def test_aliases_and_interpolations_in_a_config_are_harmless(
    script: Script, finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_SECRET")
    run = hostile_run(finished_run, tmp_path / "run", lambda content: content["config"]["trainer"].update(max_steps=4))
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace("seed: 123", "seed: ${oc.env:HF_TOKEN}"))
    refused = script("train.py", f"resume={run}", timeout=60)
    assert refused.returncode == 2 and "is complete" in refused.stderr
    assert "hf_SECRET" not in (run / "train.log").read_text()
    bomb = "a0: &a0 [x,x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1},*a{i - 1}]\n" for i in range(1, 40))
    (run / "config.yaml").write_text(bomb)
    refused = script("train.py", f"resume={run}", timeout=60)
    assert refused.returncode == 2 and "Traceback" not in refused.stderr


@pytest.mark.parametrize("ratio", [float("nan"), float("inf"), 1e308, 5.0, 1.0, 0.0, -1.0])
def test_a_split_of_a_checkpoint_is_one(ratio: float) -> None:
    data = {"name": "text", "path": None, "batch_size": 1, "stride": None, "num_workers": 0, "train_ratio": ratio}
    content = {"config": {"data": data}}
    with pytest.raises(UserError, match=r"data\.train_ratio=.*must be above 0 and below 1"):
        read_data_settings(content)
    data["train_ratio"] = 0.8
    assert (found := read_data_settings(content)) is not None and found.train_ratio == 0.8


def test_a_job_that_is_started_again_trusts_only_its_own_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    requeue.remember_run(tmp_path / "run", arguments=["model=tiny"])
    assert requeue.earlier_run(["model=tiny"]) == tmp_path / "run"
    (note,) = (tmp_path / "outputs" / ".jobs").iterdir()
    text = note.read_text()
    for changed in (text.replace("run", "else"), "/tmp\n", "/tmp\nzz\n", "", "\n" + text):
        note.write_text(changed)
        assert requeue.earlier_run(["model=tiny"]) is None
    note.write_text(text)
    note.rename(tmp_path / "moved")
    note.symlink_to(tmp_path / "moved")
    assert requeue.earlier_run(["model=tiny"]) is None, "a link that leads out of the folder"
    requeue.remember_run(tmp_path / "run", arguments=["model=tiny"])
    assert not note.is_symlink() and (tmp_path / "moved").read_text() == text, "nothing is written through a link"


def test_hostile_settings_are_refused_in_no_time() -> None:
    shared: list[Any] = [0]
    deep: list[Any] = []
    for _ in range(60):
        shared = [shared, shared]
    for _ in range(5000):
        deep = [deep]
    for value in (shared, deep, {"_target_": "os.system"}, 10**6000, b"x", {1: {"_target_": 1}}, torch.zeros(2)):
        config = {"data": {"path": value}}
        assert not has_signed_settings({"config": config, "settings_signature": "00" * 32})
        with pytest.raises(UserError, match="stored settings"):
            read_stored_settings(config, own=False, origin="a file")


def test_a_manifest_stands_for_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "manifest.json").write_text("{}")
    assert stays_inside("corpus/manifest.json", folder=None)
    (tmp_path / "corpus" / "train.bin").symlink_to("/etc/hostname")
    assert not stays_inside("corpus/manifest.json", folder=None)
    assert not stays_inside("loop", folder=None, must_exist=True)
    (tmp_path / "loop").symlink_to("loop")
    for path in ("loop", "a\0b", "~nobody-here/x", "corpus", "**", "x::http://h", "file:///etc"):
        assert not stays_inside(path, folder=None), path
