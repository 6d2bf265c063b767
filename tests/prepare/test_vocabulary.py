"""`gpt-pretrain tokenizer`: from a corpus to a folder with a vocabulary, and a report of it."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from gpt_pretrain.commands.tokenizer import tokenizer_command
from gpt_pretrain.config.command_schema import VocabularySettings
from gpt_pretrain.errors import UserError
from gpt_pretrain.prepare import vocabulary
from gpt_pretrain.prepare.vocabulary import train_vocabulary
from gpt_pretrain.prepare.vocabulary_report import script_of
from gpt_pretrain.texts.sampling import PIECE_CHARACTERS, TextSample, cut_pieces, hash_piece
from gpt_pretrain.tokenizers.build import build_tokenizer
from tests.conftest import ROOT

WORDS = "Every effort moves you forward, doesn't it? Der Sinn des Lebens. Привет, мир! 今天天气很好。 1234567 "


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    lines = [json.dumps({"text": f"{WORDS}{number}<|endoftext|>{WORDS[::-1]}"}) for number in range(400)]
    (tmp_path / "documents.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (tmp_path / "one.txt").write_text("A text of its own. " * 100, encoding="utf-8")
    return tmp_path


def command(folder: Path, *arguments: str, out: str = "out") -> bytes:
    inputs = [str(folder / "documents.jsonl"), str(folder / "one.txt")]
    tokenizer_command([*inputs, f"out={folder / out}", "vocab_size=300", *arguments])
    return (folder / out / "tokenizer.json").read_bytes()


def test_the_order_of_the_files_and_a_second_time_make_no_difference(documents: Path) -> None:
    first = command(documents)
    assert command(documents) == first
    tokenizer_command(
        [str(documents / "one.txt"), str(documents / "documents.jsonl"), f"out={documents / 'b'}", "vocab_size=300"]
    )
    assert (documents / "b" / "tokenizer.json").read_bytes() == first
    assert sorted(path.name for path in (documents / "out").iterdir()) == ["tokenizer.json", "tokenizer_config.json"]
    tokenizer = build_tokenizer(str(documents / "out"))
    assert tokenizer.vocab_size == 300 and tokenizer.eos_id == 299


def test_the_report_names_what_counts(documents: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command(documents)
    shown = capsys.readouterr()
    for text in (
        "gpt2 (50,257)",
        "training text",
        "held-out text",
        "Cyrillic",
        "Chinese",
        "Longest words",
        "38,400 at emb_dim=128",
    ):
        assert text in shown.out
    assert f"To use it: tokenizer={documents / 'out'}" in shown.out
    assert "Training 300 tokens on" in shown.err and "a sample" not in shown.err


def test_settings_reach_the_vocabulary(documents: Path) -> None:
    default = command(documents)
    assert command(documents, "pattern=gpt2") != default
    names = json.loads(command(documents, "special_tokens=<|user|>, <|endoftext|>"))["added_tokens"]
    assert [token["content"] for token in names] == ["<|user|>", "<|endoftext|>"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["vocab_size=256"], "vocab_size=256: must be between 257 tokens"),
        (["pattern=other"], "pattern=other: must be one of cl100k, gpt2"),
        (["sample_bytes=10"], "sample_bytes=10: must be at least 1,000,000 bytes"),
        (["text_field=body"], "400 of 401 records cannot be used, more than max_rejected=0.001 allows. First: "),
        (["dataset=name"], "Files and dataset= cannot be combined"),
    ],
)
def test_what_is_wrong_is_said(documents: Path, arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        command(documents, *arguments)
    assert not (documents / "out").exists()


def test_a_folder_with_other_files_and_a_damaged_input_are_refused(documents: Path) -> None:
    (documents / "full").mkdir()
    (documents / "full" / "mine.txt").write_text("x")
    with pytest.raises(UserError, match=r"holds mine\.txt\. A vocabulary needs a folder of its own"):
        command(documents, out="full")
    with pytest.raises(UserError, match="is a file"):
        command(documents, out="one.txt")
    (documents / "one.txt").write_bytes(b"text " * 100 + b"\xff" * 10)
    with pytest.raises(UserError, match="A file cannot be read to its end: "):
        command(documents)
    with pytest.raises(UserError, match="The inputs contain no text"):
        (documents / "blank.txt").write_text("   ")
        tokenizer_command([str(documents / "blank.txt"), f"out={documents / 'out'}"])


def test_another_vocabulary_in_the_folder_is_replaced_with_a_warning(documents: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command(documents)
    command(documents)
    assert "replaced" not in capsys.readouterr().err
    command(documents, "pattern=gpt2")
    assert f"warning: out={documents / 'out'} held another vocabulary. This one has replaced it." in capsys.readouterr().err


def test_an_interruption_leaves_nothing(tmp_path: Path) -> None:
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghijklmnop", k=rng.randint(3, 9))) for _ in range(60_000)]
    (tmp_path / "long.txt").write_text(" ".join(rng.choices(words, k=1_500_000)))
    arguments = ["-m", "gpt_pretrain", "tokenizer", "long.txt", "out=out", "vocab_size=50000"]
    process = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # which a job in the background ignores
    )
    assert process.stderr is not None
    while "Training" not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130
    assert [path.name for path in tmp_path.iterdir()] == ["long.txt"]


def test_a_sample_does_not_depend_on_the_order() -> None:
    rng = random.Random(1)
    pieces = [rng.randbytes(rng.randint(1, 300)) for _ in range(300)]
    pieces += pieces[:40]
    found = []
    for _ in range(5):
        rng.shuffle(pieces)
        sample = TextSample(5000)
        for piece in pieces:
            sample.add(piece, hash_piece(piece))
        assert sample.n_bytes <= 5000 and not sample.is_complete
        found.append(sorted(sample._pieces))
    assert all(one == found[0] for one in found)


def test_a_sample_has_a_limited_number_of_different_words() -> None:
    rng, found = random.Random(1), []
    chinese = ["".join(chr(rng.randint(0x4E00, 0x9FA5)) for _ in range(50)) for _ in range(200)]
    repeating = [" ".join(rng.choices(["the", "same", "words"], k=30)) + f" {number}" for number in range(200)]
    for pieces in (chinese, chinese[::-1], repeating):
        sample = TextSample(27_000)
        for piece in pieces:
            sample.add(data := piece.encode(), hash_piece(data))
        size = sample.n_bytes
        found.append((sample.limit_words(), sample.n_bytes, sorted(sample.texts())))
        assert found[-1][0] == (sample.n_bytes < size)
    assert found[0] == found[1] and found[0][1] == 60 * 150  # a third of the sample, in whole pieces
    assert not found[2][0] and found[2][1] == size


def test_a_limited_sample_is_said_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = random.Random(1)
    (tmp_path / "zh.txt").write_text("".join(chr(rng.randint(0x4E00, 0x9FA5)) for _ in range(400_000)), encoding="utf-8")
    settings = VocabularySettings(out=str(tmp_path / "out"), inputs=[str(tmp_path / "zh.txt")], vocab_size=300)
    train_vocabulary(replace(settings, sample_bytes=1_000_000))
    line = next(line for line in capsys.readouterr().err.splitlines() if line.startswith("Training 300 tokens"))
    assert "a sample of the corpus that is smaller than usual since it has very many different words" in line


@pytest.mark.parametrize("fraction", [0.01, 0.2])
def test_of_a_short_text_a_tenth_or_the_fraction_is_held_out(tmp_path: Path, fraction: float) -> None:
    text = " ".join(f"word{number}" for number in range(16_000))
    (tmp_path / "text.txt").write_text(text)
    settings = VocabularySettings(out=str(tmp_path / "out"), inputs=[str(tmp_path / "text.txt")], val_fraction=fraction)
    samples = train_vocabulary(replace(settings, vocab_size=300))
    sizes = [sample.n_bytes for sample in (samples.held_out, samples.training)]
    assert sum(sizes) == samples.corpus_bytes == len(text)
    assert len(text) * 0.05 < sizes[0] <= len(text) * max(fraction, 0.1)


def test_pieces_are_the_text_and_end_after_words() -> None:
    text = "word " * 30_000 + "x" * 200_000 + "\nline" * 100
    pieces = list(cut_pieces(text))
    assert "".join(pieces) == text
    assert max(map(len, pieces)) <= PIECE_CHARACTERS
    assert pieces[0].endswith(("word", "word "))
    assert list(cut_pieces("")) == []


def test_scripts_are_named_by_their_letters() -> None:
    assert [script_of(char) for char in "aЖ天の1 "] == ["Latin", "Cyrillic", "Chinese", "Hiragana", None, None]


def test_a_folder_that_cannot_be_written_is_found_before_the_text_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(folder: Path) -> None:
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(vocabulary, "make_writable_folder", refuse)
    settings = VocabularySettings(inputs=[str(tmp_path / "missing.txt")], out=str(tmp_path / "own"))
    with pytest.raises(UserError, match=r"own cannot be written: Permission denied\. Choose another folder with out=\."):
        train_vocabulary(settings)
