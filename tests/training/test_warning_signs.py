"""Tiny runs that show each of the warning signs, and healthy runs that show none."""

import random
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from gpt_pretrain.data.datamodule import TextDataModule
from gpt_pretrain.data.dataset import TokenWindows
from gpt_pretrain.data.files import LocalFiles
from gpt_pretrain.data.token_stream import Shard, loss_by_frequencies
from gpt_pretrain.errors import UserError
from tests.conftest import TINY_RUN
from tests.helpers.crash_harness import differences
from tests.helpers.training_runs import Printed, Train, checkpoint, machine_going_away, spoilt

QUIET = ["callbacks.samples=false", "callbacks.loss_curve=false", "logger=none", "data.stride=null", "eval_freq=5", "eval_iter=2"]

GRAMMAR = [
    ["Anna", "Ben", "Clara", "David", "Emma", "Felix", "Grace", "Henry"],
    ["saw the", "found the", "left the", "carried the", "painted the", "forgot the", "sold the", "remembered the"],
    ["old", "quiet", "bright", "small", "heavy", "green", "broken", "distant"],
    ["ship.", "garden.", "letter.", "river.", "window.", "candle.", "horse.", "bridge.", "table.", "forest.", "lamp."],
]


def sentences(number: int, *, seed: int) -> str:
    """Return a text of random sentences after a simple grammar; more of it is always new."""
    chance = random.Random(seed)
    return " ".join(chance.choice(words) for _ in range(number) for words in GRAMMAR)


@pytest.fixture
def short(tmp_path: Path, story: str) -> list[str]:
    """Return the settings of a run that memorizes a text of 400 shuffled words."""
    words = story.split()
    random.Random(1).shuffle(words)
    (tmp_path / "short.txt").write_text(" ".join(words[:400]))
    model = ["model.emb_dim=64", "model.drop_rate=0", "model.init=pytorch", "model.tie_embeddings=false"]
    return [*model, f"data.path='{tmp_path / 'short.txt'}'", "data.stride=9", "optimizer.lr=2e-3", "trainer.max_epochs=100"]


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a text of about 200,000 characters."""
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text(sentences(6000, seed=1))
    return file


def findings_of(run_dir: Path, name: str = "last") -> list[tuple[str, int]]:
    """Return sign and step of each finding in a run's checkpoint."""
    findings = checkpoint(run_dir, name)["callbacks"]["WarningSigns"]["findings"]
    return [(finding["sign"], finding["step"]) for finding in findings]


@pytest.mark.parametrize(
    "overrides",
    [
        ("seed=1", "optimizer.lr=2e-3", "data.batch_size=16", "scheduler=warmup_cosine"),
        ("seed=2", "optimizer.lr=4e-4", "data.batch_size=4", "model.n_layers=1", "model.emb_dim=64"),
        ("seed=3", "optimizer.lr=1e-3", "data.batch_size=8", "trainer.accumulate_grad_batches=2", "model.n_layers=3"),
    ],
)
def test_a_healthy_run_has_no_findings(train: Train, printed: Printed, tmp_path: Path, text: Path, overrides: list[str]) -> None:
    train(*QUIET, f"data.path='{text}'", "trainer.max_steps=250", "trainer.gradient_clip_val=5", *overrides)
    content = checkpoint(tmp_path / "run")
    assert content["val_losses"][-1] < 0.6 * content["val_losses"][0], "the model learns"
    assert findings_of(tmp_path / "run") == []
    assert not any("doctor" in line for line in printed())


def test_a_learning_rate_far_too_low_is_reported(train: Train, printed: Printed, tmp_path: Path, text: Path) -> None:
    train(*QUIET, f"data.path='{text}'", "trainer.max_steps=80", "optimizer.lr=1e-7", "trainer.gradient_clip_val=null")
    assert findings_of(tmp_path / "run") == [("stuck", 40)]
    (line,) = [line for line in printed() if line.startswith("doctor: ")]
    assert line.startswith("doctor: step 40, stuck: From step 0 to 40 the training loss has only gone from 5.5")
    assert line.endswith("The learning rate is probably too low: try optimizer.lr=1e-06 (1e-07 now).")
    assert any(line.startswith("The doctor found: stuck (step 40). ") for line in printed())


