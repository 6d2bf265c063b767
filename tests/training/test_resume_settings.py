"""Settings of a resumed run: which may change, and what a checkpoint's settings must not do."""

from pathlib import Path

import pytest

from gpt_pretrain.errors import UserError
from tests.helpers.training_runs import SETTINGS, Printed, Train, checkpoint, rows, with_stored
from tests.helpers.vocabularies import byte_level

CHANGES = {
    "model.emb_dim=64": r"model\.emb_dim was 32, is 64 now",
    "tokenizer.name=r50k_base": r"tokenizer\.name was byte, is r50k_base now",
    "data.batch_size=4": r"data\.batch_size was 8, is 4 now",
    "data.train_ratio=0.8": r"data\.train_ratio was 0\.9, is 0\.8 now",
    "seed=7": r"seed was 123, is 7 now",
    "trainer.precision=bf16-mixed": r"trainer\.precision was 32-true, is bf16-mixed now",
}


@pytest.mark.parametrize("change", CHANGES)
def test_changes_that_give_the_saved_state_another_meaning_are_refused(train: Train, tmp_path: Path, change: str) -> None:
    train(*SETTINGS, "trainer.max_epochs=1", run_dir=tmp_path / "run")
    with pytest.raises(UserError, match=CHANGES[change]):
        train(*SETTINGS, change, f"resume='{tmp_path / 'run'}'", run_dir=tmp_path / "run")


def test_refused_changes_are_reported_together_and_can_be_forced(
    train: Train, tmp_path: Path, story: str, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "text.txt").write_text(story)
    overrides = [*SETTINGS, f"data.path='{tmp_path / 'text.txt'}'"]
    train(*overrides, "trainer.max_epochs=1", run_dir=tmp_path / "run")
    (tmp_path / "text.txt").write_text(story + "And more.")
    resume = [f"resume='{tmp_path / 'run'}'", "seed=7"]
    with pytest.raises(UserError, match=r"seed was 123, is 7 now; the content of the text has changed"):
        train(*overrides, *resume, run_dir=tmp_path / "run")
    train(*overrides, *resume, "resume_force=true", run_dir=tmp_path / "run")
    assert "as resume_force=true allows: the content of the text has changed" in caplog.text
    assert checkpoint(tmp_path / "run")["global_step"] == 10


def test_another_vocabulary_from_a_folder_is_refused_and_can_be_forced(train: Train, tmp_path: Path) -> None:
    own, other = byte_level(tmp_path / "own"), byte_level(tmp_path / "other", specials=["<|endoftext|>", "<|tool|>"])
    train(*SETTINGS, f"tokenizer='{own}'", "trainer.max_epochs=1", run_dir=tmp_path / "run")
    resume = [*SETTINGS, f"resume='{tmp_path / 'run'}'", f"tokenizer='{other}'"]
    with pytest.raises(UserError, match=r"tokenizer\.name was own@\w{12}, is other@\w{12} now") as refused:
        train(*resume, run_dir=tmp_path / "run")
    assert len(refused.value.problems) == 1
    train(*resume, "resume_force=true", run_dir=tmp_path / "run")
    assert checkpoint(tmp_path / "run")["config"]["tokenizer"]["name"].startswith("other@")


def test_allowed_changes_are_applied_logged_and_saved(train: Train, tmp_path: Path, printed: Printed) -> None:
    train(*SETTINGS, "trainer.max_epochs=1", "optimizer.lr=1e-3", run_dir=tmp_path / "run")
    changes = ["trainer.max_epochs=2", "eval_freq=3", "optimizer.lr=2e-3", "scheduler=constant", "optimizer.weight_decay=0.3"]
    resume = f"resume='{tmp_path / 'run'}'"
    train(*changes, resume, base=[], run_dir=tmp_path / "run")  # all other settings come from the checkpoint
    lines = "\n".join(printed())
    assert "Changed since the checkpoint: trainer.max_epochs was 1, is 2 now" in lines
    assert "Changed since the checkpoint: scheduler.name was warmup_cosine, is constant now" in lines
    content = checkpoint(tmp_path / "run")
    assert content["config"]["model"]["emb_dim"] == 32
    assert content["config"]["data"]["batch_size"] == 8
    assert {group["lr"] for group in content["optimizer_states"][0]["param_groups"]} == {2e-3}
    assert [group["weight_decay"] for group in content["optimizer_states"][0]["param_groups"]] == [0.3, 0.0]
    assert [float(row["lr"]) for row in rows(tmp_path / "run") if row["lr"]][-1] == 2e-3


