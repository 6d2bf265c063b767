"""Preparations that are interrupted: killed, stopped, out of disk, or begun again with something changed."""

import errno
import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from gpt_pretrain.errors import UserError
from gpt_pretrain.prepare import encode_stage, encoding, finishing, job, pieces, progress, shards, stretches
from tests.conftest import ROOT
from tests.helpers import corpora

CODE = """
import sys
from gpt_pretrain.prepare import items, pieces, reading
from gpt_pretrain.commands.main import main
pieces.PIECE_BYTES, reading.BATCH = 100_000, 50_000
sys.argv.insert(1, "prepare")
main()
"""


def start(*words: str, code: str = CODE, **options: object) -> subprocess.Popen[str]:
    """The command, with small pieces, in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *words], cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options
    )


def write_inputs(folder: Path, *, megabytes: float) -> list[str]:
    """Lines, and a long text that is one document."""
    drawn = random.Random(5)
    vocabulary = ["".join(drawn.choices("abcdefghijklmnop", k=drawn.randrange(1, 6))) for _ in range(5000)]
    lines = folder / "a.jsonl"
    with open(lines, "w") as stream:
        while stream.tell() < megabytes * 0.6e6:
            text = " ".join(drawn.choices(vocabulary, k=drawn.randrange(1, 400)))
            stream.write((json.dumps({"text": text}) if drawn.random() > 0.001 else "{broken") + "\n")
            if drawn.random() < 0.1:
                stream.write(json.dumps({"text": text}) + "\n")
    long = folder / "long.txt"
    long.write_text(" ".join(drawn.choices(vocabulary, k=int(megabytes * 0.4e6 / 7))))
    return [str(lines), str(long)]


def options(out: Path) -> list[str]:
    return [f"out={out}", "workers=2", "dedup=exact", "val_tokens=20000", "shard_tokens=100000", "max_rejected=0.1"]


def noted(out: Path) -> int:
    """How many pieces and shards are finished."""
    journals = [out / ".work" / "task-00000" / "journal.jsonl", out / ".work" / "shards.jsonl"]
    return sum(journal.read_bytes().count(b"\n") for journal in journals if journal.exists())


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_corpus_is_the_same_however_often_it_was_interrupted(tmp_path: Path, how: signal.Signals) -> None:
    words = write_inputs(tmp_path, megabytes=10)
    undisturbed = start(*words, *options(tmp_path / "whole"))
    assert undisturbed.wait() == 0
    drawn, stops, said = random.Random(how), 0, ""
    while stops < 60:
        before = noted(tmp_path / "out")
        process = start(*words, *options(tmp_path / "out"))
        goal = before + drawn.randrange(1, 6)
        while noted(tmp_path / "out") < goal and process.poll() is None:
            time.sleep(0.002)
        time.sleep(drawn.uniform(0, 0.05))
        if process.poll() is None:
            process.send_signal(how)
            stops += 1
        said += process.communicate()[1]
        if process.returncode == 0:
            break
        complete = (tmp_path / "out" / "manifest.json").exists()  # and the signal came when nothing was left to be stopped
        assert process.returncode == (-9 if how == signal.SIGKILL else 128 + how) or complete, said
        assert complete or noted(tmp_path / "out") >= before, "finished work was done again"
    assert stops >= 5 and said.count("going on") >= 4
    assert corpora.contents(tmp_path / "out") == corpora.contents(tmp_path / "whole")


@pytest.mark.slow
def test_no_worker_outlives_a_process_that_was_killed(tmp_path: Path) -> None:
    words = write_inputs(tmp_path, megabytes=10)
    process = start(*words, *options(tmp_path / "out"), start_new_session=True)
    journal = tmp_path / "out" / ".work" / "task-00000" / "journal.jsonl"
    while not journal.exists() and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    raise AssertionError("a worker is still there")


class Killed(BaseException):
    """What happens at a moment of the test's choosing."""


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces, parts and batches so small that a short corpus has many."""
    monkeypatch.setattr(pieces, "PIECE_BYTES", 4000)
    for module in (encoding, stretches):
        monkeypatch.setattr(module, "PART", 700)
    monkeypatch.setattr("gpt_pretrain.prepare.reading.BATCH", 1000)
    monkeypatch.setattr("gpt_pretrain.prepare.streams.BLOCK", 1000)


def short_inputs(folder: Path) -> list[Path]:
    texts = [f"document {number} " * (number % 7 + 1) for number in [*range(60), *range(20)]]
    (folder / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts) + "{broken\n")
    (folder / "b.txt").write_text("<>".join([*texts, "long " * 3000, "\n", "short"]))
    return [folder / "a.jsonl", folder / "b.txt"]


SHORT = {"dedup": "exact", "val_tokens": 500, "shard_tokens": 3000, "document_separator": "<>"}


def test_wherever_a_process_dies_the_next_makes_the_same(tmp_path: Path, small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = short_inputs(tmp_path)
    corpora.made(*inputs, out=tmp_path / "whole", **SHORT)
    expected, real, moments = corpora.contents(tmp_path / "whole"), os.fsync, 0
    for moment in range(1, 200):
        left = iter(range(moment))

        def dying(number: int, left: object = left) -> None:
            if next(left, None) is None:  # type: ignore[call-overload]
                raise Killed
            real(number)

        out = tmp_path / f"out{moment}"
        monkeypatch.setattr(os, "fsync", dying)
        try:
            corpora.made(*inputs, out=out, **SHORT)
            break
        except Killed:
            moments += 1
        finally:
            monkeypatch.setattr(os, "fsync", real)
        assert not (out / "manifest.json").exists()
        corpora.made(*inputs, out=out, **SHORT)
        assert corpora.contents(out) == expected, moment
    assert moments > 30


def test_finished_pieces_and_shards_are_not_made_again(tmp_path: Path, small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, encoded, written = short_inputs(tmp_path), [], []
    real_encode, real_write = encoding.encode, shards.write_shard
    monkeypatch.setattr("gpt_pretrain.prepare.encode_stage.encode", lambda *a, **k: encoded.append(1) or real_encode(*a, **k))
    monkeypatch.setattr(finishing, "write_shard", lambda job: written.append(job.name) or real_write(job))
    monkeypatch.setattr(
        "gpt_pretrain.prepare.job.write_json",
        lambda path, _: (_ for _ in ()).throw(Killed) if path.name == "manifest.json" else path.write_text("{}"),
    )
    plan = {}
    monkeypatch.setattr("gpt_pretrain.prepare.job._begin", lambda folder, wanted, overwrite: plan.update(wanted))
    with pytest.raises(Killed):
        corpora.made(*inputs, out=tmp_path / "out", **SHORT)
    first = len(encoded), len(written)
    with pytest.raises(Killed):
        corpora.made(*inputs, out=tmp_path / "out", **SHORT)
    assert first[0] > 10 and first[1] > 3 and (len(encoded), len(written)) == first
    (tmp_path / "out" / "train-00001.bin").write_bytes(b"damaged")
    with pytest.raises(Killed):
        corpora.made(*inputs, out=tmp_path / "out", **SHORT)
    assert written[first[1] :] == ["train-00001"]
    (tmp_path / "out" / ".work" / "task-00000" / "00001.bin").write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"00001.bin is damaged"):
        corpora.made(*inputs, out=tmp_path / "out", **SHORT)


def test_a_full_disk_is_told_and_the_work_goes_on_afterwards(tmp_path: Path) -> None:
    words = write_inputs(tmp_path, megabytes=3)
    assert start(*words, *options(tmp_path / "whole")).wait() == 0

    def limited() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, 150_000))

    for limit in ({"preexec_fn": limited}, {}):
        process = start(*words, *options(tmp_path / "out"), **limit)
        _, said = process.communicate()
        if limit:
            assert process.returncode == 2 and "Make room and start the same command again" in said, said
            assert not (tmp_path / "out" / "manifest.json").exists()
    assert process.returncode == 0 and "going on" in said, said
    assert corpora.contents(tmp_path / "out") == corpora.contents(tmp_path / "whole")


def test_a_disk_that_fills_up_while_shards_are_written_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = short_inputs(tmp_path)

    def full(_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(finishing, "write_shard", full)
        with pytest.raises(UserError, match=r"No space left on device\. Make room"):
            corpora.made(*inputs, out=tmp_path / "out", **SHORT)
    assert corpora.made(*inputs, out=tmp_path / "out", **SHORT)["parts"]["train"]["tokens"] > 0


def begun(inputs: list[Path], out: Path) -> None:
    """A corpus that was begun, and that no more came of."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gpt_pretrain.prepare.job.write_parts", lambda *_, **__: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            corpora.made(*inputs, out=out, **SHORT)


