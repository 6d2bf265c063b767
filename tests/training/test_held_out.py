"""A run is evaluated on held-out texts and tasks while it trains, which has no effect on the training."""

import json
import logging
import os
import signal
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import torch

from gpt_pretrain.checkpoints.checkpoint_file import read_checkpoint
from gpt_pretrain.checkpoints.pretrained import open_weights
from gpt_pretrain.config.checkpoint_settings import has_signed_settings, sign_settings
from gpt_pretrain.config.schema import DataSettings, HeldOutSettings
from gpt_pretrain.config.stored_locations import fix_location, is_harmless_location
from gpt_pretrain.errors import UserError
from gpt_pretrain.evaluation.held_out import _short_names, prepare_held_out, score_held_out
from gpt_pretrain.evaluation.scoring import Scorer
from gpt_pretrain.runs.report.run_page import render_run_page
from gpt_pretrain.tokenizers.build import build_tokenizer
from gpt_pretrain.training.callbacks import held_out as callback
from gpt_pretrain.training.planning.measurements import Measurements
from tests.conftest import TINY_RUN, tiny_model
from tests.helpers.training_runs import Printed, Train, checkpoint, machine_going_away, rows, same_weights

EVALUATED = "evaluation/"


@pytest.fixture
def settings(tmp_path: Path) -> list[str]:
    """Overrides that name a held-out text and two tasks."""
    (tmp_path / "held_out.txt").write_text("A man went to the sea, and looked at the ships for a long while. " * 20)
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    pairs = [{"context": "The cat sat on the", "choices": ["mat.", "moon."], "label": i % 2} for i in range(4)]
    (tasks / "pairs.jsonl").write_text("".join(json.dumps(one) + "\n" for one in pairs))
    (tasks / "ends.jsonl").write_text(json.dumps({"context": "She opened the door with her", "continuation": "key."}))
    return [f"evaluation.texts=[{tmp_path}/held_out.txt]", f"evaluation.tasks={tasks}", "logger=csv", "callbacks=minimal"]


def evaluated(run_dir: Path) -> list[tuple[str, dict[str, str]]]:
    """Return the step and the measures of each evaluation."""
    found = [(row["step"], {name: value for name, value in row.items() if name.startswith(EVALUATED)}) for row in rows(run_dir)]
    return [(step, values) for step, values in found if any(values.values())]


def test_the_training_is_the_same_to_the_last_bit(train: Train, settings: list[str], tmp_path: Path) -> None:
    train("logger=csv", "callbacks=minimal", "model.drop_rate=0.2", run_dir=tmp_path / "without")
    train(*settings, "model.drop_rate=0.2", "evaluation.every_n_steps=1", run_dir=tmp_path / "with")
    without, evaluating = (checkpoint(tmp_path / name) for name in ("without", "with"))
    assert same_weights(without, evaluating)
    assert str(without["optimizer_states"]) == str(evaluating["optimizer_states"])
    losses = [[row["train/loss"] for row in rows(tmp_path / name)] for name in ("without", "with")]
    assert losses[0] == losses[1]
    assert [step for step, _ in evaluated(tmp_path / "with")] == ["0", "1", "2", "3", "4", "5"]


def test_the_numbers_are_those_of_the_checkpoint(train: Train, settings: list[str], tmp_path: Path) -> None:
    train(*settings, "ema_decay=0.5")
    tokenizer = build_tokenizer("byte")
    held_out = prepare_held_out(
        HeldOutSettings([f"{tmp_path}/held_out.txt"], f"{tmp_path}/tasks"),
        DataSettings(name="text", path=None, url=None, sha256=None, cache_dir=str(tmp_path), train_ratio=0.9),
        tokenizer,
        context_length=32,
    )
    assert held_out is not None
    (_, first), (last_step, last) = evaluated(tmp_path / "run")
    assert last_step == "5" and first.keys() == last.keys() and all(last.values())
    assert list(last) == held_out.metric_names(averages=True)
    for kind, prefix in (("trained", ""), ("ema", "ema_")):
        scores = score_held_out(Scorer(open_weights(tmp_path / "run", kind=kind).build()), held_out)
        numbers = {f"{EVALUATED}{one.name}/{prefix}{key}": value for one in scores for key, value in one.measures.items()}
        assert len(numbers) == 6
        for name, estimate in numbers.items():
            assert float(last[name]) == pytest.approx(estimate.value, rel=1e-5), name
    page = render_run_page(tmp_path / "run")
    assert "Held-out texts and tasks" in page and "Bits per byte of held_out, held_out, moving average" in page


