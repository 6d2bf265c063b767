"""A moving average of the weights: kept, stored, resumed to the last bit, and used in place of the weights."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gpt_pretrain.checkpoints.pretrained import open_weights
from gpt_pretrain.errors import UserError
from gpt_pretrain.runs.metadata import read_metadata
from gpt_pretrain.training.callbacks.weight_average import decay_at
from tests.helpers.training_runs import checkpoint, rows, same_weights

Train = Callable[..., float]
EMA = ["ema_decay=0.5", "logger=csv"]


def test_early_averages_forget_the_first_weights() -> None:
    assert decay_at(1, 0.99) == pytest.approx(2 / 11)
    assert decay_at(10_000, 0.99) == 0.99


def test_the_average_is_that_of_the_weights_after_each_step(train: Train, tmp_path: Path) -> None:
    settings = [*EMA, "checkpoint.every_n_steps=1", "checkpoint.keep=9", "trainer.max_steps=4", "callbacks=minimal"]
    train(*settings)
    folder = tmp_path / "run"
    steps = [checkpoint(folder, file.stem)["state_dict"] for file in sorted((folder / "checkpoints").glob("step-*.ckpt"))]
    assert len(steps) == 4
    still = ["optimizer.lr=1e-30", "optimizer.weight_decay=0", "trainer.max_steps=1", "callbacks=minimal", "logger=none"]
    train(*still, run_dir=tmp_path / "still")
    expected = checkpoint(tmp_path / "still")["state_dict"]  # as before the first step
    for number, weights in enumerate(steps, start=1):
        share = 1 - decay_at(number, 0.5)
        expected = {name: torch.lerp(value, weights[name], share) for name, value in expected.items()}
    for name, value in checkpoint(folder)["ema"].items():
        torch.testing.assert_close(value, expected[name])


def test_a_run_with_an_average_trains_and_resumes_like_one_without(train: Train, tmp_path: Path) -> None:
    train("trainer.max_epochs=2", "logger=csv", run_dir=tmp_path / "without")
    train("trainer.max_epochs=2", *EMA, run_dir=tmp_path / "whole")
    train("trainer.max_epochs=2", *EMA, "trainer.max_steps=4", run_dir=tmp_path / "parts")
    train(f"resume='{tmp_path / 'parts'}'", "trainer.max_steps=-1", run_dir=tmp_path / "parts")
    without, whole, parts = (checkpoint(tmp_path / name) for name in ("without", "whole", "parts"))
    assert same_weights(without, whole) and same_weights(whole, parts)
    assert all(torch.equal(whole["ema"][name], value) for name, value in parts["ema"].items())
    assert not torch.equal(whole["ema"]["model.tok_emb.weight"], whole["state_dict"]["model.tok_emb.weight"])
    losses = [[float(row["val/ema_loss"]) for row in rows(tmp_path / name) if row["val/ema_loss"]] for name in ("whole", "parts")]
    assert len(losses[0]) == 2 and losses[0] == losses[1]


def test_weights_of_each_kind_are_used_where_they_are_named(
    train: Train, script: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(*EMA, "checkpoint.every_n_steps=2", "checkpoint.keep=3")
    run, content = tmp_path / "run", checkpoint(tmp_path / "run")
    stored = {kind: open_weights(run, kind=kind).build().state_dict()["tok_emb.weight"] for kind in ("trained", "ema", "average")}
    torch.testing.assert_close(stored["trained"], content["state_dict"]["model.tok_emb.weight"])
    torch.testing.assert_close(stored["ema"], content["ema"]["model.tok_emb.weight"])
    kept = [checkpoint(run, file.stem)["state_dict"] for file in (run / "checkpoints").glob("step-*.ckpt")]
    mean = sum(weights["model.tok_emb.weight"] for weights in kept) / len(kept)
    torch.testing.assert_close(stored["average"], mean)
    train(f"init_from='{run}'", "weights=ema", "trainer.max_steps=1", "optimizer.lr=1e-30", run_dir=tmp_path / "next")
    first = checkpoint(tmp_path / "next")["state_dict"]["model.tok_emb.weight"]
    torch.testing.assert_close(first, stored["ema"])
    done = script("generate.py", f"checkpoint={run}", "weights=ema", "prompt=Every", "sampler.max_new_tokens=2")
    assert done.returncode == 0 and "moving average" in done.stderr


def test_weights_that_a_source_lacks_are_refused(train: Train, tmp_path: Path) -> None:
    train("trainer.max_steps=1", "callbacks=minimal", "logger=none")
    with pytest.raises(UserError, match=r"holds no moving average of its weights\. Leave out weights=ema"):
        open_weights(tmp_path / "run", kind="ema")
    with pytest.raises(UserError, match=r"weights=average needs two or more periodic checkpoints"):
        open_weights(tmp_path / "run", kind="average")


def test_the_best_checkpoint_is_that_of_the_lower_loss(train: Train, tmp_path: Path) -> None:
    """The average is validated at each checkpoint, and best.ckpt is the one where it or the weights were best."""
    settings = ["ema_decay=0.9", "checkpoint.every_n_steps=1", "optimizer.lr=0.05", "trainer.max_steps=6", "logger=csv"]
    best = train(*settings, "callbacks=minimal")
    found = [(float(row["val/ema_loss"]), float(row["val/loss"])) for row in rows(tmp_path / "run") if row["val/ema_loss"]]
    assert len(found) == 6 and best == pytest.approx(min(map(min, found)), abs=1e-6)
    assert min(average for average, _ in found) < min(weights for _, weights in found), "as at such a learning rate"
    saved = checkpoint(tmp_path / "run", "best")
    state = next(value for name, value in saved["callbacks"].items() if name.startswith("SaveRun"))
    assert state["best_weights"] == "ema"
    assert saved["global_step"] == 1 + min(range(6), key=lambda step: min(found[step]))
    assert read_metadata(tmp_path / "run")["result"]["best_weights"] == "ema"
