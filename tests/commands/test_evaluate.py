"""evaluate.py prints and writes the losses of models on a text, and compares models."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir

from gpt_pretrain.commands.evaluate import evaluate_models
from gpt_pretrain.commands.prepare import prepare_command
from gpt_pretrain.evaluation import evaluated_model
from gpt_pretrain.evaluation.loss import next_token_loss
from tests.conftest import ROOT, tiny_model

Script = Callable[..., CompletedProcess[str]]
TEXT = "The cat sat on the mat. " * 40 + "Every effort moves you. " * 60
BYTES = ["tokenizer=byte", "n_heads=4", "device=cpu"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two files of weights for the vocabulary of bytes: a random model, and one that has learned the text."""
    folder = tmp_path_factory.mktemp("weights")
    random, taught = (tiny_model(vocab_size=257, drop_rate=0.0) for _ in range(2))
    token_ids = torch.tensor(list(TEXT.encode()))
    optimizer = torch.optim.AdamW(taught.parameters(), lr=3e-3)
    for step in range(40):
        windows = token_ids[torch.arange(17) + 37 * torch.arange(16)[:, None] + step]
        loss = next_token_loss(taught, windows[:, :-1], windows[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    files = folder / "random.pth", folder / "taught.pth"
    for file, model in zip(files, (random, taught), strict=True):
        torch.save(model.state_dict(), file)
    return files


def results_of(done: CompletedProcess[str], folder: Path) -> dict:
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.search(r"Results: (\S+)", done.stdout)
    assert found is not None
    content: dict = json.loads((folder / found[1]).read_text())
    return content


def test_a_text_is_scored_and_models_are_compared(script: Script, tmp_path: Path, weights: tuple[Path, Path]) -> None:
    (tmp_path / "held_out.txt").write_text(TEXT)
    random, taught = weights
    done = script("evaluate.py", f"models=[{random},{taught}]", "data.path=held_out.txt", "stride=4", *BYTES)
    content = results_of(done, tmp_path)
    assert [(one["model"], one["stride"]) for one in content["models"]] == [
        *((str(random), stride) for stride in (16, 4)),
        *((str(taught), stride) for stride in (16, 4)),
    ]
    assert {one["tokens"] for one in content["models"]} == {len(TEXT)}
    model = tiny_model(vocab_size=257).eval()
    sequence = torch.tensor([256, *TEXT.encode()])
    with torch.no_grad():
        naive = [model(sequence[None, begin : begin + 16])[0].log_softmax(-1) for begin in range(0, len(TEXT), 16)]
        losses = [-rows[i, sequence[16 * n + i + 1]].item() for n, rows in enumerate(naive[:-1]) for i in range(16)]
    found = content["models"][0]
    assert found["nats_per_token"]["value"] == pytest.approx(np.mean(losses), abs=0.02)
    assert found["bits_per_byte"]["value"] == pytest.approx(found["nats_per_token"]["value"] / math.log(2))
    assert found["perplexity"] == pytest.approx(math.exp(found["nats_per_token"]["value"]))
    assert f"{taught} is better than {random} by" in done.stdout
    assert content["comparisons"][0] in done.stdout
    assert content["settings"]["stride"] == 4
    assert "95% confidence, over" in done.stdout
    assert [(one["model"], one["other"], one["stride"]) for one in content["differences"]] == [
        (str(taught), str(random), stride) for stride in (16, 4)
    ]
    assert all(one["bits_per_byte"]["value"] > one["limit"] > 0 and not one["is_noise"] for one in content["differences"])


def test_equal_models_do_not_differ(script: Script, tmp_path: Path, weights: tuple[Path, Path]) -> None:
    (tmp_path / "held_out.txt").write_text(TEXT)
    twice = script("evaluate.py", f"models=[{weights[0]},{weights[0]}]", "data.path=held_out.txt", *BYTES)
    assert twice.returncode == 2 and f"models: {weights[0]} is named twice. Name each model once." in twice.stderr
    shutil.copy(weights[0], tmp_path / "copy.pth")
    done = script("evaluate.py", f"models=[{weights[0]},{tmp_path}/copy.pth]", "data.path=held_out.txt", *BYTES)
    results_of(done, tmp_path)
    assert "no difference beyond noise" in done.stdout


def test_a_run_is_scored_on_its_own_validation_set(
    script: Script, train: Callable[..., float], tmp_path: Path, story: str
) -> None:
    (tmp_path / "story.txt").write_text(story)
    train("data=text", f"data.path={tmp_path}/story.txt", "trainer.max_epochs=1", run_dir=tmp_path / "run")
    done = script("evaluate.py", f"checkpoint={tmp_path}/run")
    content = results_of(done, tmp_path)
    assert content["models"][0]["tokens"] == len(story.encode()[int(0.9 * len(story)) :])
    seen = script("evaluate.py", f"checkpoint={tmp_path}/run", "data.path=story.txt", "max_bytes=1000")
    assert re.search(r"4 of 4 parts share long spans with the training text of \S+, of up to 256 tokens", seen.stdout)
    assert results_of(seen, tmp_path)["training_text"][0]["longest_span_tokens"] == 256
    (tmp_path / "story.txt").write_text(story + "More.")
    changed = script("evaluate.py", f"checkpoint={tmp_path}/run")
    assert changed.returncode == 2
    assert "has changed since the training" in changed.stderr


def test_only_the_beginning_of_a_text_is_scored(script: Script, tmp_path: Path, weights: tuple[Path, Path]) -> None:
    (tmp_path / "held_out.txt").write_text(TEXT)
    done = script("evaluate.py", f"pretrained={weights[0]}", "data.path=held_out.txt", "max_bytes=100", *BYTES)
    assert results_of(done, tmp_path)["models"][0]["tokens"] == 100


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["stride=0"], "stride=0: must be at least 1 token"),
        (["stride=17"], "stride=17 exceeds the context"),
        (["checkpoint=x.ckpt"], "checkpoint and pretrained: each names the weights to use"),
        (["hydra.run.dir=held_out.txt"], "held_out.txt"),
        (["run_dir=/proc/here"], "/proc/here"),
        (["tokenizer=gpt2"], "but the tokenizer gpt2 has 50,257"),
        (["data=mixture"], "data=mixture cannot be evaluated"),
        (["-m", "stride=1,2"], "evaluate.py has no sweeps"),
        (["strid=1"], "Did you mean stride or"),
        (["data.path=missing.txt"], "missing.txt"),
        (["data.path=ids.bin"], "data.path=ids.bin is a file of token ids without a header, not text. Token shards are found by"),
    ],
)
def test_mistakes_are_explained(
    script: Script, tmp_path: Path, weights: tuple[Path, Path], arguments: list[str], message: str
) -> None:
    (tmp_path / "held_out.txt").write_text(TEXT)
    (tmp_path / "ids.bin").write_bytes(bytes(range(256)) * 4)
    typed = [f"pretrained={weights[0]}", "data.path=held_out.txt", *BYTES, *arguments]
    done = script("evaluate.py", *typed)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_shards_of_another_tokenizer_are_explained(script: Script, tmp_path: Path, weights: tuple[Path, Path]) -> None:
    (tmp_path / "a.txt").write_text(TEXT)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        assert prepare_command(["a.txt", "out=shards", "tokenizer=gpt2", "val_fraction=0"]) in (0, None)
    done = script("evaluate.py", f"pretrained={weights[0]}", "data.path=shards", *BYTES)
    assert done.returncode == 2
    assert "was made with gpt2. Evaluate the text that it was made of" in done.stderr


