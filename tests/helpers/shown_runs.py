"""Runs made by hand, whose files stand for a stranger's, and how the program shows them."""

from __future__ import annotations

import contextlib
import io
import shutil
from pathlib import Path

from gpt_pretrain.commands.compare import compare_command

ESCAPES = "\x1b]0;PWNED\x07\x1b[2J\x1b]52;c;Y3VybA==\x07\x9b31m"  # title, clear the screen, clipboard, a color in one byte


def made(folder: Path, **files: str) -> Path:
    """Make a run's folder from the text of its files; _ in a keyword stands for the dot."""
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "last.ckpt").touch()
    good = {
        "run_json": '{"state": "finished"}',
        "metrics_csv": "step,tokens_seen,train/loss,val/loss\n0,1,2.0,2.0\n1,2,1.0,1.5\n",
    }
    for name, text in (good | files).items():
        (folder / name.replace("_", ".")).write_text(text, encoding="utf-8")
    return folder


def compared(run: Path, other: Path) -> str:
    """Return what the comparison of two runs prints; the picture's text is checked elsewhere."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
        compare_command([str(run), str(other), f"out={run.parent / 'x.svg'}"])
    return text.getvalue() + (run.parent / "x.svg").read_text(encoding="utf-8")


def has_raw_controls(text: str) -> bool:
    """Return whether a text has control characters other than line feeds and tabs."""
    return any((ord(char) < 32 and char not in "\n\t") or 0x7F <= ord(char) < 0xA0 for char in text)


def put_link(path: Path, target: Path) -> None:
    """Replace a file or folder by a link."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.symlink_to(target)


# Writing: a run
