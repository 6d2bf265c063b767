"""Train, resume, distribute, export and read again the modern model, as GPT-2's."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gpt_pretrain.checkpoints.checkpoint_file import read_checkpoint
from gpt_pretrain.checkpoints.pretrained import load_pretrained
from gpt_pretrain.errors import UserError
from tests.conftest import ROOT, TINY_RUN
from tests.helpers.fork_server import ForkServer
from tests.helpers.training_runs import rows

Train = Callable[..., float]
MODERN = ["model=modern_tiny" if override == "model=tiny" else override for override in TINY_RUN]


def content(folder: Path) -> dict[str, Any]:
    return read_checkpoint(folder / "checkpoints" / "last.ckpt")


def assert_same_run(one: Path, other: Path, *, tolerance: float = 0.0) -> None:
    a, b = content(one), content(other)
    assert (a["global_step"], a["tokens_seen"]) == (b["global_step"], b["tokens_seen"])
    assert a["val_losses"] == pytest.approx(b["val_losses"], abs=tolerance)
    for name, tensor in a["state_dict"].items():
        torch.testing.assert_close(tensor, b["state_dict"][name], rtol=0, atol=tolerance)


def test_a_resumed_run_ends_like_an_uninterrupted_one(train: Train, tmp_path: Path) -> None:
    settings = ["model.n_kv_heads=1", "model.drop_rate=0.1", "trainer.activation_checkpointing=true", "scheduler=constant"]
    train(*settings, "trainer.max_epochs=3", run_dir=tmp_path / "whole", base=MODERN)
    train(*settings, "trainer.max_epochs=2", run_dir=tmp_path / "parts", base=MODERN)
    # Without the model's settings, since a resumed run takes them from its checkpoint.
    train("trainer.max_epochs=3", f"resume='{tmp_path / 'parts'}'", run_dir=tmp_path / "parts", base=["trainer.accelerator=cpu"])
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    assert content(tmp_path / "parts")["architecture"]["n_kv_heads"] == 1
    assert (tmp_path / "whole" / "samples.txt").read_text() == (tmp_path / "parts" / "samples.txt").read_text()


def test_the_losses_of_the_default_recipe_fall_from_the_first_line_on(train: Train, tmp_path: Path) -> None:
    """Its first steps have the full learning rate, without a warm-up, so a constant rate is the same for them."""
    short = [
        "trainer.max_steps=7",
        "scheduler=constant",
        "model.context_length=64",
        "data.stride=64",
        "eval_freq=1",
        "eval_iter=2",
    ]
    train(*short, "callbacks=minimal", "logger=csv", base=["trainer.accelerator=cpu", "trainer.precision=32-true"])
    losses = [float(row["eval/train_loss"]) for row in rows(tmp_path / "run") if row["eval/train_loss"]]
    assert len(losses) == 7
    assert losses == sorted(losses, reverse=True), losses


def test_a_run_is_exported_and_a_new_one_starts_from_it(train: Train, tmp_path: Path) -> None:
    train("export=true", "data.respect_documents=true", "optimizer.lr=1e-2", "trainer.max_epochs=4", base=MODERN)
    folder = tmp_path / "run" / "huggingface"
    ids = torch.randint(257, (1, 32))
    with torch.no_grad():
        torch.testing.assert_close(load_pretrained(folder)(ids), load_pretrained(tmp_path / "run")(ids))
    train(f"init_from='{folder}'", run_dir=tmp_path / "next", base=[one for one in MODERN if not one.startswith("model")])
    then, now = content(tmp_path / "run")["architecture"], content(tmp_path / "next")["architecture"]
    assert now == then | {"drop_rate": 0.1}, "dropout is the new run's own"
    assert content(tmp_path / "next")["val_losses"][0] < content(tmp_path / "run")["val_losses"][0]


def test_weights_of_one_kind_are_refused_for_the_other(train: Train, tmp_path: Path) -> None:
    train("trainer.max_epochs=1", run_dir=tmp_path / "a", base=MODERN)
    with pytest.raises(UserError, match=r"has model\.kind=modern"):
        train(f"init_from='{tmp_path / 'a'}'", run_dir=tmp_path / "b")
    with pytest.raises(UserError, match=r"The checkpoint has another architecture: .*model\.kind was modern, is gpt2 now"):
        train(f"resume='{tmp_path / 'a'}'", run_dir=tmp_path / "a")


def test_generate_and_the_plan_know_the_model(train: Train, script: Callable[..., Any], tmp_path: Path) -> None:
    train("trainer.max_epochs=1", "model.n_kv_heads=1", base=MODERN)
    generated = script("generate.py", f"checkpoint={tmp_path / 'run'}", "prompt=Every effort", "sampler.max_new_tokens=8")
    assert generated.returncode == 0, generated.stderr
    plan = script("train.py", *MODERN, "plan=true")
    assert plan.returncode == 0, plan.stderr
    assert "2 layers" in plan.stdout


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_ranks_equal_one_rank_with_two_accumulated_batches(
    strategy: str, tmp_path: Path, cache_dir: Path, fork_server: ForkServer
) -> None:
    settings = [*MODERN, "data.stride=340", "data.batch_size=4", "model.n_kv_heads=1", f"data.cache_dir='{cache_dir}'"]
    for name, overrides in (
        ("alone", ["trainer.accumulate_grad_batches=2"]),
        (strategy, [f"trainer={strategy}", "trainer.devices=2"]),
    ):
        command = [str(ROOT / "train.py"), *settings, *overrides, f"hydra.run.dir={name}"]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(tmp_path / "cache")}
        done = fork_server.run(command, cwd=tmp_path, environment=environment, ranks=4)
        assert done.returncode == 0, done.stderr
    assert_same_run(tmp_path / "alone", tmp_path / strategy, tolerance=1e-5)
