"""Jobs and results reach workers through shared memory, whatever their size, also after a failure."""

from __future__ import annotations

import errno
import multiprocessing
import sys
from collections.abc import Iterator

import numpy as np
import pytest

from gpt_pretrain.prepare.processes import QUEUED_PER_WORKER, WorkerPool
from gpt_pretrain.prepare.shared_slots import SLOT, SharedSlots


def repeat(job: tuple[bytes, int]) -> np.ndarray:
    data, times = job
    if times < 0:
        raise ValueError(data.decode())
    return np.frombuffer(data * times, np.uint8)


@pytest.fixture(scope="module")
def workers() -> Iterator[WorkerPool]:
    with WorkerPool(2, "byte") as pool:
        yield pool


SIZES = [0, 1, 1 << 14, 1 << 16, 1 << 20, SLOT - 1000, SLOT + 1]


@pytest.mark.parametrize("times", [0, 1, 2])
def test_results_of_any_size_arrive_in_order(workers: WorkerPool, times: int) -> None:
    jobs = [(bytes([number]) * size, times) for number, size in enumerate(SIZES)]
    for job, result in workers.map(repeat, jobs):
        assert result.tobytes() == job[0] * times
    assert [job for job, _ in workers.map(repeat, jobs)] == jobs


def test_results_that_are_kept_do_not_change(workers: WorkerPool) -> None:
    jobs = [(bytes([number]) * 100_000, 1) for number in range(40)]
    results = [result for _, result in workers.map(repeat, jobs)]
    assert all((result == number).all() for number, result in enumerate(results))


def test_slots_are_free_again_after_a_failure(workers: WorkerPool) -> None:
    jobs = [(b"x" * 100_000, -1 if number == 3 else 1) for number in range(20)]
    for _ in range(5):
        with pytest.raises(ValueError, match=r"^x+$"):
            list(workers.map(repeat, jobs))
        for _ in workers.map(repeat, jobs[:3]):
            break  # as after an interruption
        assert sum(len(result) for _, result in workers.map(repeat, jobs[4:])) == 1_600_000
    expected = QUEUED_PER_WORKER * 2 + 1 if sys.platform == "linux" else 0
    assert sorted(workers._slots._free) == list(range(expected))


@pytest.mark.parametrize("failing", ["Lock", "Process"])
def test_where_no_process_can_be_started_this_one_works(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], failing: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")  # as without /dev/shm

    monkeypatch.setattr(type(multiprocessing.get_context("fork")), failing, fail)
    with WorkerPool(2, "byte") as pool:
        assert pool.count == 1  # The encoder of this process is not compared in a thread meanwhile.
        assert [result for _, result in pool.map(len, [b"a", b"bc"])] == [1, 2]
    assert capsys.readouterr().err == (
        "No worker processes can be started here (Function not implemented), so this process does all the work.\n"
    )


def test_without_a_free_slot_a_message_takes_the_pipe() -> None:
    slots = SharedSlots(1)
    assert slots.take() == 0 and slots.take() is None
    for slot, content in ((0, b"x" * SLOT), (0, [b"x" * (SLOT - 100), b"y" * 1000]), (None, b"x" * 100_000)):
        assert isinstance(slots.pack(content, slot), bytes)
    packed = slots.pack(b"x" * 100_000, 0)
    assert packed[0] == 0 and slots.unpack(packed) == b"x" * 100_000