@pytest.mark.parametrize("every", ["null", "2", "4"])
def test_a_resumed_run_evaluates_at_the_same_steps(train: Train, settings: list[str], tmp_path: Path, every: str) -> None:
    common = [*settings, f"evaluation.every_n_steps={every}", "checkpoint.every_n_steps=2", "ema_decay=0.5"]
    train(*common, run_dir=tmp_path / "whole")
    with machine_going_away(at_step=3):
        train(*common, run_dir=tmp_path / "parts")
    train(f"resume='{tmp_path}/parts'", run_dir=tmp_path / "parts")
    whole, parts = (evaluated(tmp_path / name) for name in ("whole", "parts"))
    assert whole == parts
    assert [step for step, _ in whole] == {"null": ["2", "5"], "2": ["1", "3", "5"], "4": ["3", "5"]}[every]
    assert same_weights(*(checkpoint(tmp_path / name) for name in ("whole", "parts")))


def test_an_evaluation_that_a_stop_cuts_short_is_made_up_for(
    train: Train, settings: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, printed: Printed
) -> None:
    common = [*settings, "evaluation.every_n_steps=2", "checkpoint.every_n_steps=2"]
    train(*common, run_dir=tmp_path / "whole")
    score, calls = callback.score_held_out, list[int]()

    def asked_to_stop(*arguments: object, **named: object) -> object:
        calls.append(1)
        if len(calls) == 2:
            raise callback.StopAskedError
        return score(*arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(callback, "score_held_out", asked_to_stop)
    with machine_going_away(at_step=2):
        train(*common, run_dir=tmp_path / "parts")
    assert "The evaluation after 2 steps is left out until the run resumes, because the run was asked to stop." in printed()
    train(f"resume='{tmp_path}/parts'", run_dir=tmp_path / "parts")
    assert evaluated(tmp_path / "whole") == evaluated(tmp_path / "parts")


@pytest.mark.parametrize("limit", ["trainer.max_epochs=2", "trainer.max_steps=6"])
def test_the_last_evaluation_is_left_for_a_resumed_run_if_there_is_one(
    train: Train, settings: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, printed: Printed, limit: str
) -> None:
    common = [*settings, "evaluation.every_n_steps=6", limit]
    train(*common, run_dir=tmp_path / "whole")
    score, calls = callback.score_held_out, list[int]()

    def asked_to_stop(*arguments: object, **named: object) -> object:
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
            raise callback.StopAskedError
        return score(*arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(callback, "score_held_out", asked_to_stop)
    ends = limit == "trainer.max_steps=6"
    with nullcontext() if ends else pytest.raises(SystemExit):
        train(*common, run_dir=tmp_path / "parts")
    until = "" if ends else " until the run resumes"
    assert f"The evaluation after 6 steps is left out{until}, because the run was asked to stop." in printed()
    with pytest.raises(UserError, match="is complete") if ends else nullcontext():
        train(f"resume='{tmp_path}/parts'", run_dir=tmp_path / "parts")
    assert (evaluated(tmp_path / "whole") == evaluated(tmp_path / "parts")) is not ends


def test_what_cannot_be_used_is_found_before_the_training(train: Train, settings: list[str], tmp_path: Path) -> None:
    (tmp_path / "tasks" / "pairs.jsonl").write_text('{"context": "a", "choices": ["b", "c"], "label": 0}\n{"contex')
    with pytest.raises(UserError) as caught:
        train(*settings, f"evaluation.texts=[{tmp_path}/missing.txt,{tmp_path}/held_out.txt]", "data.path=none.txt", "data=text")
    assert [problem.split(":")[0].split(",")[0] for problem in caught.value.problems] == [
        "data.path=none.txt",
        f"evaluation.texts={tmp_path}/missing.txt",
        f"evaluation.tasks={tmp_path}/tasks/pairs.jsonl",
    ]
    assert not list((tmp_path / "run").glob("checkpoints/*"))


def test_an_item_that_cannot_be_scored_is_found_before_the_training(train: Train, settings: list[str], tmp_path: Path) -> None:
    (tmp_path / "tasks" / "ends.jsonl").write_text(json.dumps({"context": "She", "continuation": "had keys. " * 9}))
    with pytest.raises(UserError, match=r"ends, line 1: the continuation has 91 tokens, but the context holds 32"):
        train(*settings)


def test_a_text_of_the_training_is_warned_about(
    train: Train, settings: list[str], tmp_path: Path, story: str, printed: Printed
) -> None:
    (tmp_path / "held_out.txt").write_text(story[:2000])
    train(*settings, "trainer.max_steps=1")
    assert any("8 of 8 parts share long spans with the training text of this run" in line for line in printed())


def test_weights_without_a_result_do_not_end_the_training(
    train: Train, settings: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, printed: Printed
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise UserError("The model computes a loss that is NaN or infinite.")

    monkeypatch.setattr(callback, "score_held_out", fails)
    train(*settings, "evaluation.every_n_steps=1")
    assert len([line for line in printed() if "held-out texts and tasks have no result" in line]) == 1
    assert not evaluated(tmp_path / "run")


def test_items_that_are_cut_are_counted_once(train: Train, settings: list[str], tmp_path: Path, printed: Printed) -> None:
    (tmp_path / "tasks" / "ends.jsonl").write_text(json.dumps({"context": "word " * 20, "continuation": "key."}))
    train(*settings, "evaluation.every_n_steps=1")
    assert len([line for line in printed() if "ends: 1 of 1 items are longer than the 32 tokens of context" in line]) == 1


def test_a_dry_run_estimates_the_time(
    train: Train, settings: list[str], printed: Printed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "gpt_pretrain.training.planning.dry_run.measure_run", lambda *_, **__: Measurements(1, 1, 0, 0, 0, 0, None, held_out=20)
    )
    train(*settings, "plan=true", "evaluation.every_n_steps=4")
    assert any("held-out texts and tasks: 3 of 20 s each" in line for line in printed())
    assert any("Evaluating held-out texts and tasks 3 times takes about 10 times as long" in line for line in printed())


def test_compilation_is_off_while_a_model_is_scored(tmp_path: Path) -> None:
    compiled: list[object] = []

    def backend(module: torch.fx.GraphModule, _: object) -> Callable[..., object]:
        compiled.append(module)
        return module.forward

    model = tiny_model()
    model.train()
    model.trf_blocks[0].compile(backend=backend)
    with callback.scoring(model, batch_tokens=8) as scorer:
        scorer.model(torch.zeros(1, 4, dtype=torch.int64))
    assert not compiled and model.training


def test_a_text_has_a_name_that_loggers_take(tmp_path: Path) -> None:
    (tmp_path / "a b.txt").write_text("one two three")
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "a b.md").write_text("four five six")
    (tmp_path / "\u6587.txt").write_text("seven eight nine")
    data = DataSettings(name="text", path=None, url=None, sha256=None, cache_dir=str(tmp_path / "cache"), train_ratio=0.9)
    texts = [f"{tmp_path}/a b.txt", f"{tmp_path}/c/a b.md", f"{tmp_path}/\u6587.txt"]
    held_out = prepare_held_out(HeldOutSettings(texts), data, build_tokenizer("byte"), context_length=8)
    assert held_out is not None
    assert list(held_out.texts) == ["a_b", "a_b_2", "\u6587"]


def test_a_stored_place_stays_in_the_folder_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "held_out.txt").write_text("text")
    assert is_harmless_location("evaluation.texts", ["held_out.txt"], folder=None)
    assert not is_harmless_location("evaluation.texts", ["held_out.txt", "/etc/passwd"], folder=None)
    assert not is_harmless_location("evaluation.tasks", "../tasks", folder=None)
    assert fix_location("evaluation.texts", ["held_out.txt"]) == [str(tmp_path / "held_out.txt")]


def test_the_signatures_of_earlier_versions_hold(train: Train, settings: list[str], tmp_path: Path) -> None:
    train(*settings, "trainer.max_steps=1")
    content = read_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")
    assert has_signed_settings(content)
    added = content["config"].pop("evaluation")
    assert not has_signed_settings(content)
    content["settings_signature"] = sign_settings(content["config"])
    assert has_signed_settings(content)
    assert not has_signed_settings(content | {"config": content["config"] | {"evaluation": added}})


def test_settings_without_effect_are_named(train: Train, printed: Printed, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    train("evaluation.every_n_steps=5", "trainer.max_steps=1", "callbacks=minimal")
    assert any("evaluation.every_n_steps=5 has no effect without evaluation.texts" in line for line in printed())


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_several_devices_give_the_numbers_of_one(
    train: Train, script: Callable[..., CompletedProcess[str]], settings: list[str], tmp_path: Path, strategy: str
) -> None:
    common = [*settings, "ema_decay=0.5", "model.drop_rate=0"]
    train(*common, run_dir=tmp_path / "one")
    two = ["data.batch_size=8", "trainer.devices=2", f"trainer={strategy}", "trainer.accelerator=cpu", "trainer.max_epochs=2"]
    done = script("train.py", *TINY_RUN, *common, *two, "hydra.run.dir=two")
    assert done.returncode == 0, done.stderr
    one, several = (evaluated(tmp_path / name) for name in ("one", "two"))
    assert [step for step, _ in one] == [step for step, _ in several] == ["2", "5"]
    for (_, expected), (_, values) in zip(one, several, strict=True):
        assert {name: float(value) for name, value in values.items()} == pytest.approx(
            {name: float(value) for name, value in expected.items()}, rel=1e-4
        )


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["x/wiki.valid.txt", "wiki.test.txt"], ["wiki.valid", "wiki.test"]),
        (["x/a.txt", "y/a.txt", "a.txt.gz"], ["a", "a_2", "a.txt"]),
        (["held.txt.gz", "b c.txt", "folder/"], ["held", "b_c", "folder"]),
        (["книга.txt", ".hidden", "\U0001f600.txt"], ["книга", "hidden", "text"]),
    ],
)
def test_texts_have_different_names_that_tell_them_apart(paths: list[str], names: list[str]) -> None:
    assert _short_names(paths) == names
