"""Resume, read and open what earlier versions of this program wrote."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from gpt_pretrain.checkpoints.checkpoint_file import read_checkpoint
from gpt_pretrain.checkpoints.pretrained import load_pretrained
from tests.conftest import ROOT
from tests.helpers.command_line import gpt_pretrain

COMPAT = ROOT / "tests" / "data" / "compat" / "0.1.0"
Script = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    """A copy of everything that version 0.1.0 wrote, in the folder that scripts run in."""
    shutil.copytree(COMPAT, tmp_path, dirs_exist_ok=True)
    return tmp_path


def test_a_run_goes_on_to_the_same_weights(earlier: Path, script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as it was then: sums over more threads round differently
    done = script("train.py", "resume=run", "trainer.max_steps=12")
    assert done.returncode == 0, done.stderr
    content = read_checkpoint(earlier / "run" / "checkpoints" / "last.ckpt")
    expected = load_file(COMPAT / "resumed.safetensors")
    assert content["state_dict"].keys() == expected.keys()
    for name, tensor in expected.items():  # The loss of later versions, and other instructions, round differently.
        torch.testing.assert_close(content["state_dict"][name], tensor, rtol=1e-5, atol=1e-6)


def test_a_run_generates_the_same_text(earlier: Path, script: Script) -> None:
    done = script("generate.py", "checkpoint=run", "prompt=The", "sampler.max_new_tokens=20")
    assert done.stdout == (COMPAT / "generated.txt").read_text(encoding="utf-8")


def test_a_sharded_checkpoint_is_read(earlier: Path, script: Script) -> None:
    assert load_pretrained(earlier / "sharded").config.emb_dim == 8
    done = script("train.py", "resume=sharded", "trainer.max_steps=6", "trainer=default")
    assert done.returncode == 0, done.stderr


def test_a_sweep_is_taken_up(earlier: Path, script: Script) -> None:
    done = script("train.py", "sweep_resume=sweep")
    assert done.returncode == 0, done.stderr
    states = {path.parent.name: json.loads(path.read_text())["state"] for path in (earlier / "sweep").glob("*/run.json")}
    assert states == {"optimizer.lr=0.001": "finished", "optimizer.lr=0.003": "finished"}
    assert "1 of 2 jobs" in done.stdout


def test_a_corpus_is_trained_on_and_prepared_again(earlier: Path, script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    overrides = ["data=shards", "data.path=corpus", "model=tiny", "model.emb_dim=8", "model.n_heads=2", "model.n_layers=1"]
    done = script("train.py", *overrides, "model.context_length=16", "trainer.max_steps=2", "trainer.accelerator=cpu")
    assert done.returncode == 0, done.stderr
    monkeypatch.chdir(earlier)
    settings = ["tokenizer=byte", "val_fraction=0.1", "shard_tokens=2000"]
    gpt_pretrain("prepare", "documents.jsonl", "out=again", *settings)
    for file in (COMPAT / "corpus").glob("*-*"):
        assert file.read_bytes() == (earlier / "again" / file.name).read_bytes()


def test_an_exported_folder_is_opened_and_replaced(earlier: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(earlier)
    model, run = load_pretrained("exported"), load_pretrained("run")
    token_ids = torch.arange(16)[None]
    assert torch.equal(model(token_ids), run(token_ids))
    gpt_pretrain("export", "checkpoint=run", "out=exported")


def test_pages_and_comparisons_are_made(earlier: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(earlier)
    gpt_pretrain("report", "run", "sweep")
    gpt_pretrain("compare", "run", "sharded")
    assert all((earlier / name).is_file() for name in ("run/report.html", "sweep/report.html", "compare.png"))
