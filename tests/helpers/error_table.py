"""List every message of the program, and whether the tests make it.

`RECORD_MESSAGES=FOLDER pytest ...` writes the messages that the tests make into a folder, one file per process; then
`python -m tests.helpers.error_table FOLDER` prints a table of all messages in the code. `make messages` does both.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from gpt_pretrain import errors
from gpt_pretrain.system import reading
from gpt_pretrain.system.tables import format_table
from gpt_pretrain.texts.containers import decompression
from gpt_pretrain.texts.records import record_text
from gpt_pretrain.tokenizers.patterns import syntax
from tests.helpers import refusals

ROOT = Path(__file__).parents[2]
VARIABLE = "RECORD_MESSAGES"
HOLE = "{}"  # a value that the message fills in
FIELD = re.compile(r"\{\w+\}")  # one that is filled in later
PROBLEM = re.compile(r"problem|refus|explain|damage|misfit|unsupported|reason|mistake")
LOGGED = {"info", "warning", "error"}


@dataclass(frozen=True)
class Message:
    """A text of the program that a user can see.

    Attributes:
        kind: "error" for what stops a command, "log" for what is logged, "text" for everything else, such as
            part of a message, or what is printed, which is not recorded.
    """

    file: str
    line: int
    kind: str
    template: str

    def matches(self, made: str) -> bool:
        """Return whether this message, with any values, is in a text that a test made."""
        parts = self.template.split(HOLE)
        return all(part in made for part in parts) and bool(re.search(".*?".join(map(re.escape, parts)), made, re.DOTALL))


def find_messages(file: Path) -> Iterator[Message]:
    """Yield the sentences in a module, apart from its docstrings."""
    tree = ast.parse(file.read_text(encoding="utf-8"))

    def walk(node: ast.AST, kind: str) -> Iterator[Message]:
        if _is_for_programmers(node):
            return
        kind = _kind(node) or kind
        template = _template(node)
        if template is not None:
            if kind == "log":
                template = re.sub(r"%[-,.\d]*[a-z]", HOLE, template)
            if _is_sentence(template):
                yield Message(str(file.relative_to(ROOT)), node.lineno, kind, template)  # type: ignore[attr-defined]
            return
        for child in ast.iter_child_nodes(node):
            yield from walk(child, kind)

    yield from walk(tree, "text")


def _is_for_programmers(node: ast.AST) -> bool:
    """Return whether a node holds no message for users: an assertion or a docstring."""
    match node:
        case ast.Assert() | ast.Expr(value=ast.Constant()) | ast.Raise(exc=ast.Call(func=ast.Name(id="AssertionError"))):
            return True
    return False


def _kind(node: ast.AST) -> str | None:
    """Return the kind of the messages below a node, or None if it is the kind of the node above."""
    match node:
        case ast.Raise(exc=ast.Call()):
            return "error"
        case ast.FunctionDef(name=name) if PROBLEM.search(name):
            return "error"
        case ast.FunctionDef():
            return "text"
        case ast.AugAssign(target=ast.Name(id=name) | ast.Attribute(attr=name)) if PROBLEM.search(name):
            return "error"
        case ast.Call(func=ast.Attribute(value=ast.Name(id=name) | ast.Attribute(attr=name), attr="append" | "extend")) if (
            PROBLEM.search(name)
        ):
            return "error"
        case ast.Call(func=ast.Attribute(attr=name) | ast.Name(id=name)) if name in LOGGED:
            return "log"
    return None


def _template(node: ast.AST) -> str | None:
    """Return the text of a string, with a mark for each value, or None for all else."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return FIELD.sub(HOLE, node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(FIELD.sub(HOLE, str(part.value)) if isinstance(part, ast.Constant) else HOLE for part in node.values)
    return None


def _is_sentence(template: str) -> bool:
    """Return whether a text is meant for people: at least two words of letters."""
    return len(re.findall(r"(?<!\S)[A-Za-z']{2,}(?=[\s.,:;?!]|$)", template)) >= 2


def record_messages() -> None:
    """Have this process, and those that it forks, write each message once into the folder that the variable names."""
    if not os.environ.get(VARIABLE):
        return
    folder = Path(os.environ[VARIABLE]).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    seen: set[str] = set()

    def record(text: str) -> None:
        if text not in seen:
            seen.add(text)
            # A test may limit the size of files.
            with suppress(OSError), (folder / f"{os.getpid()}.jsonl").open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(text) + "\n")

    for error in (
        *(errors.UserError, errors.LostEndError, reading.DamagedFileError),
        *(decompression.DamagedArchiveError, record_text.InvalidRecordError, syntax.UnknownSyntaxError),
    ):
        error.__init__ = _recording(error.__init__, record)  # type: ignore[method-assign]
    if importlib.util.find_spec("fastapi") is not None:
        from gpt_pretrain.serving import guards

        guards.error_body = _recording_body(guards.error_body, record)
    # Of exceptions of Python's own classes, those count that a test expects.
    pytest.ExceptionInfo.fill_unfilled = _recording_caught(pytest.ExceptionInfo.fill_unfilled, record)  # type: ignore[method-assign]
    refusals.said = _recording_text(refusals.said, record)
    handler = logging.Handler()
    handler.emit = lambda entry: record(entry.getMessage())  # type: ignore[method-assign, assignment]
    logging.getLogger("gpt_pretrain").addHandler(handler)
    logging.getLogger("gpt_pretrain").setLevel(logging.INFO)


def _recording(original: Callable[..., None], record: Callable[[str], None]) -> Callable[..., None]:
    def recorded(self: Exception, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        record(str(self))

    return recorded


def _recording_body(original: Callable[..., Any], record: Callable[[str], None]) -> Callable[..., Any]:
    def recorded(status: int, message: str, **kwargs: Any) -> Any:
        record(message)
        return original(status, message, **kwargs)

    return recorded


def _recording_caught(original: Callable[..., None], record: Callable[[str], None]) -> Callable[..., None]:
    def recorded(self: Any, caught: tuple[Any, BaseException, Any]) -> None:
        original(self, caught)
        record(str(caught[1]))

    return recorded


def _recording_text(original: Callable[..., str], record: Callable[[str], None]) -> Callable[..., str]:
    def recorded(*args: Any) -> str:
        text = original(*args)
        record(text)
        return text

    return recorded


def main(folder: Path) -> None:
    """Print the table, and how many messages of each kind the tests make."""
    made = [json.loads(line) for file in folder.glob("*.jsonl") for line in file.read_text(encoding="utf-8").splitlines()]
    made = list(dict.fromkeys(made))
    files = sorted((ROOT / "gpt_pretrain").rglob("*.py"))
    rows = [(message, any(map(message.matches, made))) for file in files for message in find_messages(file)]
    for message, is_made in rows:
        print(f"{message.file}:{message.line} {message.kind} {'made' if is_made else '-'}: {message.template!r}")
    counts = [["kind", "messages", "made by a test"]]
    for kind in ("error", "log", "text"):
        found = [is_made for message, is_made in rows if message.kind == kind]
        counts.append([kind, str(len(found)), str(sum(found))])
    print(format_table(counts))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
