"""Training runs of a tiny model, in this process."""

import html
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from gpt_pretrain.checkpoints.pretrained import load_pretrained
from gpt_pretrain.errors import UserError
from gpt_pretrain.model.config import GPTConfig
from gpt_pretrain.runs.folder import display_path
from gpt_pretrain.runs.report.saving import save_run_page
from gpt_pretrain.tokenizers.build import build_tokenizer
from gpt_pretrain.training import summary
from tests.helpers.training_runs import Printed, Train, checkpoint, machine_going_away, rows, same_weights

LINE = re.compile(r"^Ep (\d+) \(Step (\d{6})\): Train loss (\d+\.\d{3}), Val loss (\d+\.\d{3})$")


def test_a_run_prints_losses_and_writes_checkpoints_metrics_and_samples(train: Train, printed: Printed, tmp_path: Path) -> None:
    best = train()
    run_dir = tmp_path / "run"
    lines = printed()
    losses = [match.groups() for line in lines if (match := LINE.match(line))]
    assert [(int(epoch), int(step)) for epoch, step, _, _ in losses] == [(1, 0), (1, 2), (2, 4)]  # 3 steps an epoch
    samples = [line for line in lines if line.startswith("Every effort moves you")]
    assert len(samples) == 2
    assert any("Before training: Train loss 5.5" in line for line in lines), "ln(257) is 5.549"
    assert any(f", {best / math.log(2):.3f} bits per byte), in epoch 2" in line for line in lines)

    last, best_checkpoint = checkpoint(run_dir), checkpoint(run_dir, "best")
    assert [f"{loss:.3f}" for loss in last["train_losses"]] == [train for _, _, train, _ in losses]
    assert [f"{loss:.3f}" for loss in last["val_losses"]] == [val for _, _, _, val in losses]
    assert last["track_tokens_seen"] == [16 * 32 * (step + 1) for step in (0, 2, 4)]
    assert last["tokens_seen"] == 6 * 16 * 32
    assert last["tokenizer"] == "byte"
    assert GPTConfig.from_dict(last["architecture"]).emb_dim == 32
    assert last["config"]["optimizer"]["lr"] == 4e-4
    assert best_checkpoint["global_step"] == 6, "the last epoch was the best"

    table = {int(row["step"]): row for row in rows(run_dir)}
    assert sorted(table) == [0, 1, 2, 3, 4, 5]
    assert [step for step, row in table.items() if row["val/loss"]] == [2, 5]
    assert float(table[5]["val/loss"]) == pytest.approx(best, rel=1e-6)
    assert float(table[5]["val/perplexity"]) == pytest.approx(math.exp(best), rel=1e-6)
    assert float(table[5]["val/bits_per_byte"]) == pytest.approx(best / math.log(2), rel=1e-6)  # a token is a byte
    assert [int(float(table[step]["tokens_seen"])) for step in table] == [512 * (step + 1) for step in table]
    for column in ("train/loss", "lr", "grad_norm", "tokens_per_second"):
        assert all(float(row[column]) > 0 for row in table.values()), column
    assert [row["epoch"] for row in table.values()] == ["1", "1", "1", "2", "2", "2"]

    events = EventAccumulator(str(run_dir)).Reload()
    scalars = set(events.Tags()["scalars"])
    assert {"train/loss", "val/loss", "val/perplexity", "val/bits_per_byte", "lr", "grad_norm", "tokens_per_second"} <= scalars
    assert {"tokens_seen", "eval/train_loss", "eval/val_loss"} <= scalars
    assert [event.step for event in events.Scalars("val/loss")] == [2, 5]
    for name in ("train/loss", "val/loss", "eval/train_loss", "lr", "grad_norm", "tokens_per_second"):
        by_step, by_tokens = events.Scalars(name), events.Scalars(f"tokens_seen/{name}")
        assert [event.step for event in by_tokens] == [512 * (event.step + 1) for event in by_step]
        assert [event.value for event in by_tokens] == [event.value for event in by_step]
    assert events.Scalars("val/best_loss")[-1].value == pytest.approx(best, rel=1e-6)
    assert {"sample/text_summary", "samples over time/text_summary"} <= set(events.Tags()["tensors"])
    assert "custom_scalars__config__" in events.Tags()["tensors"]

    text = (run_dir / "samples.txt").read_text(encoding="utf-8")
    assert text.count("--- epoch") == 2
    for name in ("losses.png", "losses.pdf", "config.yaml"):
        assert (run_dir / name).stat().st_size > 0
    assert not list(run_dir.rglob("*.tmp"))