def test_a_setting_without_effect_is_named(script: Script, tmp_path: Path, weights: tuple[Path, Path]) -> None:
    (tmp_path / "held_out.txt").write_text(TEXT)
    done = script("evaluate.py", f"pretrained={weights[0]}", "data.path=held_out.txt", "data.stride=4", *BYTES)
    results_of(done, tmp_path)
    assert "data.stride has no effect here" in done.stdout


def test_what_is_left_out_and_settings_without_a_text_or_tasks_are_named(
    script: Script, tmp_path: Path, weights: tuple[Path, Path]
) -> None:
    (tmp_path / "held_out.txt").write_text(f"{TEXT}<|endoftext|> <|endoftext|>{TEXT}")
    done = script("evaluate.py", f"pretrained={weights[0]}", "data.path=held_out.txt", "tasks.limit=3", *BYTES)
    content = results_of(done, tmp_path)
    assert content["models"][0]["documents"] == 2
    assert content["warnings"][0] == "held_out.txt: 1 document without text left out."
    assert done.stdout.count(content["warnings"][0]) == 1
    assert "tasks.limit=3 has no effect, since there are no tasks" in done.stdout


def test_without_a_text_one_is_asked_for(script: Script, weights: tuple[Path, Path]) -> None:
    done = script("evaluate.py", f"pretrained={weights[0]}", *BYTES)
    assert done.returncode == 2
    assert "Give a text: data.path=FILE" in done.stderr


