"""Files that are something else than what a setting needs: each is named for what it is, and nothing waits or is guessed."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from gpt_pretrain.checkpoints.weight_source import find_source
from gpt_pretrain.commands.command_line.arguments import parse_arguments
from gpt_pretrain.config.command_schema import PrepareSettings
from gpt_pretrain.errors import UserError
from gpt_pretrain.evaluation.held_out import _short_names
from gpt_pretrain.evaluation.tasks.task_files import find_tasks
from gpt_pretrain.system.urls import check_url
from gpt_pretrain.texts.records.record_text import InvalidRecordError, record_text
from gpt_pretrain.texts.text import Text, find_text_files
from gpt_pretrain.tokenizers.build import build_tokenizer
from tests.helpers.training_runs import Train

Script = Callable[..., "subprocess.CompletedProcess[str]"]

TEXT = b"The quick brown fox jumps over the lazy dog.\n" * 40
NOTEBOOK = {"cells": [{"cell_type": "markdown", "source": ["# Title"]}], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
NOISE = bytes(range(256)) * 4
HEADERS = b"From: a@b.org\nSubject: x\nMIME-Version: 1.0\n"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a small model of bytes."""
    folder = tmp_path_factory.mktemp("model")
    GPT2LMHeadModel(GPT2Config(vocab_size=257, n_positions=32, n_embd=16, n_layer=1, n_head=2)).save_pretrained(folder)
    return folder


OTHER_FILES = {
    "lesson.ipynb": (
        json.dumps(NOTEBOOK).encode(),
        "is a Jupyter notebook, not text. Convert it first, for example with: jupyter",
    ),
    "lesson": (json.dumps(NOTEBOOK, indent=1).encode(), "is a Jupyter notebook"),
    "page.mht": (HEADERS + TEXT, "is a web archive in MHTML"),
    "saved": (b"From: <Saved by Blink>\n" + HEADERS + TEXT, "is a web archive in MHTML"),
    "oldest.pkl": (pickle.dumps(["some text"], protocol=0), "is a Python pickle"),
    "lib.a": (b"!<arch>\n/               0     0     0     0       14        `\n" + TEXT, "is a library or Debian package"),
    "model.tflite": (b"\x20\0\0\0TFL3" + NOISE, "is a TensorFlow Lite model"),
    "model.mlmodel": (b"\x08\x04\x12\x10" + NOISE, "is a Core ML model"),
    "graph.pb": (b"\n\x10\n\x05input\x12" + NOISE, "is a TensorFlow graph"),
    "old.bin": (b"lmgg" + NOISE, "is a GGML file of weights"),
    "table.dta": (b"<stata_dta><header>" + NOISE, "is a Stata table"),
    "table.sas7bdat": (bytes(12) + NOISE, "is a SAS table"),
    "table.sav": (b"$FL2@(#) SPSS DATA FILE" + NOISE, "is an SPSS table"),
    "a.mat": (b"MATLAB 5.0 MAT-file" + b" " * 100 + NOISE, "is a MATLAB file"),
    "a.rds": (gzip.compress(b"X\n\0\0\0\3" + NOISE), "is a file of R objects"),
    "speech.mp3": (b"\xff\xfb\x90\x64" + NOISE, "is a recording"),
    "speech.m4a": (b"\0\0\0\x20ftypM4A " + NOISE, "is an MP4 recording"),
    "book.mobi": (b"A book".ljust(60, b"\0") + b"BOOKMOBI" + TEXT, "is a Kindle book, not text. .*: ebook-convert "),
    "wiki.zim": (b"ZIM\x04" + NOISE, "is a ZIM archive of a wiki, not text. Unpack it first, for example with: zimdump dump"),
    "help.chm": (b"ITSF\3\0\0\0" + NOISE, "is a compiled HTML help, not text"),
    "a.snappy": (b"\xff\x06\0\0sNaPpY" + NOISE, "is a Snappy file, not text"),
    "sp.model": (b"\n\x0e\n\x05<unk>\x15\0\0\0\0" + NOISE, "is a SentencePiece vocabulary"),
}