def test_no_class_named_in_a_checkpoint_s_settings_is_built(train: Train, tmp_path: Path) -> None:
    train(*SETTINGS, "trainer.max_epochs=1", run_dir=tmp_path / "run")
    resume = f"resume='{tmp_path / 'run'}'"
    (tmp_path / "run" / "checkpoints" / "best.ckpt").unlink()  # which would be resumed instead
    hostile = {"_target_": "os.system", "command": f"touch '{tmp_path / 'marker'}'"}
    for change in (
        lambda config: config["callbacks"].update(custom={"bad": hostile}),
        lambda config: config["optimizer"].update(deep=[{"er": hostile}]),
        lambda config: config.update(itself=config),
    ):
        whole = (tmp_path / "run" / "checkpoints" / "last.ckpt").read_bytes()
        with_stored(tmp_path / "run", change)
        with pytest.raises(UserError, match=r"contain a _target_|far too many parts|nested more than"):
            train(*SETTINGS, resume, run_dir=tmp_path / "run")
        (tmp_path / "run" / "checkpoints" / "last.ckpt").write_bytes(whole)
    assert not (tmp_path / "marker").exists()
    with_stored(tmp_path / "run", lambda config: config.update(start_context="${oc.env:HOME} ${x}", unknown=3))
    train("trainer.max_epochs=2", resume, base=[], run_dir=tmp_path / "run")
    assert checkpoint(tmp_path / "run")["config"]["start_context"] == "${oc.env:HOME} ${x}", (
        "plain text, which is not interpolated"
    )


def test_the_user_s_callbacks_must_be_given_again(train: Train, tmp_path: Path) -> None:
    overrides = [*SETTINGS, "+callbacks.custom.watch={_target_: lightning.pytorch.callbacks.LearningRateMonitor}"]
    train(*overrides, "trainer.max_epochs=1", run_dir=tmp_path / "run")
    resume = f"resume='{tmp_path / 'run'}'"
    with pytest.raises(
        UserError, match=r"callbacks\.custom\.watch \(lightning\.pytorch\.callbacks\.LearningRateMonitor\) is missing"
    ):
        train(*SETTINGS, resume, run_dir=tmp_path / "run")
    train(*overrides, resume, run_dir=tmp_path / "run")


def test_settings_edited_in_config_yaml_are_named_and_have_no_effect(
    train: Train, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train(*SETTINGS, "trainer.max_epochs=1", "optimizer.lr=1e-3", run_dir=tmp_path / "run")
    file, resume = tmp_path / "run" / "config.yaml", f"resume='{tmp_path / 'run'}'"
    edited = file.read_text().replace("lr: 0.001", "lr: 5e-2", 1).replace("emb_dim: 32", "emb_dim: 64")
    file.write_text(edited.replace("eval_freq: ", "eval_freq: 1"))
    train("trainer.max_epochs=2", "eval_freq=3", resume, base=[], run_dir=tmp_path / "run")
    assert (
        "config.yaml has other settings than the checkpoint: model.emb_dim=64 instead of 32, optimizer.lr=5e-2 instead of 0.001. "
        "They have no effect"
    ) in caplog.text
    assert checkpoint(tmp_path / "run")["config"]["optimizer"]["lr"] == 1e-3
    caplog.clear()
    train("trainer.max_epochs=3", resume, base=[], run_dir=tmp_path / "run")
    assert "other settings" not in caplog.text, "config.yaml was written again"
