"""The memory for lines, rows and values stays within a few times their size, however they are divided."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterable
from pathlib import Path

from gpt_pretrain.generation.prompt_files import check_prompts
from gpt_pretrain.system.json_files import parse_json
from gpt_pretrain.system.nested_values import MAX_DEPTH, check_values
from gpt_pretrain.texts.chunks import LONGEST_RECORD, Chunk, Cursor, ReadPosition
from gpt_pretrain.texts.records.csv_rows import split_rows
from tests.helpers.resource_limits import within


def values_of(chunks: Iterable[Chunk]) -> list[str]:
    return [value for chunk in chunks if isinstance(chunk.content, list) for value in chunk.content]


def test_prompts_between_carriage_returns_are_read_one_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"ab\r" * 500_000)
    with within(seconds=60, megabytes=20):  # 33 MB if a line is divided at once
        assert check_prompts(path, name="prompts=a.txt") == 500_000


def test_many_small_containers_take_little_more_than_themselves() -> None:
    content = b'{"a":[' + b"{}," * 900_000 + b"0]}"
    with within(seconds=30, megabytes=130):  # 210 MB if the count of each is kept
        assert len(parse_json(content)["a"]) == 900_001


def test_a_large_container_that_is_shared_is_counted_once() -> None:
    large, small = list(range(200_000)), [0] * 3
    with within(seconds=10, megabytes=50):
        check_values([large] * 10_000 + [small] * 10_000, max_values=MAX_DEPTH * 10**8)


def test_the_line_of_a_long_row_is_not_kept_twice() -> None:
    size = LONGEST_RECORD - 1000
    blocks = [b"text,n\n" + b"a" * size, b",1\n"]
    cursor = Cursor("a.csv", ReadPosition(), bytes_read=lambda: 0)
    # 7 times its size if the line is kept as bytes; the module csv takes four bytes a character.
    tracemalloc.start()
    (value,) = values_of(split_rows(iter(blocks), cursor, "text"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(value) == size
    assert peak < 6.5 * size


def test_a_long_line_may_begin_a_row_of_several() -> None:
    text = b'text,n\n"' + b"a" * (2 << 20) + b'\nb, c",1\nd,2\n'
    cursor = Cursor("a.csv", ReadPosition(), bytes_read=lambda: 0)
    assert [value[-5:] for value in values_of(split_rows(iter([text]), cursor, "text"))] == ["\nb, c", "d"]