@pytest.mark.parametrize("name", OTHER_FILES)
def test_other_files_are_named_and_refused_as_text(tmp_path: Path, name: str) -> None:
    content, problem = OTHER_FILES[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=problem):
        find_text_files(str(tmp_path / name))


@pytest.mark.parametrize("start", [b"Title: A book\nAuthor: Somebody\n\n", b"From the start: it rained.\n", b"{'cells': 1}\n"])
def test_texts_that_begin_like_them_are_read(tmp_path: Path, start: bytes, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.txt").write_bytes(start + TEXT)
    assert "".join(Text(find_text_files(str(tmp_path / "a.txt"))).pieces()).encode() == start + TEXT
    assert not caplog.records


@pytest.mark.parametrize("start", [b"From a@b.org Thu Nov 26 19:58:35 2026\nSubject: x\n\n", HEADERS, b"Received: by x\n\ta\n"])
def test_e_mails_are_read_with_a_warning(tmp_path: Path, start: bytes, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "mail.mbox").write_bytes(start + TEXT)
    assert find_text_files(str(tmp_path / "mail.mbox"))
    assert "contains e-mails: their headers and encoded attachments are part of the text" in caplog.text


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_nothing_waits_for_a_pipe(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    problem = r"pipe cannot be read: it is a pipe, not a regular file\. Save its content to a file first\."
    for read in (find_source, find_text_files, build_tokenizer, find_tasks):
        with pytest.raises(UserError, match=problem):
            read(str(pipe))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_a_prompt_is_read_from_a_pipe(script: Script, tmp_path: Path, weights: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    threading.Thread(target=(tmp_path / "pipe").write_text, args=("The quick brown fox",), daemon=True).start()
    done = script("generate.py", f"pretrained={weights}", "tokenizer=byte", "prompt_file=pipe", "sampler.max_new_tokens=2")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("The quick brown fox")


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["prompt_file=."], "prompt_file=.: this is a folder. Give a file in it."),
        (["prompts=."], "prompts=.: this is a folder. Give a file in it."),
        (["prompts=/dev/null"], "prompts=/dev/null: this is a pipe or a device, which cannot be read twice."),
        (["prompt_file=/dev/zero"], "prompt_file=/dev/zero has more than 20,000,000 bytes. Shorten it."),
        (["tokenizer=cover.png"], "cover.png is a PNG image, not a file of a tokenizer."),
        (["tokenizer=text.txt"], "text.txt is a text file, not a file of a tokenizer."),
        (["prompts=twice.jsonl"], "prompts=twice.jsonl: line 1: 'prompt' is given twice."),
    ],
)
def test_what_is_no_prompt_or_tokenizer_is_named(
    script: Script, tmp_path: Path, weights: Path, arguments: list[str], problem: str
) -> None:
    (tmp_path / "text.txt").write_bytes(TEXT)
    (tmp_path / "cover.png").write_bytes(b"\x89PNG\r\n\x1a\n" + NOISE)
    (tmp_path / "twice.jsonl").write_text('{"prompt": "a", "prompt": "b"}\n')
    done = script(
        "generate.py", f"pretrained={weights}", *(["tokenizer=byte"] if "tokenizer" not in arguments[0] else []), *arguments
    )
    assert (done.returncode, problem in done.stderr) == (2, True), done.stderr


@pytest.mark.parametrize("name", ["cover.png", "book.docx", "wide.jsonl"])
def test_what_is_no_task_is_named(tmp_path: Path, name: str) -> None:
    contents = {
        "cover.png": b"\x89PNG\r\n\x1a\n" + NOISE,
        "book.docx": b"PK\x03\x04" + NOISE,
        "wide.jsonl": "{}".encode("utf-16"),
    }
    (tmp_path / name).write_bytes(contents[name])
    with pytest.raises(UserError, match=r"is a PNG image, not|is a word processor document, not|is text in UTF-16\. Save it"):
        find_tasks(str(tmp_path / name))