def test_it_is_a_command_with_the_same_settings(tmp_path: Path, weights: tuple[Path, Path]) -> None:
    (tmp_path / "held_out.txt").write_text(TEXT)
    (tmp_path / "ids.bin").write_bytes(bytes(range(256)) * 4)
    typed = [f"pretrained={weights[0]}", "data.path=held_out.txt", "max_bytes=100", *BYTES]
    command = [sys.executable, "-m", "gpt_pretrain", "evaluate", *typed]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert results_of(done, tmp_path)["models"][0]["tokens"] == 100


def test_a_model_that_fails_costs_the_others_nothing(script: Script, tmp_path: Path, weights: tuple[Path, Path]) -> None:
    (tmp_path / "held_out.txt").write_text(TEXT)
    broken = torch.load(weights[0], weights_only=True)
    broken[next(name for name in broken if "final_norm" in name)][:] = torch.nan
    torch.save(broken, tmp_path / "broken.pth")
    models = f"models=[{weights[0]},{tmp_path}/broken.pth,{weights[1]}]"
    done = script("evaluate.py", models, "data.path=held_out.txt", "hydra.run.dir=found", *BYTES)
    assert done.returncode == 2
    assert "broken.pth holds NaN or infinity" in done.stderr
    content = json.loads((tmp_path / "found" / "results.json").read_text())
    assert [one["model"] for one in content["models"]] == [str(weights[0]), str(weights[1])]
    assert f"{weights[1]} is better than {weights[0]}" in done.stdout
    assert content["settings"]["data"]["path"] == "held_out.txt"


def test_an_evaluation_replaces_its_own_results(script: Script, tmp_path: Path, weights: tuple[Path, Path]) -> None:
    (tmp_path / "held_out.txt").write_text(TEXT)
    for max_bytes in (500, 600):
        done = script(
            *("evaluate.py", f"pretrained={weights[0]}", "data.path=held_out.txt", f"max_bytes={max_bytes}"),
            *("hydra.run.dir=results", *BYTES),
        )
        assert results_of(done, tmp_path)["settings"]["max_bytes"] == max_bytes


def test_an_evaluation_that_fails_leaves_no_folder(script: Script, tmp_path: Path, weights: tuple[Path, Path]) -> None:
    (tmp_path / "mine").mkdir()
    for folder in ("hydra.run.dir=new/deep", "run_dir=other", "hydra.run.dir=mine"):
        assert script("evaluate.py", f"pretrained={weights[0]}", "data.path=missing.txt", folder, *BYTES).returncode == 2
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_an_interrupted_evaluation_keeps_what_is_complete(
    tmp_path: Path, weights: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "held_out.txt").write_text(TEXT)
    real, calls = evaluated_model.evaluate_model, list[str]()

    def interrupted(prepared: evaluated_model.PreparedModel, *arguments: Any) -> object:
        calls.append(prepared.weights.name)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(prepared, *arguments)

    monkeypatch.setattr(evaluated_model, "evaluate_model", interrupted)
    overrides = [f"models=[{weights[0]},{weights[1]}]", f"data.path={tmp_path}/held_out.txt", f"run_dir={tmp_path}/found"]
    with initialize_config_dir(config_dir=str(ROOT / "conf"), version_base="1.3"):
        config = compose("evaluate", [*overrides, *BYTES])
    monkeypatch.setattr("gpt_pretrain.commands.evaluate.overridden_keys", frozenset)
    with pytest.raises(KeyboardInterrupt):
        evaluate_models(config)
    printed = capsys.readouterr()
    assert "Interrupted. 1 of 2 models were evaluated completely; the results cover only those." in printed.err
    assert len(json.loads((tmp_path / "found" / "results.json").read_text())["models"]) == 1