@pytest.mark.parametrize(("rate", "steps", "signs"), [(10, 20, ["spike"]), (0.3, 230, ["spike", "stuck"])])
def test_a_learning_rate_far_too_high_is_reported(
    train: Train, tmp_path: Path, text: Path, rate: float, steps: int, signs: list[str]
) -> None:
    overrides = [f"optimizer.lr={rate}", f"trainer.max_steps={steps}", "trainer.gradient_clip_val=null"]
    train(*QUIET, f"data.path='{text}'", *overrides)
    found = findings_of(tmp_path / "run")
    assert [sign for sign, _ in found] == signs
    assert found[0][1] <= 10


def test_too_large_initial_weights_are_reported(train: Train, tmp_path: Path, text: Path) -> None:
    train(*QUIET, f"data.path='{text}'", "trainer.max_steps=2", "model.init=pytorch", "model.tie_embeddings=true")
    assert findings_of(tmp_path / "run") == [("first_loss", 0)]


def test_a_memorized_text_is_reported_as_overfitting_and_gap(
    train: Train, printed: Printed, tmp_path: Path, short: list[str]
) -> None:
    overrides = ["logger=tensorboard", "eval_iter=4", "trainer.max_steps=190", "trainer.gradient_clip_val=null"]
    train(*QUIET, *short, *overrides)
    run_dir = tmp_path / "run"
    found = dict(findings_of(run_dir))
    assert set(found) == {"overfitting", "gap"}
    content = checkpoint(run_dir)
    lowest = content["eval_steps"][int(np.argmin(content["val_losses"]))]
    assert lowest < found["overfitting"] <= lowest + 60
    (line,) = [line for line in printed() if line.startswith(f"doctor: step {found['overfitting']}, overfitting: ")]
    assert abs(int(re.findall(r"Since about step (\d+)", line)[0]) - lowest) <= 20
    events = EventAccumulator(str(run_dir)).Reload().Tensors("doctor/text_summary")
    assert sorted(event.step for event in events) == sorted(found.values())


def test_gradients_clipped_in_most_steps_are_reported(train: Train, tmp_path: Path, text: Path) -> None:
    overrides = ["trainer.gradient_clip_val=0.01", "callbacks.doctor.window=15"]
    train(*QUIET, f"data.path='{text}'", "trainer.max_steps=40", *overrides)
    assert findings_of(tmp_path / "run") == [("clipping", 29)]


