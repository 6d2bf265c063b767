"""Terminals and streams as users have them: no encoding, closed stream or full disk breaks a command."""

from pathlib import Path

import pytest

from tests.helpers.fork_server import ForkServer
from tests.helpers.user_machine import SHORT, Run, assert_trained


@pytest.mark.parametrize(
    ("encoding", "errors", "expected"),
    [
        ("ascii", "strict", rb"Gr\xfc\xdfe an \u6771\u4eac"),
        ("ascii", "surrogateescape", rb"Gr\xfc\xdfe an \u6771\u4eac"),
        ("cp1252", "strict", "Grüße an ".encode("cp1252") + rb"\u6771\u4eac"),
        ("latin-1", "strict", "Grüße an ".encode("latin-1") + rb"\u6771\u4eac"),
        ("gb18030", "strict", "Grüße an 東京".encode("gb18030")),
        ("utf-8", "strict", "Grüße an 東京".encode()),
    ],
)
def test_a_text_is_printed_in_any_encoding(
    run_after: Run, trained: Path, fork_server: ForkServer, tmp_path: Path, encoding: str, errors: str, expected: bytes
) -> None:
    before = f"sys.stdout.reconfigure(encoding={encoding!r}, errors={errors!r})\nsys.stdout = open('out', 'w', encoding={encoding!r}, errors={errors!r})"
    done = run_after(before, "generate.py", f"checkpoint={trained}", "prompt=Grüße an 東京", "sampler.max_new_tokens=2")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out").read_bytes().startswith(expected)


def test_a_terminal_without_unicode_shows_all_lines_of_a_training(run_after: Run, tmp_path: Path) -> None:
    (tmp_path / "zh.txt").write_text("今天天气很好\n" * 400, encoding="utf-8")
    before = (
        "sys.stdout.reconfigure(encoding='ascii', errors='strict')\nsys.stderr.reconfigure(encoding='ascii', errors='strict')"
    )
    overrides = [*SHORT, "callbacks=default", "data.path=zh.txt", "start_context=今天", "hydra.run.dir=r", "trainer.max_steps=2"]
    done = run_after(before, "train.py", *overrides)
    assert_trained(done, tmp_path / "r")
    assert done.stdout.isascii()
    assert r"\u4eca\u5929" in done.stdout
    assert "Report page: r" in done.stdout.splitlines()[-1]
    assert "今天" in (tmp_path / "r" / "samples.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize("closed", [[1], [1, 2], [0, 1, 2]])
@pytest.mark.parametrize("name", ["train.py", "generate.py"])
def test_streams_may_be_closed(run_after: Run, trained: Path, tmp_path: Path, name: str, closed: list[int]) -> None:
    streams = ["stdin", "stdout", "stderr"]
    before = "\n".join(f"os.close({number}); sys.{streams[number]} = None" for number in closed)
    if name == "train.py":
        assert_trained(run_after(before, name, *SHORT, "hydra.run.dir=r"), tmp_path / "r")
    else:
        done = run_after(before, name, f"checkpoint={trained}", "sampler.max_new_tokens=2")
        assert (done.returncode, done.stdout) == (2, "")  # Nobody has the text.
        assert 2 in closed or "Standard output is closed, so the result could not be printed." in done.stderr


@pytest.mark.parametrize("code", ["EPIPE", "ENOSPC", "EIO"])
def test_training_goes_on_when_its_output_cannot_be_written(run_after: Run, tmp_path: Path, code: str) -> None:
    done = run_after(broken_stdout(code), "train.py", *SHORT, "hydra.run.dir=r")
    assert_trained(done, tmp_path / "r")
    assert done.stderr.count("Standard output cannot be written any longer") == 1
    assert "Done: " in (tmp_path / "r" / "train.log").read_text(encoding="utf-8")


@pytest.mark.parametrize("words", [["--help"], ["--cfg", "job"], ["--version"]])
def test_help_with_a_closed_pipe_speaks_of_no_training(run_after: Run, words: list[str]) -> None:
    done = run_after(broken_stdout("EPIPE"), "train.py", *words)
    assert (done.returncode, done.stderr) == (0, "")


def test_generation_ends_with_its_reader_or_says_that_the_output_is_incomplete(run_after: Run, trained: Path) -> None:
    overrides = [f"checkpoint={trained}", "sampler.max_new_tokens=100000000"]
    done = run_after(broken_stdout("EPIPE"), "generate.py", *overrides)
    assert done.returncode == 0
    assert "rror" not in done.stderr
    done = run_after(broken_stdout("ENOSPC"), "generate.py", *overrides)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        "error: Standard output cannot be written: No space left on device. What was printed is incomplete."
    )


def broken_stdout(code: str) -> str:
    """Return Python that has the write calls of standard output fail."""
    return f"""
class Broken(io.FileIO):
    def write(self, data):
        raise OSError(errno.{code}, os.strerror(errno.{code}))
sys.stdout = io.TextIOWrapper(io.BufferedWriter(Broken(os.dup(1), "w")), encoding="utf-8", write_through=True)
"""


def test_the_prompt_on_standard_input_is_utf8_whatever_the_locale_says(run_after: Run, trained: Path) -> None:
    before = "sys.stdin = open(0, encoding='ascii', closefd=False)"
    overrides = [f"checkpoint={trained}", "prompt=-", "sampler.max_new_tokens=1"]
    done = run_after(before, "generate.py", *overrides, stdin="Grüße an\r\n東京\r\n")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Grüße an\n東京")
