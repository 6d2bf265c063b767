"""How numbers, places and commands are told."""

import math
import shlex
from pathlib import Path

import pytest

from gpt_pretrain import wording


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0 s"), (59.4, "59.4 s"), (61, "1 min 1 s"), (3_599.6, "1 h 0 min"), (90_000, "25 h 0 min")]
)
def test_durations(seconds: float, text: str) -> None:
    assert wording.duration(seconds) == text


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 bytes"), (1, "1 byte"), (999, "999 bytes"), (1_000, "1 kB"), (1_234_567, "1.23 MB"), (5e10, "50 GB"), (None, "-")],
)
def test_sizes(size: object, text: str) -> None:
    assert wording.size(size) == text


@pytest.mark.parametrize(
    ("value", "text"), [(1.26, "1.3"), (2, "2.0"), (None, "-"), ("3", "-"), (math.nan, "-"), (math.inf, "-")]
)
def test_numbers(value: object, text: str) -> None:
    assert wording.number(value, ".1f") == text


def test_places_are_told_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert wording.place(tmp_path / "here" / "outputs" / "a") == "outputs/a"
    assert wording.place(tmp_path / "there") == str(tmp_path / "there")


def test_commands_survive_a_shell() -> None:
    folder, prompt = "outputs/it's $(one)", 'He said: "no" & `left`'
    assert shlex.split(wording.generate_command(folder, start_context=prompt))[2:4] == [
        f"checkpoint={folder}",
        f"prompt={prompt}",
    ]
    assert shlex.split(wording.tensorboard_command(folder)) == ["tensorboard", "--logdir", folder]
    assert shlex.split(wording.resume_command(folder, limit=("max_steps", 3)))[2:] == [f"resume={folder}", "trainer.max_steps=6"]
    assert wording.resume_command("a") == "python train.py resume=a"