def test_the_printed_losses_equal_those_of_the_saved_model(train: Train, tmp_path: Path, story: str) -> None:
    """Recompute the last validation loss from the saved weights and the text itself."""
    train("eval_freq=5", "eval_iter=1000", "logger=none", "trainer.max_steps=6")
    content = checkpoint(tmp_path / "run")
    model = load_pretrained(tmp_path / "run" / "checkpoints" / "last.ckpt")
    ids = build_tokenizer("byte").encode(story[int(0.9 * len(story)) :])
    starts = range(0, len(ids) - 32, 350)
    inputs = torch.tensor([ids[s : s + 32] for s in starts])
    targets = torch.tensor([ids[s + 1 : s + 33] for s in starts])
    with torch.no_grad():
        loss = torch.nn.functional.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
    assert content["eval_steps"] == [0, 5]
    assert content["val_losses"][-1] == pytest.approx(loss.item(), abs=1e-5)


def test_evaluation_does_not_change_the_training(train: Train, tmp_path: Path) -> None:
    train("eval_freq=1", "eval_iter=3", run_dir=tmp_path / "a")
    train("eval_freq=1000", "callbacks=minimal", "logger=none", "trainer.limit_val_batches=1", run_dir=tmp_path / "b")
    assert same_weights(checkpoint(tmp_path / "a"), checkpoint(tmp_path / "b"))


