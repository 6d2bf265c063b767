"""gpt-pretrain tokenizer trial=...: short trainings with several vocabularies, and the suggestion that follows from them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gpt_pretrain.commands.tokenizer import tokenizer_command
from gpt_pretrain.errors import UserError
from gpt_pretrain.training import vocabulary_trials

MODEL = (
    "model=tiny model.emb_dim=16 model.n_layers=1 model.n_heads=2 model.context_length=16 data.batch_size=64 optimizer.lr=1e-2 "
    "trainer.accelerator=cpu trainer.max_epochs=1"
)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    lines = [f"{number} boats lay at the shore, and {number * number % 89} more came with the wind.\n" for number in range(2500)]
    documents = [json.dumps({"text": "".join(lines[start : start + 20])}) for start in range(0, len(lines), 20)]
    (tmp_path / "text.jsonl").write_text("\n".join(documents), encoding="utf-8")
    return tmp_path / "text.jsonl"


def suggest(text: Path, trial: str = MODEL, *more: str) -> None:
    tokenizer_command([str(text), f"out={text.parent / 'own'}", "vocab_size=300", "val_fraction=0.1", f"trial={trial}", *more])


def test_a_size_is_suggested_and_how_it_was_found_is_said(
    text: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vocabulary_trials, "_step_seconds", lambda *_: 1e-3)  # whatever the load of the machine
    suggest(text)
    shown = capsys.readouterr()
    assert "with 4 vocabularies of 500 to " in shown.err and "takes about " in shown.err  # the text has no more than 1,236 tokens
    assert shown.err.count(" bits per byte\n") == 5  # one size twice
    assert "Fitted to 20 measurements by least squares" in shown.out
    assert "Best after" in shown.out and "may be as good" in shown.out
    assert "Suggested: vocab_size=" in shown.out
    assert sorted(path.name for path in text.parent.iterdir()) == ["own", "text.jsonl"]


@pytest.mark.parametrize(
    ("trial", "message"),
    [
        ("model=huge", "trial: .*model"),
        ("model=tiny model.n_heads=7", "trial: model.n_heads=7"),
        ("model=tiny init_from=gpt2", "trial: only a model with new weights can have another vocabulary"),
        ("model=tiny optimiser.lr=1", "trial: .*optimi"),
    ],
)
def test_wrong_settings_of_the_model_are_found_before_anything_is_trained(text: Path, trial: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        suggest(text, trial)
    assert not (text.parent / "own").exists()


def test_too_little_text_or_time_is_said(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vocabulary_trials, "_step_seconds", lambda *_: 60.0)
    with pytest.raises(UserError, match=r"for each vocabulary, and about .* in all\. Raise trial_minutes="):
        suggest(text)
    with pytest.raises(UserError, match=r"but the whole training has 1\d\d kB\. Set a smaller data\.batch_size"):
        suggest(text, MODEL.replace("data.batch_size=64", "data.batch_size=6400"))
    text.write_text("\n".join(json.dumps({"text": f"short {number} " * 9}) for number in range(100)), encoding="utf-8")
    with pytest.raises(
        UserError, match=r"trial: a suggestion needs at least 50,000 bytes of text\. The vocabulary itself is comp"
    ):
        suggest(text)