def change(path: Path) -> None:
    text = path.read_text()
    path.write_text("D" + text[1:])
    os.utime(path, ns=(1, 1))


CHANGES: dict[str, Callable[[list[Path]], tuple[list[Path], dict[str, object]]]] = {
    'a.jsonl" has changed': lambda inputs: (change(inputs[0]), (inputs, {}))[1],
    'b.txt" is no longer read': lambda inputs: (inputs[:1], {}),
    "read in another order": lambda inputs: (inputs[::-1], {}),
    "val_tokens was 500 and is now 600": lambda inputs: (inputs, {"val_tokens": 600}),
    'name was "byte" and is now "gpt2"': lambda inputs: (inputs, {"tokenizer": "gpt2"}),
}


@pytest.mark.parametrize("told", CHANGES)
def test_what_was_changed_meanwhile_is_told(tmp_path: Path, told: str) -> None:
    inputs = short_inputs(tmp_path)
    begun(inputs, tmp_path / "out")
    inputs, changed = CHANGES[told](inputs)
    with pytest.raises(UserError) as caught:
        corpora.made(*inputs, out=tmp_path / "out", **SHORT | changed)
    assert (
        "is begun here that differs" in str(caught.value) and told in str(caught.value) and "overwrite=true" in str(caught.value)
    )
    corpora.made(*inputs, out=tmp_path / "out", overwrite=True, **SHORT | changed)
    corpora.made(*inputs, out=tmp_path / "fresh", **SHORT | changed)
    assert corpora.contents(tmp_path / "out") == corpora.contents(tmp_path / "fresh")


