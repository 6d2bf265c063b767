"""Read files with a prompt on each line, and write answers as lines of JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

from gpt_pretrain.errors import UserError
from gpt_pretrain.generation.prompts import Continuation
from gpt_pretrain.system.json_files import check_names, parse_json_value
from gpt_pretrain.system.reading import DamagedFileError, open_regular
from gpt_pretrain.system.recognition.conversion import quote_path
from gpt_pretrain.system.recognition.file_kinds import (
    ARRAY,
    AS_TEXT_ADVICE,
    COMPRESSED,
    EMPTY,
    HEAD,
    LINES,
    OBJECTS,
    ROWS,
    TEXT,
    FileKind,
)
from gpt_pretrain.system.recognition.file_recognition import is_text_kind, recognize
from gpt_pretrain.system.shown_values import describe_value

# The fields of an answer besides the prompt. Fields of the prompt with the same names are left out.
ANSWER_FIELDS = ("line", "sample", "text", "finish_reason", "prompt_tokens", "new_tokens")
MAX_LINE_BYTES = 20_000_000  # Longer than the context of any model.
PROMPT_FIELD = re.compile(rb'(?:\xef\xbb\xbf)?\s*\{\s*"prompt"\s*:')  # The start of a JSON line in a file named like a text.


@dataclass(frozen=True)
class NumberedPrompt:
    """A prompt of a file.

    Args:
        line: Its line, counted from 1.
        text: The prompt.
        fields: The other fields of its JSON object.
    """

    line: int
    text: str
    fields: dict[str, Any]


def check_prompts(path: Path, *, name: str) -> int:
    """Check all lines of a file of prompts, and return the number of prompts.

    Args:
        name: The setting with its value, for messages.

    Raises:
        UserError: As in `read_prompts`, and if there is no prompt.
    """
    count = sum(1 for _ in read_prompts(path, name=name))
    if not count:
        raise UserError(f"{name}: the file has no prompts. Write one on each line.")
    return count


def read_prompts(path: Path, *, name: str) -> Iterator[NumberedPrompt]:
    """Yield the prompts of a file. By its name, it has JSON lines or a prompt on each line. Empty lines are left out.

    A line of JSON is an object with the field "prompt", or a string. Only one line at a time is in memory.

    Raises:
        UserError: If the file cannot be read, or a line is not a prompt.
    """
    try:
        with open_regular(path) as stream:
            is_json = _holds_json(path, stream.read(HEAD), name=name)
            stream.seek(0)
            for number, line in enumerate(_lines(stream, name=name), start=1):
                text = _decoded(line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line, f"{name}: line {number}")
                if text.strip() if is_json else text:
                    yield _from_json(text, number, name=name) if is_json else NumberedPrompt(number, text, {})
    except OSError as error:
        raise UserError(f"{name} cannot be read: {error.strerror or error}.") from error


def answer_line(prompt: NumberedPrompt, made: Continuation, *, sample: int) -> str:
    """Return a line of JSON with the fields of a prompt, followed by a continuation."""
    answer: dict[str, Any] = prompt.fields | {
        "line": prompt.line,
        "sample": sample,
        "prompt": prompt.text,
        "text": made.text.removeprefix(prompt.text),
        "finish_reason": made.finish_reason,
        "prompt_tokens": len(made.prompt_ids),
        "new_tokens": len(made.new_ids),
    }
    if made.logprobs is not None:
        answer["logprobs"] = made.logprobs
    return json.dumps(answer, ensure_ascii=True) + "\n"


def check_prompt_text(path: Path, head: bytes, *, name: str, as_text: bool = False) -> FileKind:
    """Return the kind of a file. It must be text in UTF-8. A file with the name of a table or JSON may also be one.

    Args:
        head: Its first HEAD bytes, or all of them.
        name: The setting with its value, for messages.
        as_text: Accept JSON, tables and markup as text, whatever the file's name.

    Raises:
        UserError: If it is of another kind. The message names the kind.
    """
    kind = recognize(path.name, head)
    if kind.advice.endswith(AS_TEXT_ADVICE) and (as_text or not is_text_kind(path.suffix.lower())):
        kind = recognize(path.name, head, as_text=True)
    if kind.form in COMPRESSED:
        raise UserError(f"{name} is {kind.described()}, not text. Decompress it first.")
    if kind.encoding.name != "utf-8":
        raise UserError(f"{name} is text in {kind.encoding.name[:6].upper()}. Save it as UTF-8.")
    if kind.form not in (TEXT, LINES, ARRAY, OBJECTS, ROWS, EMPTY):
        raise UserError(f"{name} is {kind.described()}, not text. Give a file with text in UTF-8.")
    return kind


def _holds_json(path: Path, head: bytes, *, name: str) -> bool:
    """Return whether a file has JSON on each line instead of text.

    Raises:
        UserError: If it does not have one prompt on each line.
    """
    kind = check_prompt_text(path, head, name=name)
    if kind.form in (ARRAY, OBJECTS):
        query = "'.[]'" if kind.form == ARRAY else "."
        raise UserError(
            f"{name} is {kind.described()}, but each prompt has a line of its own. Convert it: "
            f"jq -c {query} {quote_path(str(path))} > prompts.jsonl"
        )
    if kind.form == ROWS:
        raise UserError(
            f"{name} is {kind.described()}. Write a prompt on each line of a text file, or a file of JSON lines (.jsonl)."
        )
    if kind.form == TEXT and PROMPT_FIELD.match(head):
        raise UserError(
            f"{name} holds JSON with prompts, but its name does not end in .jsonl, so it would be read as text. Rename it."
        )
    return kind.form == LINES


def _lines(stream: BufferedReader, *, name: str) -> Iterator[bytes]:
    """Yield the lines of a file without their ends. An end is a line feed, a carriage return, or both.

    Raises:
        UserError: If a line is too long.
    """
    number = 0
    while line := stream.readline(MAX_LINE_BYTES + 1):
        if len(line) > MAX_LINE_BYTES:
            raise UserError(f"{name}: line {number + 1} has more than {MAX_LINE_BYTES:,} bytes. Shorten it.")
        line, start = line.removesuffix(b"\n").removesuffix(b"\r"), 0
        while start <= len(line):  # One at a time: twenty megabytes may contain millions.
            end = line.find(b"\r", start)
            end = len(line) if end < 0 else end
            number += 1
            yield line[start:end]
            start = end + 1


def _decoded(line: bytes, place: str) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{place} is not UTF-8 text ({error.reason} at byte {error.start}). Save it as UTF-8.") from error


def _from_json(text: str, number: int, *, name: str) -> NumberedPrompt:
    try:
        value = parse_json_value(text)
        check_names(text)
    except DamagedFileError as error:
        raise UserError(f"{name}: line {number}: {error}. A line of JSON holds one object with a prompt.") from error
    fields = value if isinstance(value, dict) else {"prompt": value}
    prompt = fields.get("prompt")
    if not isinstance(prompt, str) or not prompt:
        found = (
            "it has no field prompt"
            if "prompt" not in fields
            else f"its prompt is {describe_value(prompt) if prompt != '' else 'empty'}"
        )
        raise UserError(f'{name}: line {number}: {found}. Write {{"prompt": "Every effort moves you"}}.')
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{name}: line {number}: its prompt has half a surrogate pair. Remove it.") from error
    return NumberedPrompt(number, prompt, {key: item for key, item in fields.items() if key != "prompt"})
