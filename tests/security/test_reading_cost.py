"""No reader may take far more time or memory than a file's size explains, whatever the reader's own limits overlook."""

from __future__ import annotations

import base64
import mmap
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from random import Random

import pytest

from gpt_pretrain.errors import UserError
from gpt_pretrain.runs import reader
from gpt_pretrain.runs.reader import read_run
from gpt_pretrain.system import reading_cost
from gpt_pretrain.system.reading import open_regular, read_bytes
from gpt_pretrain.system.reading_cost import explained_by_own_size, explained_by_size
from gpt_pretrain.tokenizers.build import build_tokenizer
from gpt_pretrain.tokenizers.formats import vocabulary_formats

TOO_LONG = "reading it took .* seconds of processor time, and .* explain .* at most. It is damaged, or was made"


@pytest.fixture(autouse=True)
def small_limits(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(reading_cost, "SECONDS", 0.1)
    monkeypatch.setattr(reading_cost, "SECONDS_PER_MB", 0.2)
    monkeypatch.setattr(reading_cost, "TICK", 0.02)
    before = signal.getsignal(signal.SIGPROF)
    yield
    assert signal.getitimer(signal.ITIMER_PROF) == (0.0, 0.0)
    assert signal.getsignal(signal.SIGPROF) == before
    assert reading_cost._cost is None


def spin(seconds: float = 30) -> None:
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def fail_at_any_error() -> None:
    try:
        spin()
    except BaseException as error:
        raise ValueError("the file is not what it seems") from error


def go_on_after_errors() -> None:
    with suppress(BaseException):
        spin()
    spin()


def clean_up_long() -> None:
    try:
        spin()
    finally:
        spin()


class Slow:
    def __del__(self) -> None:
        spin(0.3)


def close_a_generator() -> None:
    def numbers() -> Iterator[int]:
        try:
            yield 1
        finally:
            spin()

    made = numbers()
    next(made)
    made.close()


@pytest.mark.parametrize("read", [spin, fail_at_any_error, go_on_after_errors, clean_up_long, close_a_generator])
def test_a_reader_that_takes_long_is_ended(read: Callable[[], None]) -> None:
    start = time.thread_time()
    with pytest.raises(UserError, match=f"^their-file: {TOO_LONG}"), explained_by_size("their-file"):
        read()
    assert time.thread_time() - start < 10  # Timers of a busy machine are late.


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_end_is_asked_for_again_where_it_cannot_be_raised() -> None:
    with pytest.raises(UserError, match=TOO_LONG), explained_by_size("their-file"):
        Slow()
        spin()


def test_a_reader_that_takes_much_memory_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading_cost, "SECONDS", 20)
    monkeypatch.setattr(reading_cost, "MEMORY", 50_000_000)
    with pytest.raises(UserError, match=r"took 2.. MB of memory, and 0 B explain 50 MB at most"), explained_by_size("their-file"):
        # Not from the allocator, which may have this much free after other tests.
        taken = mmap.mmap(-1, 200_000_000, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        taken.write(b"x" * len(taken))
        spin()
    taken.close()


def test_what_is_read_explains_its_size_once(tmp_path: Path) -> None:
    file = tmp_path / "large"
    file.write_bytes(b"x" * 2_000_000)
    with explained_by_size(tmp_path):
        read_bytes(file)
        spin(0.3)
    with pytest.raises(UserError, match=r"2.0 MB explain"), explained_by_size(tmp_path):
        for _ in range(10):
            read_bytes(file)
        spin()


def test_a_size_of_which_the_disk_holds_nothing_explains_little(tmp_path: Path) -> None:
    file = tmp_path / "sparse"
    with open(file, "wb") as stream:
        stream.truncate(1 << 33)
    if file.stat().st_blocks * 512 > 1 << 20:
        pytest.skip("this file system has no sparse files")
    with pytest.raises(UserError, match=TOO_LONG), explained_by_size(tmp_path):
        open_regular(file).close()
        spin()


def test_an_inner_block_belongs_to_the_outer_one() -> None:
    with explained_by_size("outer"):
        with explained_by_size("inner", size=2_000_000):
            spin(0.3)
        assert signal.getitimer(signal.ITIMER_PROF)[0] > 0
    with pytest.raises(UserError, match=r"^outer: "), explained_by_size("outer"), explained_by_size("inner"):
        spin()


def test_a_timer_that_runs_is_left_alone() -> None:
    fired = list[int]()
    before = signal.signal(signal.SIGPROF, lambda *_: fired.append(1))
    signal.setitimer(signal.ITIMER_PROF, 0.05, 0.05)
    try:
        with explained_by_size("their-file"):
            end = time.thread_time() + 10
            while len(fired) < 2 and time.thread_time() < end:
                pass
        assert len(fired) > 1 and signal.getitimer(signal.ITIMER_PROF)[1] > 0
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def test_another_thread_simply_reads() -> None:
    done = list[bool]()

    def read() -> None:
        with explained_by_size("their-file"):
            spin(0.3)
        done.append(True)

    thread = threading.Thread(target=read)
    thread.start()
    thread.join()
    assert done == [True]


def test_the_work_of_other_threads_does_not_count() -> None:
    thread = threading.Thread(target=spin, args=[0.5])
    with explained_by_size("their-file"):
        thread.start()
        thread.join()


def test_a_forked_process_has_its_own_limit() -> None:
    with explained_by_size("their-file"):
        child = os.fork()
        if child == 0:
            spin(0.3)  # the limit of the parent does not hold here
            try:
                with explained_by_size("their-file"):
                    spin()
            except UserError:
                os._exit(3)
            os._exit(4)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3


def test_a_program_that_is_started_has_no_timer() -> None:
    code = "import signal, time\nwhile time.thread_time() < 0.4: pass\nprint(signal.getitimer(signal.ITIMER_PROF))"
    with explained_by_size("their-file"):
        done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "(0.0, 0.0)\n")


