"""A machine is measured once, and damaged or unwritable measurements do no harm."""

import json
from pathlib import Path

import pytest

from gpt_pretrain.system import measurements
from gpt_pretrain.system.measurements import measured_once


def test_a_machine_is_measured_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    speeds = iter([1.21, 1.19, 1.5])
    assert measured_once("product", lambda: next(speeds)) == 1.21
    assert measured_once("product", lambda: next(speeds)) == 1.21
    assert measured_once("another product", lambda: next(speeds)) == 1.19
    monkeypatch.setattr(measurements, "cpu_name", lambda: "another CPU")
    assert measured_once("product", lambda: next(speeds)) == 1.5


@pytest.mark.parametrize("content", ["{", "[1]", '{"product": "fast"}', "null"])
def test_a_damaged_measurement_is_made_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: str) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    file = tmp_path / "gpt-pretrain" / measurements.MEASUREMENTS
    file.parent.mkdir()
    file.write_text(content)
    assert measured_once("product", lambda: 1.25) == 1.25
    key = next(iter(json.loads(file.read_text())))
    for bad in (0, -1, "1", float("nan"), None):
        file.write_text(json.dumps({key: bad}))
        assert measured_once("product", lambda: 1.5) == 1.5


def test_a_cache_that_cannot_be_written_is_no_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert measured_once("product", lambda: 1.5) == 1.5