@pytest.mark.parametrize("workers", [0, 1])
def test_slow_data_loading_is_reported(
    train: Train, tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    real = TokenWindows.__getitem__

    def slow(windows: TokenWindows, numbers: np.ndarray) -> Any:
        time.sleep(0.05)
        return real(windows, numbers)

    monkeypatch.setattr(TokenWindows, "__getitem__", slow)
    overrides = [f"data.num_workers={workers}", "eval_freq=100", "trainer.limit_val_batches=1", "trainer.gradient_clip_val=null"]
    train(*QUIET, f"data.path='{text}'", "trainer.max_steps=60", *overrides)
    ((sign, step),) = findings_of(tmp_path / "run")
    assert sign == "loading"
    assert 39 <= step <= 59


def test_the_loader_measures_the_waiting_for_each_batch(train: Train, compose_train: Any, text: Path) -> None:
    from gpt_pretrain.config.conversion import to_settings
    from gpt_pretrain.config.schema import TrainSettings
    from gpt_pretrain.tokenizers.build import build_tokenizer

    settings = to_settings(compose_train(*TINY_RUN, f"data.path='{text}'"), TrainSettings)
    data = TextDataModule(settings.data, build_tokenizer("byte"), context_length=32, seed=1)
    data.prepare_data()
    loader = data.train_dataloader()
    start = time.perf_counter()
    first, second = (sum(1 for _ in loader) for _ in range(2))
    assert first == second == len(loader) > 10
    assert 0 < data.seconds_waited < time.perf_counter() - start


@pytest.mark.parametrize(("way", "signs"), [("stop", []), ("skip", [("nonfinite", 3)]), ("rollback", [("nonfinite", 1)])])
@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_nonfinite_losses_and_gradients_are_reported_once(
    train: Train, printed: Printed, tmp_path: Path, way: str, signs: list[Any], what: str
) -> None:
    overrides = ["trainer.accumulate_grad_batches=2", "data.batch_size=4", f"on_nonfinite={way}", "checkpoint.every_n_steps=2"]
    with spoilt(steps={3}, what=what):
        if way == "stop":
            with pytest.raises(UserError, match="The weights were not updated"):
                train(*QUIET, *overrides)
        else:
            train(*QUIET, *overrides, "trainer.max_steps=6", "trainer.gradient_clip_val=null")
    lines = [line for line in printed() if line.startswith("doctor: step ") and "nonfinite" in line]
    assert len(lines) == 1
    assert "try optimizer.lr=0.000133 (0.0004 now)" in lines[0]
    assert findings_of(tmp_path / "run") == signs


@pytest.mark.slow
def test_a_resumed_run_reports_what_the_uninterrupted_run_reports(
    train: Train, caplog: pytest.LogCaptureFixture, tmp_path: Path, short: list[str]
) -> None:
    overrides = [*short, "data.batch_size=8", "trainer.accumulate_grad_batches=2", "trainer.max_steps=110", "eval_freq=3"]
    overrides += ["checkpoint.every_n_steps=7", "trainer.gradient_clip_val=0.3", "callbacks.doctor.gap=1.2"]
    overrides += ["callbacks.doctor.window=10", "callbacks.doctor.loading=0.99"]  # waiting depends on the machine, not on the run

    def lines() -> set[str]:
        texts = {record.getMessage() for record in caplog.records if record.getMessage().startswith("doctor: ")}
        caplog.clear()
        return texts

    train(*overrides, run_dir=tmp_path / "whole")
    whole, parts, again = lines(), tmp_path / "parts", list[str]()
    signs = dict(findings_of(tmp_path / "whole"))
    assert set(signs) == {"clipping", "gap"}
    for step in (8, signs["clipping"] + 1, signs["gap"] + 2, 100):  # a run resumed before a sign reports it again
        with machine_going_away(at_step=step):
            train(*overrides, *again, run_dir=parts)
        again = [f"resume='{parts}'"]
    train(*overrides, *again, run_dir=parts)
    assert differences(tmp_path / "whole", parts) == []
    a, b = (checkpoint(run)["callbacks"]["WarningSigns"] for run in (tmp_path / "whole", parts))
    assert a == b
    assert lines() == whole


def test_without_the_doctor_there_are_no_findings(train: Train, tmp_path: Path, text: Path) -> None:
    for number, overrides in enumerate((["callbacks=minimal"], ["callbacks.doctor=null"])):
        run_dir = tmp_path / str(number)
        train(*overrides, "optimizer.lr=10", "trainer.max_epochs=3", "logger=none", run_dir=run_dir)
        assert "WarningSigns" not in checkpoint(run_dir)["callbacks"]


def test_invalid_thresholds_are_all_reported(train: Train) -> None:
    with pytest.raises(UserError) as caught:
        train("callbacks.doctor.gap=0.5", "callbacks.doctor.window=2", "callbacks.doctor.loading=30")
    assert caught.value.problems == [
        "callbacks.doctor.window=2: must be at least 10 optimizer steps.",
        "callbacks.doctor.gap=0.5: must be at least 1.",
        "callbacks.doctor.loading=30.0: must be above 0 and below 1.",
    ]


@pytest.mark.parametrize("count", [1000, 600_000])
def test_the_unigram_loss_is_the_entropy_of_the_token_frequencies(tmp_path: Path, count: int) -> None:
    shares = np.array([0.5, 0.25, 0.125, 0.125])
    ids = np.random.default_rng(1).choice(4, size=count, p=shares).astype("<u2")
    (tmp_path / "ids").write_bytes(ids.tobytes())
    assert loss_by_frequencies(Shard(LocalFiles(tmp_path), "ids", count, 2)) == pytest.approx(1.75 * np.log(2), abs=0.05)


def test_the_doctor_does_not_change_the_training(train: Train, tmp_path: Path) -> None:
    train("logger=none", run_dir=tmp_path / "a")
    train("logger=none", "callbacks.doctor=null", run_dir=tmp_path / "b")
    a, b = (checkpoint(tmp_path / name)["state_dict"] for name in "ab")
    assert all(torch.equal(a[name], b[name]) for name in a)