def test_a_file_that_changes_while_it_is_read_is_told(tmp_path: Path, small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = short_inputs(tmp_path)
    real = encoding.encode
    monkeypatch.setattr(
        "gpt_pretrain.prepare.encode_stage.encode", lambda *a, **k: os.utime(inputs[0], ns=(1, 1)) or real(*a, **k)
    )
    with pytest.raises(UserError, match=r"a.jsonl has changed since this corpus was begun"):
        corpora.made(*inputs, out=tmp_path / "out", **SHORT)


def test_a_complete_corpus_is_left_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inputs = short_inputs(tmp_path)
    corpora.made(*inputs, out=tmp_path / "out", **SHORT)
    before = corpora.contents(tmp_path / "out")
    (tmp_path / "out" / "notes.txt").write_text("mine")
    change(inputs[0])
    corpora.made(*inputs, out=tmp_path / "out", workers=2, **SHORT)
    assert "complete already" in capsys.readouterr().out
    with pytest.raises(
        UserError, match="is complete here that differs from what is asked for: shard_tokens was 3000 and is now 4000"
    ):
        corpora.made(*inputs, out=tmp_path / "out", **SHORT | {"shard_tokens": 4000})
    assert corpora.contents(tmp_path / "out") == before | {"notes.txt": b"mine"}
    (tmp_path / "out" / "train-00000.bin").unlink()
    with pytest.raises(UserError, match=r"train-00000.bin is missing"):
        corpora.made(*inputs, out=tmp_path / "out", **SHORT)
    corpora.made(*inputs, out=tmp_path / "out", overwrite=True, **SHORT | {"shard_tokens": 10**6})
    assert set(corpora.contents(tmp_path / "out")) == {
        "manifest.json", "rejected.jsonl", "notes.txt", "train-00000.bin", "train-00000.idx", "val-00000.bin", "val-00000.idx",
    }  # fmt: skip


def test_two_processes_do_not_write_the_same_corpus(tmp_path: Path) -> None:
    words = write_inputs(tmp_path, megabytes=10)
    first = start(*words, *options(tmp_path / "out"))
    while not (tmp_path / "out" / ".work" / "plan.json").exists():
        time.sleep(0.01)
    first.send_signal(signal.SIGSTOP)
    second = start(*words, *options(tmp_path / "out"))
    _, said = second.communicate()
    assert second.returncode == 2 and "another process is writing this corpus" in said
    first.terminate()
    first.send_signal(signal.SIGCONT)
    assert first.wait() == 143


@pytest.mark.slow
def test_a_killed_worker_ends_the_command_which_then_goes_on(tmp_path: Path) -> None:
    words = write_inputs(tmp_path, megabytes=10)
    process = start(*words, *options(tmp_path / "out"))
    while noted(tmp_path / "out") < 2 and process.poll() is None:
        time.sleep(0.002)
    os.kill(int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0]), signal.SIGKILL)
    try:
        said = process.communicate(timeout=30)[1]
    finally:
        process.kill()
    assert process.returncode == 2 and "A worker process was killed" in said
    again = start(*words, *options(tmp_path / "out"))
    assert again.wait(60) == 0 and "going on with what was begun" in again.communicate()[1]


