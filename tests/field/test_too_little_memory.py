"""Memory that is used up is reported in a sentence, and small files need little."""

from __future__ import annotations

import errno
import os
import tracemalloc
from pathlib import Path

import pytest
import torch

from gpt_pretrain.commands.process.failures import as_user_error
from gpt_pretrain.system.reading import DamagedFileError, read_bytes

TOO_MUCH = 1 << 50


@pytest.mark.parametrize("allocate", [lambda: torch.empty(TOO_MUCH, dtype=torch.uint8), lambda: bytearray(TOO_MUCH)])
def test_memory_that_a_library_cannot_get_is_explained(allocate: object) -> None:
    assert callable(allocate)
    with pytest.raises((RuntimeError, MemoryError)) as raised:
        allocate()
    reported = as_user_error(raised.value)
    assert reported is not None
    assert "There is not enough memory" in str(reported)
    assert "take a smaller model, data.batch_size or model.context_length" in str(reported)
    assert ("for 1.1 PB more" in str(reported)) == isinstance(raised.value, RuntimeError)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory."), OSError(errno.ENOMEM, os.strerror(errno.ENOMEM), "report.html")]
)
def test_memory_of_a_gpu_or_of_the_system_is_explained(error: Exception) -> None:
    assert "There is not enough memory" in str(as_user_error(error))


def test_other_errors_of_libraries_stay_defects() -> None:
    assert as_user_error(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) is None


def test_a_small_file_takes_little_memory_and_a_large_one_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"12345")
    tracemalloc.start()
    assert read_bytes(tmp_path / "x", max_bytes=50_000_000) == b"12345"
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000
    assert read_bytes(tmp_path / "x", max_bytes=5) == b"12345"
    with pytest.raises(DamagedFileError, match="more than 4 bytes"):
        read_bytes(tmp_path / "x", max_bytes=4)


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="needs Linux")
def test_a_file_of_the_system_that_states_no_size_is_read_whole() -> None:
    status = Path("/proc/self/status")
    assert status.stat().st_size == 0
    assert read_bytes(status).count(b"\n") > 10