def test_the_same_seed_gives_the_same_weights_and_another_seed_does_not(train: Train, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(f"seed={seed}", "logger=none", run_dir=tmp_path / name)
    assert same_weights(checkpoint(tmp_path / "a"), checkpoint(tmp_path / "b"))
    assert not same_weights(checkpoint(tmp_path / "a"), checkpoint(tmp_path / "c"))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_resumed_run_ends_like_an_uninterrupted_one(train: Train, tmp_path: Path, num_workers: int) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    workers = f"data.num_workers={num_workers}"
    train("trainer.max_epochs=4", workers, run_dir=whole)
    train("trainer.max_epochs=2", workers, run_dir=parts)
    train("trainer.max_epochs=4", workers, f"resume='{parts}'", run_dir=parts)
    a, b = checkpoint(whole), checkpoint(parts)
    for key in ("train_losses", "val_losses", "track_tokens_seen", "eval_steps", "tokens_seen", "global_step"):
        assert a[key] == b[key], key
    assert same_weights(a, b)
    for name in ("step", "epoch", "tokens_seen", "train/loss", "val/loss", "eval/val_loss", "lr", "grad_norm"):
        assert [row[name] for row in rows(whole)] == [row[name] for row in rows(parts)], name
    assert (whole / "samples.txt").read_text() == (parts / "samples.txt").read_text()


def test_a_run_that_failed_in_the_middle_of_an_epoch_ends_like_an_uninterrupted_one(train: Train, tmp_path: Path) -> None:
    settings = ["data.stride=100", "checkpoint.every_n_steps=4", "logger=none"]  # 11 steps an epoch
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(*settings, run_dir=whole)
    with machine_going_away(at_step=18):
        train(*settings, run_dir=parts)
    assert checkpoint(parts)["global_step"] == 16
    train(*settings, f"resume='{parts}'", run_dir=parts)
    a, b = checkpoint(whole), checkpoint(parts)
    for key in ("train_losses", "val_losses", "track_tokens_seen", "eval_steps", "tokens_seen", "global_step"):
        assert a[key] == b[key], key
    assert same_weights(a, b)


def test_init_from_starts_a_new_run_from_the_weights(train: Train, printed: Printed, tmp_path: Path) -> None:
    train("trainer.max_epochs=8", "optimizer.lr=1e-2", "eval_iter=100", run_dir=tmp_path / "a")
    trained = checkpoint(tmp_path / "a")
    train("trainer.max_epochs=1", f"init_from='{tmp_path / 'a'}'", "eval_iter=100", "seed=5", run_dir=tmp_path / "b")
    before = [line for line in printed() if line.startswith("Before training")][-1]
    first = float(re.findall(r"Val loss (\d+\.\d+)", before)[0])
    model_loss = trained["callbacks"]["SaveRun"]["best_loss"]
    assert first == pytest.approx(model_loss, abs=0.3)
    assert first < 4.5
    assert checkpoint(tmp_path / "b")["tokens_seen"] == 3 * 512
    assert checkpoint(tmp_path / "a")["tokens_seen"] == 24 * 512, "the source run is unchanged"


def test_overrides_that_contradict_the_weights_are_refused_with_a_remedy(train: Train, tmp_path: Path) -> None:
    train("trainer.max_epochs=1", "logger=none", run_dir=tmp_path / "a")
    for change, message in (
        ("model.n_heads=4", r"n_heads=4: .*last\.ckpt has 2 attention heads"),
        (
            "model.emb_dim=64",
            r"model\.emb_dim=32, which your overrides contradict\. Remove those overrides, or add model\.emb_dim=32",
        ),
        ("model.context_length=64", r"model\.context_length=32, .*\. The context can be shortened, but not lengthened"),
        ("tokenizer=gpt2", r"tokenizer=byte, which .*\. Remove those overrides, or add tokenizer=byte"),
    ):
        with pytest.raises(UserError, match=message):
            train(f"init_from='{tmp_path / 'a'}'", change, "data.batch_size=1", run_dir=tmp_path / "b")


def test_a_complete_run_is_not_resumed(train: Train, tmp_path: Path) -> None:
    train("logger=none", run_dir=tmp_path / "a")
    with pytest.raises(
        UserError, match=r"is complete: trainer\.max_epochs=2 ended it after 2 epochs and 6 steps.*trainer\.max_epochs=4"
    ):
        train("logger=none", f"resume='{tmp_path / 'a'}'", run_dir=tmp_path / "a")


def test_a_new_run_does_not_overwrite_another(train: Train, tmp_path: Path) -> None:
    train("logger=none", "trainer.max_epochs=1", run_dir=tmp_path / "a")
    with pytest.raises(UserError, match=r"already holds a run\. Resume it with resume="):
        train("logger=none", run_dir=tmp_path / "a")


def test_max_steps_ends_a_run_in_the_middle_of_an_epoch_with_a_sample_and_a_checkpoint(
    train: Train, printed: Printed, tmp_path: Path
) -> None:
    best = train("trainer.max_steps=4")
    assert math.isfinite(best)
    assert len([line for line in printed() if line.startswith("Every effort")]) == 2
    assert checkpoint(tmp_path / "run")["global_step"] == 4
    assert checkpoint(tmp_path / "run", "best")["global_step"] == 4


@pytest.mark.parametrize("stop", [4, 14])
def test_a_run_ended_by_max_steps_resumes_where_it_stopped(train: Train, tmp_path: Path, stop: int) -> None:
    settings = ["data.stride=100", "trainer.max_epochs=9", "eval_freq=1"]  # 11 steps an epoch
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(*settings, "trainer.max_steps=25", run_dir=whole)
    train(*settings, f"trainer.max_steps={stop}", run_dir=parts)
    train(*settings, "trainer.max_steps=18", f"resume='{parts}'", run_dir=parts)
    train(*settings, "trainer.max_steps=25", f"resume='{parts}'", run_dir=parts)
    a, b = checkpoint(whole), checkpoint(parts)
    for key in ("train_losses", "val_losses", "track_tokens_seen", "eval_steps", "tokens_seen", "global_step", "loops"):
        assert a[key] == b[key], key
    assert same_weights(a, b)


def test_logs_have_no_duplicates_after_a_failure(train: Train, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    with machine_going_away(at_step=11):
        train("trainer.max_epochs=4", "checkpoint.every_n_steps=20")
    checkpointed = checkpoint(run_dir)["global_step"]
    assert checkpointed == 9
    train("trainer.max_epochs=4", f"resume='{run_dir}'")
    assert [int(row["step"]) for row in rows(run_dir)] == list(range(12))
    events = EventAccumulator(str(run_dir)).Reload()
    assert [event.step for event in events.Scalars("train/loss")] == list(range(12))
    assert [event.step for event in events.Scalars("tokens_seen/train/loss")] == [512 * (step + 1) for step in range(12)]
    assert (run_dir / "samples.txt").read_text().count("--- epoch") == 4


def test_a_resumed_run_keeps_its_precision(train: Train, tmp_path: Path) -> None:
    train("trainer.precision=bf16-mixed", "logger=none", run_dir=tmp_path / "a")
    train("trainer.precision=auto", "trainer.max_epochs=3", "logger=none", f"resume='{tmp_path / 'a'}'", run_dir=tmp_path / "a")
    assert checkpoint(tmp_path / "a")["config"]["trainer"]["precision"] == "bf16-mixed"


def test_accumulated_batches_count_as_one_step(train: Train, tmp_path: Path) -> None:
    train("trainer.accumulate_grad_batches=2", "eval_freq=1")
    content = checkpoint(tmp_path / "run")
    assert content["global_step"] == 4  # 3 batches an epoch make 2 steps
    assert content["eval_steps"] == [0, 1, 2, 3]
    assert content["track_tokens_seen"] == [1024, 1536, 2560, 3072]


def test_accumulation_equals_a_larger_batch(train: Train, tmp_path: Path) -> None:
    exact = ["model.drop_rate=0", "trainer.max_epochs=1", "trainer.gradient_clip_val=null", "logger=none"]
    train("data.batch_size=24", "trainer.accumulate_grad_batches=2", *exact, run_dir=tmp_path / "a")
    train("data.batch_size=48", *exact, run_dir=tmp_path / "b")
    a, b = checkpoint(tmp_path / "a")["state_dict"], checkpoint(tmp_path / "b")["state_dict"]
    assert checkpoint(tmp_path / "a")["global_step"] == checkpoint(tmp_path / "b")["global_step"] == 1
    assert all(torch.allclose(a[name], b[name], atol=2e-5) for name in a)


def test_every_n_steps_saves_and_validates(train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import lightning as L

    saved = []
    real = L.Trainer.save_checkpoint

    def noting(trainer: L.Trainer, *args: Any, **kwargs: Any) -> None:
        saved.append(trainer.global_step)
        real(trainer, *args, **kwargs)

    monkeypatch.setattr(L.Trainer, "save_checkpoint", noting)
    train("checkpoint.every_n_steps=2", "logger=csv")
    assert saved == [2, 3, 4, 6]  # step 6 ends the epoch
    assert [int(row["step"]) for row in rows(tmp_path / "run") if row["val/loss"]] == [1, 2, 3, 5]


def test_the_best_checkpoint_is_also_kept_in_the_middle_of_an_epoch(train: Train, tmp_path: Path) -> None:
    with machine_going_away(at_step=2):
        train("checkpoint.every_n_steps=1", "eval_iter=1000")
    best = checkpoint(tmp_path / "run", "best")
    assert best["global_step"] == 2
    table = {int(row["step"]): row for row in rows(tmp_path / "run")}
    assert float(table[0]["val/loss"]) == pytest.approx(best["val_losses"][0], rel=1e-6)  # both use all windows


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_lower_precision_trains_and_loads(train: Train, tmp_path: Path, precision: str) -> None:
    assert math.isfinite(train(f"trainer.precision={precision}"))
    model = load_pretrained(tmp_path / "run" / "checkpoints" / "last.ckpt")
    assert model.tok_emb.weight.dtype == torch.float32


def test_early_stopping_ends_the_run(train: Train, tmp_path: Path, printed: Printed) -> None:
    train(
        "callbacks=early_stopping",
        "callbacks.early_stopping.patience=1",
        "callbacks.early_stopping.min_delta=100",
        "trainer.max_epochs=9",
    )
    assert checkpoint(tmp_path / "run")["global_step"] == 6
    further = f"resume={display_path(tmp_path / 'run')} callbacks=early_stopping callbacks.early_stopping.patience=3"
    assert any(line.strip() == f"python train.py {further}" for line in printed())
    assert further in html.unescape(save_run_page(tmp_path / "run").read_text(encoding="utf-8"))


def test_losses_of_few_batches_are_told_from_those_of_the_whole_set(
    train: Train, printed: Printed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(summary, "VISIBLE", 0.0)
    train("eval_iter=1", "eval_freq=1", "data.batch_size=2", "trainer.max_steps=1")
    (line,) = [line for line in printed() if "validation windows; the losses printed before" in line]
    assert line.startswith("These are means over all ") and line.endswith(" are of 1 batch (eval_iter).")


def test_the_user_can_add_callbacks(train: Train, tmp_path: Path) -> None:
    train("+callbacks.custom.monitor={_target_: lightning.pytorch.callbacks.LearningRateMonitor, logging_interval: step}")
    with pytest.raises(UserError, match=r"callbacks\.custom\.bad"):
        train("+callbacks.custom.bad={_target_: lightning.pytorch.callbacks.Nothing}", run_dir=tmp_path / "b")


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_logger_that_is_not_installed_is_reported_with_a_remedy(
    train: Train, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda package: None)
    with pytest.raises(UserError, match=f"logger={name} needs the package {name}.*pip install {name}"):
        train(f"logger={name}")


def test_without_a_logger_no_metrics_are_written(train: Train, tmp_path: Path) -> None:
    train("logger=none")
    assert not (tmp_path / "run" / "metrics.csv").exists()
    assert not list((tmp_path / "run").glob("events.*"))
