"""Prompts from a file, and continuations as lines of JSON."""

import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from types import SimpleNamespace

import pytest

from gpt_pretrain.commands.generate import _open_answers
from gpt_pretrain.errors import UserError
from gpt_pretrain.generation.prompt_files import check_prompts, read_prompts

Script = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run(train: Callable[..., float], tmp_path: Path) -> Path:
    """Return the folder of a short run."""
    train("trainer.max_epochs=1", "logger=none", run_dir=tmp_path / "run")
    return tmp_path / "run"


def lines(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


def test_prompts_of_a_file_are_answered_in_lines_of_json(script: Script, run: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "Every effort", "id": 7}\n\n"moves"\n')
    more = ("sampler.max_new_tokens=6", f"checkpoint={run}", "precision=32-true")
    done = script("generate.py", "prompts=prompts.jsonl", "logprobs=3", "out=made.jsonl", *more)
    assert done.returncode == 0, done.stderr
    first, second = lines((tmp_path / "made.jsonl").read_text())
    assert (first["id"], first["line"], first["sample"], first["prompt"]) == (7, 1, 1, "Every effort")
    assert (second["line"], second["prompt"], second["finish_reason"]) == (3, "moves", "length")
    logprobs = first["logprobs"]
    assert isinstance(logprobs, dict)
    assert len(logprobs["tokens"]) == first["new_tokens"] == 6
    assert all(own == max(top.values()) for own, top in zip(logprobs["token_logprobs"], logprobs["top_logprobs"], strict=True))
    plain = script("generate.py", "prompt=Every effort", *more)
    assert plain.stdout == f"Every effort{first['text']}\n"
    again = script("generate.py", "prompts=prompts.jsonl", "out=made.jsonl", *more)
    assert "out=made.jsonl: this file exists already." in again.stderr
    assert again.returncode != 0
    failed = script("generate.py", "prompts=prompts.jsonl", "out=other.jsonl", "checkpoint=missing")
    assert failed.returncode != 0 and not (tmp_path / "other.jsonl").exists(), "the command can be tried again"


def test_nobody_is_told_to_delete_what_is_no_file(tmp_path: Path) -> None:
    with ExitStack() as stack:
        for out, message in (
            (str(tmp_path), "is a folder. Name a new file;"),
            ("/dev/null", "is a device, a pipe or a broken link."),
        ):
            settings = SimpleNamespace(prompts=None, out=out)
            with pytest.raises(UserError, match=re.escape(f"out={out} {message}")):
                _open_answers(settings, stack)  # type: ignore[arg-type]


def test_a_stop_string_ends_the_text_of_generate(script: Script, run: Path) -> None:
    more = ("sampler.max_new_tokens=8", f"checkpoint={run}", "precision=32-true", "prompt=Every effort")
    whole = script("generate.py", *more).stdout.removesuffix("\n")
    new = whole.removeprefix("Every effort")
    stop = new[2:4]
    done = script("generate.py", *more, f"stop={json.dumps([stop])}", "logprobs=1")
    assert done.stdout == f"Every effort{new[: new.index(stop)]}\n"
    assert "logprobs=1 has no effect on plain text." in done.stderr


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "x"}\n', "line 1: it has no field prompt"),
        ("a.jsonl", b'{"prompt": "x"}\n{"prompt": 3}\n', "line 2: its prompt is a number"),
        ("a.jsonl", b'{"prompt": ""}\n', "line 1: its prompt is empty"),
        ("a.jsonl", b"{oops\n", "line 1: it cannot be read as JSON"),
        ("a.jsonl", b'"\\ud800"\n', "half a surrogate pair"),
        ("a.txt", b"fine\n\xff\n", "line 2 is not UTF-8 text"),
        ("a.txt", b"\n\r\n", "the file has no prompts"),
    ],
)
def test_lines_that_are_no_prompts_are_explained(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        check_prompts(tmp_path / name, name="prompts=a")


def test_lines_of_text_are_prompts_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b'\xef\xbb\xbf{"one": 1}\r\n\n two \n')
    found = [(prompt.line, prompt.text) for prompt in read_prompts(tmp_path / "a.txt", name="prompts=a.txt")]
    assert found == [(1, '{"one": 1}'), (3, " two ")]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.json",
            b'[{"prompt": "x"}, {"prompt": "y"}]',
            r"JSON array, .* Convert it: jq -c '\.\[\]' .*a\.json > prompts\.jsonl",
        ),
        ("a.json", b'{\n "prompt": "x"\n}\n', r"JSON file, .* Convert it: jq -c \. "),
        ("a.jsonl", b'["x", "y"]\n', "JSON array"),
        ("a.csv", b"prompt,id\nx,1\n", "is a table in CSV. Write a prompt on each line"),
        ("a.txt", b'{"prompt": "x"}\n{"prompt": "y"}\n', r"its name does not end in \.jsonl, .* Rename it"),
        ("a.txt", "one\ntwo words\n".encode("utf-16-le"), "is text in UTF-16. Save it as UTF-8"),
        ("a.jsonl.gz", b"\x1f\x8b\x08\0\0\0\0\0", "is a gzip file, not text. Decompress it first"),
        ("a.pdf", b"%PDF-1.7\n%\xe2\xe3\n", "is a PDF document, not text"),
        ("a.html", b"<!doctype html>\n<p>x</p>\n", "is an HTML page, not text"),
    ],
)
def test_a_file_that_holds_prompts_in_another_way_is_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        check_prompts(tmp_path / name, name=f"prompts={name}")


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lines_of_prompts_end_in_any_way(tmp_path: Path, end: str) -> None:
    (tmp_path / "a.txt").write_bytes(f"one{end}{end}two{end}".encode())
    found = [(prompt.line, prompt.text) for prompt in read_prompts(tmp_path / "a.txt", name="prompts=a.txt")]
    assert found == [(1, "one"), (3, "two")]


def test_json_lines_are_read_by_any_name_of_json(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"prompt": "x", "id": 1}\n{"prompt": "y"}\n')
    assert [prompt.text for prompt in read_prompts(tmp_path / "a.json", name="prompts=a.json")] == ["x", "y"]


def test_a_typed_line_may_be_long_and_pasted_lines_stay_together(tmp_path: Path) -> None:
    readline = pytest.importorskip("readline")
    program = "from gpt_pretrain.commands import generate; print([len(one) for one in generate._interactive_prompts()])"
    terminal, inside = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=inside,
        stdout=inside,
        stderr=inside,
        cwd=tmp_path,
        env={**os.environ, "TERM": "xterm"},
    )
    os.close(inside)
    shown = b""
    while b"> " not in shown:
        shown += os.read(terminal, 1000)
    pasted = b"\x1b[200~one\ntwo\x1b[201~\n"  # as a terminal sends it once it is asked to
    os.write(terminal, b"x" * 6000 + b"\n" + pasted + b"\n")
    with suppress(OSError):  # once the program has ended
        while part := os.read(terminal, 100_000):
            shown += part
    assert process.wait(60) == 0
    assert b"[6000, 7]" in shown
    assert b"\x1b[?2004h" in shown or "libedit" in str(readline.__doc__), "The terminal is asked to keep pasted lines together."
