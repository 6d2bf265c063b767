"""Write and read a file with results of runs. Since it may come from anybody, only numbers and texts are read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, fields
from datetime import datetime
from pathlib import Path
from typing import Any

from gpt_pretrain.errors import UserError
from gpt_pretrain.runs.leaderboard import MAX_AMOUNT, MAX_RUNS, MAX_SETTINGS, MAX_TEXT, Entry
from gpt_pretrain.system.files import write_json
from gpt_pretrain.system.formatting import is_finite_number
from gpt_pretrain.system.json_files import read_json
from gpt_pretrain.system.reading import DamagedFileError
from gpt_pretrain.system.shown_values import short_repr

FORMAT, VERSION = "gpt-pretrain results", 1
MAX_FILE_BYTES = 10_000_000  # An entry has about 1,000 bytes.
MAX_BITS = 100.0


def write_results(entries: Sequence[Entry], path: Path) -> None:
    """Write a results file.

    Raises:
        UserError: If the file exists and is not a results file, or cannot be written.
    """
    if path.exists():
        _read_content(path, remedy="It is not replaced. Choose another name for out=.")
    runs = [{name: value for name, value in asdict(entry).items() if name != "source"} for entry in entries]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"format": FORMAT, "version": VERSION, "runs": runs})
    except OSError as error:
        raise UserError(f"out={path}: this file cannot be written ({error.strerror or error}). Choose another path.") from error


def read_results(path: Path) -> list[Entry]:
    """Return the entries of a results file.

    Raises:
        UserError: If it is not a results file, or an entry has an impossible value.
    """
    content = _read_content(path, remedy="gpt-pretrain leaderboard out=results.json writes such a file.")
    runs = content.get("runs")
    if not isinstance(runs, list) or len(runs) > MAX_RUNS:
        raise UserError(f"{path}: its `runs` must be a list of at most {MAX_RUNS:,} entries.")
    problems = [problem for number, run in enumerate(runs, 1) for problem in _run_problems(run, number)]
    if problems:
        raise UserError(f"{path}: {problems[0]}" + (f" (and {len(problems) - 1:,} more)" if len(problems) > 1 else ""))
    names = {one.name for one in fields(Entry)} - {"source", "settings"}
    return [
        Entry(
            **{name: value for name, value in run.items() if name in names},
            settings=tuple(run.get("settings", ())),
            source=path.name[:MAX_TEXT],
        )
        for run in runs
    ]


def _read_content(path: Path, *, remedy: str) -> dict[str, Any]:
    try:
        content = read_json(path, max_bytes=MAX_FILE_BYTES)
    except OSError as error:
        raise UserError(f"{path}: this file cannot be read ({error.strerror or error}).") from error
    except DamagedFileError as error:
        raise UserError(f"{path}: this is not a results file: {error}. {remedy}") from error
    if content.get("format") != FORMAT:
        raise UserError(f"{path}: this is not a results file: it does not say that its format is {FORMAT!r}. {remedy}")
    if content.get("version") != VERSION:
        found = short_repr(content.get("version"))
        raise UserError(f"{path}: its version is {found}, but this program reads version {VERSION}. A newer release may read it.")
    return content


def _run_problems(run: object, number: int) -> Iterator[str]:
    """Yield the problems of an entry. Fields of later versions are ignored."""
    if not isinstance(run, dict):
        yield f"entry {number:,} is not an object."
        return
    for name, (is_valid, rule) in RULES.items():
        if name not in run and name not in ("run", "bits_per_byte"):
            continue
        if not is_valid(run.get(name)):
            yield f"{name} of entry {number:,} is {short_repr(run.get(name))}, but must be {rule}."


def _is_text(value: object) -> bool:
    return isinstance(value, str) and len(value) <= MAX_TEXT


def _is_optional_text(value: object) -> bool:
    return value is None or _is_text(value)


def _is_amount(value: object) -> bool:
    return value is None or (is_finite_number(value) and 0 <= value < MAX_AMOUNT)


def _is_count(value: object) -> bool:
    return value is None or (_is_amount(value) and type(value) is int)


def _is_share(value: object) -> bool:
    return value is None or (is_finite_number(value) and 0 <= value <= 1)


def _is_bits(value: object) -> bool:
    return is_finite_number(value) and 0 < value < MAX_BITS


def _is_moment(value: object) -> bool:
    if value == "":
        return True
    try:
        return isinstance(value, str) and len(value) <= MAX_TEXT and datetime.fromisoformat(value) is not None
    except ValueError:
        return False


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and len(value) <= MAX_SETTINGS and all(map(_is_text, value))


TEXT_RULE = (_is_text, f"a text of at most {MAX_TEXT} characters")
OPTIONAL_RULE = (_is_optional_text, f"null or a text of at most {MAX_TEXT} characters")
COUNT_RULE = (_is_count, "null or a whole number of at least 0")
SHARE_RULE = (_is_share, "null or a number from 0 to 1")
RULES: dict[str, tuple[Callable[[object], bool], str]] = {
    "bits_per_byte": (_is_bits, f"a number above 0 and below {MAX_BITS:g}"),
    **dict.fromkeys(("run", "text_sha256", "text_name", "machine", "state", "version"), TEXT_RULE),
    **dict.fromkeys(("budget", "tokenizer", "init_from"), OPTIONAL_RULE),
    **dict.fromkeys(("text_characters", "parameters", "tokens_seen"), COUNT_RULE),
    **dict.fromkeys(("train_ratio", "validated"), SHARE_RULE),
    "seconds": (_is_amount, "null or a number of at least 0"),
    "started": (_is_moment, "a time such as 2026-03-04T09:31:05+00:00"),
    "settings": (_is_texts, f"a list of at most {MAX_SETTINGS} texts"),
}
