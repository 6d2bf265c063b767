"""No file and no model controls the terminal or forges a line of the logs."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from gpt_pretrain.checkpoints.pretrained import open_weights
from gpt_pretrain.generation.config import SamplerConfig
from gpt_pretrain.generation.decoding import DecodingModel
from gpt_pretrain.generation.prompts import PromptOptions, TextModel, continue_prompt
from gpt_pretrain.runs.reader import read_run
from gpt_pretrain.system.tables import format_table
from gpt_pretrain.system.terminal import ConsoleHandler, LogFileHandler, console
from tests.helpers.hostile_files import SMALL, hostile_run
from tests.helpers.shown_runs import ESCAPES, compared, has_raw_controls, made

Script = Callable[..., subprocess.CompletedProcess[str]]


def test_a_model_cannot_control_the_terminal(finished_run: Path, tmp_path: Path) -> None:
    def says_escape(content: dict[str, Any]) -> None:
        state = content["state_dict"]
        for name in state:
            state[name] = torch.zeros_like(state[name])
            if name.endswith(("final_norm.bias", "final_norm.shift", "ln_f.bias")):
                state[name][0] = 1.0
            if "tok_emb" in name or "out_head" in name:
                state[name][27, 0] = 9.0

    weights = open_weights(hostile_run(finished_run, tmp_path / "run", says_escape))
    model, tokenizer = DecodingModel(weights.build(), dtype=torch.float32), weights.build_tokenizer()
    texts = []
    for terminal in (True, False):
        stream = io.StringIO()
        stream.isatty = lambda terminal=terminal: terminal  # type: ignore[method-assign]
        with contextlib.redirect_stdout(stream):
            continue_prompt(TextModel(model, tokenizer), "hi\x1b", SamplerConfig(4, 0.0, None, None), PromptOptions(1, 1))
        texts.append(stream.getvalue())
    assert texts == ["hi" + "\\x1b" * 5 + "\n", "hi" + "\x1b" * 5 + "\n"]  # a file gets the text as it is


def test_names_in_files_cannot_control_the_terminal(script: Script, tmp_path: Path) -> None:
    torch.save({f"a{ESCAPES}\nerror: forged": torch.zeros(1)}, tmp_path / "weights.pt")
    (tmp_path / "field.jsonl").write_text(json.dumps({f"f{ESCAPES}": "x"}) + "\n")
    (tmp_path / "ok.jsonl").write_text("".join(json.dumps({"text": f"hello {i} {ESCAPES}"}) + "\n" for i in range(30)))
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "manifest.json").write_text(json.dumps({"format": f"x{ESCAPES}", "version": 1}))
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / f"n{ESCAPES}.txt").write_bytes(b"\xff\xfe\xff")
    prepare = ("-m", "gpt_pretrain", "prepare")
    for arguments in (
        ("generate.py", "pretrained=weights.pt"),
        ("train.py", *SMALL, "data=shards", "data.path=corpus", "plan=true"),
        ("train.py", *SMALL, "data.path=texts", "plan=true"),
        (*prepare, "field.jsonl", "out=out1", "tokenizer=byte", "workers=1"),
        (*prepare, "ok.jsonl", "out=out2", "tokenizer=byte", "workers=1", "report=true"),
        (*prepare, "texts", "out=out3", "tokenizer=byte", "workers=1"),
        (*prepare, "ok.jsonl", "out=out4", "tokenizer=byte", "workers=1", f"text_field={ESCAPES}"),
    ):
        done = script(*arguments)
        assert not has_raw_controls(done.stdout + done.stderr), arguments
        assert not any(line.startswith("error: forged") for line in done.stderr.splitlines())
        assert "Traceback" not in done.stderr, arguments


def test_compare_shows_no_control_characters(tmp_path: Path) -> None:
    metadata = json.dumps({"state": f"finished{ESCAPES}", "precision": f"p{ESCAPES}\nx", "machine": {"device": ESCAPES}})
    run = made(tmp_path / "run", run_json=metadata, config_yaml=json.dumps({"start_context": f"x{ESCAPES}", f"k{ESCAPES}": 1}))
    text = compared(run, made(tmp_path / f"o{ESCAPES[1:8]}"))
    assert not has_raw_controls(text) and "\\x1b" in text


def test_tables_stay_tables() -> None:
    assert format_table([["a", "b"], ["x\ny\t", "\x1b[2J"]]).splitlines() == ["a       b", "x\\ny\\t  \\x1b[2J"]


def logged(handler: logging.Handler, *message: object, **more: Any) -> None:
    handler.setFormatter(logging.Formatter("DATE %(levelname)s %(message)s"))
    handler.handle(logging.LogRecord("name", logging.WARNING, "file", 1, message[0], message[1:], None, **more))  # type: ignore[arg-type]


def test_a_log_line_is_one_message(tmp_path: Path) -> None:
    handler = LogFileHandler(str(tmp_path / "train.log"))
    logged(handler, "the tensor %s of %d at %s", f"x\n touch PWNED{ESCAPES}\nDATE INFO forged", 3, Path("a\nb"))
    logged(handler, "two\nlines\x1b")
    logged(handler, "%(name)s", {"name": "x\ny"})
    handler.close()
    first, second, third, last = (tmp_path / "train.log").read_text().splitlines()
    assert first.startswith(r"DATE WARNING the tensor x\n touch PWNED\x1b") and first.endswith(r"\nDATE INFO forged of 3 at a\nb")
    assert (second, third, last) == ("DATE WARNING two", r"    lines\x1b", r"DATE WARNING x\ny")


def test_the_console_escapes_what_it_logs() -> None:
    with console.capture() as captured:
        logged(ConsoleHandler(), "read %s", f"x{ESCAPES}\nwarning: forged")
    assert not has_raw_controls(captured.get()) and len(captured.get().splitlines()) == 1


def test_recorded_control_characters_stay_data(tmp_path: Path) -> None:
    run = made(tmp_path / "run", run_json=json.dumps({"state": f"x{ESCAPES}"}))
    assert read_run(run).metadata["state"] == f"x{ESCAPES}"
