"""Files with a prompt on each line, and the lines of JSON that answer them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt_pretrain.errors import UserError
from gpt_pretrain.generation.prompts import Continuation
from gpt_pretrain.system.reading import DamagedFileError, describe_value, open_regular, parse_json_value

JSON_LINES = (".jsonl", ".ndjson")
MAX_LINE_BYTES = 20_000_000  # Longer than the context of any model.


@dataclass(frozen=True)
class NumberedPrompt:
    """A prompt of a file.

    Args:
        line: Its line, counted from 1.
        text: The prompt.
        fields: What else its JSON object holds.
    """

    line: int
    text: str
    fields: dict[str, Any]


def check_prompts(path: Path, *, name: str) -> int:
    """Check all lines of a file of prompts, and return the number of prompts.

    Args:
        name: The setting with its value, for messages.

    Raises:
        UserError: As `read_prompts` does, and if there is no prompt.
    """
    count = sum(1 for _ in read_prompts(path, name=name))
    if not count:
        raise UserError(f"{name}: the file has no prompts. Write one on each line.")
    return count


def read_prompts(path: Path, *, name: str) -> Iterator[NumberedPrompt]:
    """Yield the prompts of a file: JSON lines by its ending, and otherwise a prompt on each line; empty lines are left out.

    A line of JSON is an object with the field "prompt", or a string. Only one line at a time is in memory.

    Raises:
        UserError: If the file cannot be read, or a line is no prompt.
    """
    is_json = path.suffix.lower() in JSON_LINES
    try:
        with open_regular(path) as stream:
            for number in range(1, 1 << 62):
                line = stream.readline(MAX_LINE_BYTES + 1)
                if not line:
                    return
                if len(line) > MAX_LINE_BYTES:
                    raise UserError(f"{name}: line {number} has more than {MAX_LINE_BYTES:,} bytes. Shorten it.")
                text = _decoded(line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line, f"{name}: line {number}")
                if text.strip("\r\n") if not is_json else text.strip():
                    yield _from_json(text, number, name=name) if is_json else NumberedPrompt(number, text, {})
    except OSError as error:
        raise UserError(f"{name} cannot be read: {error.strerror or error}.") from error


def answer_line(prompt: NumberedPrompt, made: Continuation, *, sample: int) -> str:
    """Return a line of JSON with a continuation, after the fields that came with its prompt."""
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


def _decoded(line: bytes, place: str) -> str:
    try:
        return line.decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise UserError(f"{place} is not UTF-8 text ({error.reason} at byte {error.start}). Save it as UTF-8.") from error


def _from_json(text: str, number: int, *, name: str) -> NumberedPrompt:
    try:
        value = parse_json_value(text)
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
