"""Find the mistakes that make a file of settings unreadable, such as tabs, missing blanks and duplicate names."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import yaml
from omegaconf import OmegaConf

from gpt_pretrain.errors import first_line

FORM = "A line has the form `name: value`, with a blank after the colon, and begins below the names of its group."
NO_BREAK_SPACES = ("\u00a0", "\u202f", "\u3000")
LEVELS = ("*.y*ml", "*/*.y*ml", "*/*/*.y*ml")  # files, options of groups such as model, and of groups such as hydra/launcher


def settings_file_problems(folders: Sequence[Path]) -> list[str]:
    """List the mistakes for which files of settings cannot be read.

    Args:
        folders: The folders with the options of groups.
    """
    files = [file for folder in folders for level in LEVELS for file in sorted(folder.glob(level))]
    return [f"{file}: {problem}" for file in files if (problem := reading_problem(file)) is not None]


def reading_problem(file: Path) -> str | None:
    """Return the mistake for which a file cannot be read, with its line and what to do about it."""
    try:
        content = file.read_bytes()
    except OSError as error:
        return f"cannot be read ({error.strerror})."
    try:
        text = content.decode()
        OmegaConf.load(io.StringIO(text))
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        return f"line {line} has characters that are not UTF-8. Save the file as UTF-8."
    except yaml.MarkedYAMLError as error:
        return _explain_mark(error, text)
    except Exception as error:  # of OmegaConf, such as the OSError about a file that holds a number
        return f"it does not hold settings ({first_line(error)}). {FORM}"
    return None


def _explain_mark(error: yaml.MarkedYAMLError, text: str) -> str:
    problem = str(error.problem)
    mark = error.context_mark if problem.startswith("could not find expected ':'") else error.problem_mark
    if mark is None:
        return f"it is not YAML ({problem}). {FORM}"
    line = [*text.splitlines(), ""][min(mark.line, len(text.splitlines()))]
    where = f"line {mark.line + 1}, `{line.strip()}`"
    if "\t" in line:
        return f"{where}, contains a tab. Replace it by blanks."
    if any(space in line for space in NO_BREAK_SPACES):
        return f"{where}, contains a no-break space. Replace it by a blank."
    if problem.startswith("found duplicate key"):
        return f"{where}, sets {problem.split()[-1]} again. Keep one of the two lines."
    if problem.startswith("mapping values are not allowed") and line.count(": ") > 1:
        return f"{where}, has a second colon. Put the value within quotation marks."
    return f"{where}, cannot be read ({problem}). {FORM}"