def test_an_import_is_neither_interrupted_nor_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "slow_library.py").write_text("import time\nwhile time.thread_time() < END: pass\n".replace("END", "time.X"))
    monkeypatch.setattr(time, "X", time.thread_time() + 0.5, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with explained_by_size("their-file"):
        __import__("slow_library")
    assert "slow_library" in sys.modules
    del sys.modules["slow_library"]


def test_an_error_and_ctrl_c_pass() -> None:
    with pytest.raises(OSError, match="gone"), explained_by_size("their-file"):
        raise OSError("gone")
    with pytest.raises(KeyboardInterrupt), explained_by_size("their-file"):
        raise KeyboardInterrupt


def test_a_function_reads_what_its_first_argument_names() -> None:
    @explained_by_own_size
    def read(name: str, *, seconds: float) -> str:
        spin(seconds)
        return name

    assert read("their-file", seconds=0) == "their-file"
    with pytest.raises(UserError, match=r"^their-file: "):
        read("their-file", seconds=30)


def test_settings_of_a_run_that_are_parsed_for_long_are_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "MAX_CONFIG_BYTES", 10_000_000)
    (tmp_path / "config.yaml").write_text("a: [" + "x, " * 300_000 + "x]\n")
    with pytest.raises(UserError, match=TOO_LONG):
        read_run(tmp_path)


def test_ranks_with_long_tokens_are_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vocabulary_formats, "MAX_SQUARES", 1 << 60)
    random = Random(0)
    tokens = [bytes([byte]) for byte in range(256)] + [random.randbytes(1000) for _ in range(300)]
    lines = [base64.b64encode(token) + b" %d" % rank for rank, token in enumerate(tokens)]
    (tmp_path / "own.tiktoken").write_bytes(b"\n".join(lines))
    with pytest.raises(UserError, match=TOO_LONG):
        build_tokenizer(str(tmp_path / "own.tiktoken"))