def test_files_that_are_not_of_a_corpus_are_left_alone(tmp_path: Path) -> None:
    inputs = write_inputs(tmp_path, megabytes=0.1)
    out = tmp_path / "out"
    out.mkdir()
    for name in ("train-00007.bin", "rejected.jsonl"):
        (out / name).write_text("precious")
    with pytest.raises(UserError, match=r"holds rejected\.jsonl, train-00007\.bin, which would be lost") as caught:
        corpora.made(*inputs, out=out)
    assert "overwrite=true" in str(caught.value)
    assert {(out / name).read_text() for name in ("train-00007.bin", "rejected.jsonl")} == {"precious"}
    corpora.made(*inputs, out=out, overwrite=True)
    (out / "manifest.json").unlink()
    with pytest.raises(UserError, match="would be lost"):
        corpora.made(*inputs, out=out)


def test_a_text_within_the_corpus_s_folder_is_not_left_out_in_silence(tmp_path: Path) -> None:
    inputs = write_inputs(tmp_path, megabytes=0.1)
    with pytest.raises(UserError, match="which is for the corpus alone"):
        corpora.made(*inputs, out=tmp_path)


def test_overwriting_is_done_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = write_inputs(tmp_path, megabytes=0.3)
    corpora.made(*inputs, out=tmp_path / "out")
    monkeypatch.setattr(pieces, "PIECE_BYTES", 10_000)
    with monkeypatch.context() as patch:
        patch.setattr(job, "write_parts", fails)
        with pytest.raises(RuntimeError):
            corpora.made(*inputs, out=tmp_path / "out", overwrite=True)
    monkeypatch.setattr(encode_stage, "encode", fails)
    corpora.made(*inputs, out=tmp_path / "out", overwrite=True)


def fails(*_: object, **__: object) -> None:
    raise RuntimeError("the power went off")


def test_a_wrong_field_costs_nothing(tmp_path: Path) -> None:
    lines = tmp_path / "a.jsonl"
    lines.write_text("".join(json.dumps({"body": f"text {n}"}) + "\n" for n in range(50)))
    with pytest.raises(UserError, match=r"no text among body.*Name the field that has the text with text_field=") as caught:
        corpora.made(lines, out=tmp_path / "out", max_rejected=0.001)
    assert "max_rejected=1" not in str(caught.value)
    assert corpora.made(lines, out=tmp_path / "out", text_field="body")["parts"]["train"]["documents"] > 0


def test_a_complete_corpus_is_reported_without_what_it_was_made_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inputs = write_inputs(tmp_path, megabytes=0.1)
    corpora.made(*inputs, out=tmp_path / "out")
    for file in inputs:
        Path(file).unlink()
    capsys.readouterr()
    corpora.made(out=tmp_path / "out", report=True)
    assert "bytes of text a token" in capsys.readouterr().out
    with pytest.raises(UserError, match="no complete corpus to report on"):
        corpora.made(out=tmp_path / "nothing", report=True)


def test_without_a_terminal_a_line_tells_now_and_then_how_far_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    corpora.made(*write_inputs(tmp_path, megabytes=0.1), out=tmp_path / "out")
    assert re.search(r"^\d+%  [\d,]+ documents  [\d.]+ MB/s  [\d,]+ tokens/s$", capsys.readouterr().err, re.MULTILINE)


def test_a_url_is_no_input(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="read from this machine only"):
        corpora.made("s3://bucket/a.jsonl", out=tmp_path / "out")
