"""Reading small files that anybody may have written."""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path

import pytest

from gpt_pretrain.system.json_files import read_json
from gpt_pretrain.system.nested_values import expand_aliases
from gpt_pretrain.system.reading import DamagedFileError, open_regular
from gpt_pretrain.system.terminal import escape_controls, escape_line
from gpt_pretrain.system.yaml_files import read_yaml


def test_only_regular_files_are_read_and_others_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the address of a socket must be short
    Path("a.json").write_text('{"a": 1}')
    assert read_json(Path("a.json")) == {"a": 1}
    os.mkfifo("fifo")
    Path("zero").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
        for name, kind in {"fifo": "a pipe", "zero": "a device", ".": "a folder", "socket": "a socket"}.items():
            with pytest.raises(OSError, match=f"it is {kind}, not a regular file"):
                open_regular(Path(name))


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "secret.json").write_text("{}")
    (tmp_path / "run" / "inner.json").write_text("{}")
    (tmp_path / "run" / "out.json").symlink_to("../secret.json")
    (tmp_path / "run" / "in.json").symlink_to("inner.json")
    assert read_json(tmp_path / "run" / "in.json", within=tmp_path / "run") == {}
    with pytest.raises(OSError, match="leads out"):
        read_json(tmp_path / "run" / "out.json", within=tmp_path / "run")


@pytest.mark.parametrize(
    "content", ["[" * 100_000, '{"a": ' * 50_000, '{"a": ' + "9" * 5000 + "}", "[]", "\xff", '{"a": "\ud800"}', " " * 101]
)
def test_damaged_json_is_one_kind_of_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.json").write_bytes(content.encode("utf-8", errors="surrogatepass"))
    with pytest.raises(DamagedFileError):
        read_json(tmp_path / "a.json", max_bytes=1_000_000 if len(content) != 101 else 100)


def test_yaml_stays_plain_data(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("a: ${oc.env:HOME}\nb: &b [1, 2]\nc: *b\n")
    content = read_yaml(file)
    assert content == {"a": "${oc.env:HOME}", "b": [1, 2], "c": [1, 2]}
    assert content["b"] is not content["c"]


@pytest.mark.parametrize(
    "content",
    [
        "a0: &a0 [x,x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1},*a{i - 1}]\n" for i in range(1, 60)),
        "a: &a [*a]",
        "a: " + "[" * 3000,
        "a: !!python/object/apply:os.system [id]",
        "- 1",
        "a: [",
        "? [1]\n: 2",
        "a: " + "9" * 5000,
        "a: 2001-99-99",
        "a0: &a0 {k: v}\n" + "".join(f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}\n" for i in range(1, 33)),
        "a: &a {k: v}\nb: {!!merge x: *a}",
        "".join(f"0x{k * (2**61 - 1):x}: 1\n" for k in range(1, 20_000)),
        "".join(f"-{k * (2**61 - 1)}: 1\n" for k in range(1, 20_000)),
    ],
)
def test_hostile_yaml_is_refused_at_once(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.yaml").write_text(content)
    start = time.monotonic()
    with pytest.raises(DamagedFileError):
        read_yaml(tmp_path / "config.yaml")
    assert time.monotonic() - start < 2


def test_shared_parts_are_counted_as_often_as_they_stand_there() -> None:
    value: list[object] = [0]
    for _ in range(60):
        value = [value, value]
    with pytest.raises(DamagedFileError, match="aliases"):
        expand_aliases(value)
    assert json.dumps(expand_aliases([[1]] * 3)) == "[[1], [1], [1]]"


def test_nothing_printed_controls_the_terminal() -> None:
    assert (
        escape_controls("a\x1b]0;x\x07\r\nb\t\x9b\u202e\u2028\ud800é你") == "a\\x1b]0;x\\x07\\r\nb\t\\x9b\\u202e\\u2028\\ud800é你"
    )
    assert escape_line("a\nb") == "a\\nb"