def test_programs_of_pytorch_are_no_weights(tmp_path: Path) -> None:
    layer = torch.nn.Linear(2, 2)
    torch.jit.save(torch.jit.trace(layer, torch.zeros(1, 2)), str(tmp_path / "script.pt"))  # type: ignore[no-untyped-call]
    with pytest.raises(
        UserError, match=r"is a TorchScript program, not only weights\. Save these alone: torch\.save\(torch\.jit"
    ):
        find_source(tmp_path / "script.pt")
    torch.export.save(torch.export.export(layer, (torch.zeros(1, 2),)), tmp_path / "program.pt2")
    with pytest.raises(UserError, match=r"is a program of torch\.export, not only weights"):
        find_source(tmp_path / "program.pt2")


def test_weights_of_pytorch_with_the_name_of_safetensors_are_named(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"was written by torch\.save, despite its name\. Rename it, for example to model\.pt$"):
        find_source(tmp_path / "model.safetensors")


def test_held_out_texts_are_called_by_their_setting(train: Train, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").touch()
    (tmp_path / "cover.png").write_bytes(b"\x89PNG\r\n\x1a\n" + NOISE)
    with pytest.raises(UserError) as caught:
        train(f"evaluation.texts=['{tmp_path}/empty.txt','{tmp_path}/cover.png']")
    empty, picture = caught.value.problems
    assert empty.endswith("Give some text with evaluation.texts=[FILE].")
    assert picture.startswith(f"evaluation.texts={tmp_path}/cover.png is a PNG image, not text.")


def test_held_out_texts_keep_names_of_other_alphabets() -> None:
    assert _short_names(["книга.txt", "проза.txt", "texte/été.txt"]) == ["книга", "проза", "été"]


def test_a_path_is_no_url() -> None:
    with pytest.raises(UserError, match=r"^data\.url=a\.txt is not a URL, .* A file on this machine: data\.path=a\.txt$"):
        check_url("a.txt", setting="data.url")


@pytest.mark.parametrize(("typed", "answer"), [("--version", "gpt-pretrain "), ("help", "Usage: gpt-pretrain COMMAND")])
def test_all_commands_tell_their_version_and_usage(script: Script, typed: str, answer: str) -> None:
    done = script("-m", "gpt_pretrain", typed)
    assert (done.returncode, done.stdout.startswith(answer)) == (0, True), done.stderr


def test_a_file_is_no_run_folder(script: Script, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_bytes(TEXT)
    done = script("train.py", "resume=text.txt")
    assert done.stderr == "error: text.txt is a file, but the folder of a run is needed, or a file in its folder checkpoints.\n"


def test_an_item_of_a_list_that_it_does_not_have_is_explained(script: Script) -> None:
    done = script("train.py", "evaluation.texts.0=a.txt")
    assert done.stderr == (
        "error: evaluation.texts.0: this list has no item 0. A list is set as a whole: 'evaluation.texts=[ITEM,ITEM]'\n"
    )


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["a.txt", "ouput=x"], "ouput=x: there is no such setting. Did you mean out?"),
        (["a.txt", "out=x", "tokeniser=byte"], "tokeniser=byte: there is no such setting. Did you mean tokenizer?"),
        (["a.txt", "out", "=x"], "out: this setting has no value. Type out=VALUE without spaces."),
    ],
)
def test_a_mistyped_setting_is_no_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], problem: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        parse_arguments(arguments, PrepareSettings, usage="", positional="inputs")
    assert caught.value.problems[0] == problem
    (tmp_path / "tokeniser=byte").touch()
    settings = parse_arguments(["tokeniser=byte", "out=x"], PrepareSettings, usage="", positional="inputs")
    assert settings.inputs == ["tokeniser=byte"]


def test_a_record_has_its_text_once() -> None:
    with pytest.raises(InvalidRecordError, match="'text' is given twice"):
        record_text(b'{"text": "one", "text": "two"}', "text", is_json=True)
    assert record_text(b'{"text": "\\"text\\"", "meta": {"text": 1}}', "text", is_json=True) == '"text"'
    with pytest.raises(InvalidRecordError, match="question of a task"):
        record_text(b'{"context": "a", "continuation": "b"}', "text", is_json=True)


def test_reasons_of_the_library_are_whole_sentences(script: Script) -> None:
    done = script("train.py", "model._target_=os.system", "tokenizer=byte", "data=sample", "trainer.accelerator=cpu")
    assert done.stderr.startswith("error: model._target_=os.system cannot be built: ")
    assert done.stderr.rstrip().endswith(".")
