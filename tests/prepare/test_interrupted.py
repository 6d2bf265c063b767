"""Preparations that are killed, stopped, out of disk space, or resumed after something has changed."""

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
from gpt_pretrain.prepare import chunks, decompression, encoding, pipeline, progress, reading, segments, shards, tokenizing
from tests.conftest import ROOT
from tests.helpers import corpora

PREPARE_IN_SMALL_SEGMENTS = """
import sys
from gpt_pretrain.prepare import reading, segments
from gpt_pretrain.commands.main import main
segments.SEGMENT_BYTES, reading.BATCH = 100_000, 50_000
sys.argv.insert(1, "prepare")
main()
"""


def start(*arguments: str, code: str = PREPARE_IN_SMALL_SEGMENTS, **options: object) -> subprocess.Popen[str]:
    """Start the command in a process of its own, with small segments."""
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)


def write_inputs(folder: Path, *, megabytes: float) -> list[str]:
    """Write a file of JSON lines, and a long text that is one document."""
    rng = random.Random(5)
    vocabulary = ["".join(rng.choices("abcdefghijklmnop", k=rng.randrange(1, 6))) for _ in range(5000)]
    lines = folder / "a.jsonl"
    with open(lines, "w") as stream:
        while stream.tell() < megabytes * 0.6e6:
            text = " ".join(rng.choices(vocabulary, k=rng.randrange(1, 400)))
            stream.write((json.dumps({"text": text}) if rng.random() > 0.001 else "{broken") + "\n")
            if rng.random() < 0.1:
                stream.write(json.dumps({"text": text}) + "\n")
    long = folder / "long.txt"
    long.write_text(" ".join(rng.choices(vocabulary, k=int(megabytes * 0.4e6 / 7))))
    return [str(lines), str(long)]


def options(out: Path) -> list[str]:
    return [f"out={out}", "workers=2", "dedup=exact", "val_tokens=20000", "shard_tokens=100000", "max_rejected=0.1"]


def count_finished(out: Path) -> int:
    """Return the number of finished segments and shards."""
    journals = [out / ".work" / "task-00000" / "journal.jsonl", out / ".work" / "shards.jsonl"]
    return sum(journal.read_bytes().count(b"\n") for journal in journals if journal.exists())


@pytest.mark.slow
@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_the_corpus_is_the_same_after_any_number_of_interruptions(tmp_path: Path, signal_number: signal.Signals) -> None:
    arguments = write_inputs(tmp_path, megabytes=10)
    undisturbed = start(*arguments, *options(tmp_path / "whole"))
    assert undisturbed.wait() == 0
    rng, stops, output = random.Random(signal_number), 0, ""
    while stops < 60:
        before = count_finished(tmp_path / "out")
        process = start(*arguments, *options(tmp_path / "out"))
        goal = before + rng.randrange(1, 6)
        while count_finished(tmp_path / "out") < goal and process.poll() is None:
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.05))
        if process.poll() is None:
            process.send_signal(signal_number)
            stops += 1
        output += process.communicate()[1]
        if process.returncode == 0:
            break
        complete = (tmp_path / "out" / "manifest.json").exists()  # The signal arrived after the work was done.
        assert process.returncode == (-9 if signal_number == signal.SIGKILL else 128 + signal_number) or complete, output
        assert complete or count_finished(tmp_path / "out") >= before, "finished work was repeated"
    assert stops >= 5 and output.count("resuming an interrupted preparation") >= 4
    assert corpora.contents(tmp_path / "out") == corpora.contents(tmp_path / "whole")


@pytest.mark.slow
def test_no_worker_outlives_a_killed_process(tmp_path: Path) -> None:
    arguments = write_inputs(tmp_path, megabytes=10)
    process = start(*arguments, *options(tmp_path / "out"), start_new_session=True)
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
    raise AssertionError("a worker is still running")


KILL_AT_RENAME = """
import os, signal, sys
from gpt_pretrain.commands.main import main
target_name, replace = sys.argv.pop(1), os.replace
def replace_or_die(source, target):
    if os.path.basename(target) == target_name:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)
os.replace = replace_or_die
sys.argv.insert(1, "prepare")
main()
"""


@pytest.mark.parametrize("name", ["plan.json", "train-00001.bin", "val-00000.idx", "manifest.json"])
def test_scratch_files_of_a_killed_process_are_deleted_when_the_command_resumes(tmp_path: Path, name: str) -> None:
    arguments = [*write_inputs(tmp_path, megabytes=0.3), "tokenizer=byte", "val_tokens=500", "shard_tokens=100000", "workers=1"]
    assert start(*arguments, f"out={tmp_path / 'whole'}", "max_rejected=0.1").wait() == 0
    killed = start(name, *arguments, f"out={tmp_path / 'out'}", "max_rejected=0.1", code=KILL_AT_RENAME)
    assert killed.wait() == -signal.SIGKILL
    assert list((tmp_path / "out").rglob(f".{name}.*.tmp"))
    assert start(*arguments, f"out={tmp_path / 'out'}", "max_rejected=0.1").wait() == 0
    assert corpora.contents(tmp_path / "out") == corpora.contents(tmp_path / "whole")


class Killed(BaseException):
    """Raised to end a preparation at a chosen moment."""


def kill(*_: object, **__: object) -> None:
    raise Killed


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make segments, parts and batches so small that a short corpus has many of them."""
    monkeypatch.setattr(segments, "SEGMENT_BYTES", 4000)
    for module in (chunks, reading):
        monkeypatch.setattr(module, "PART", 700)
    monkeypatch.setattr(reading, "BATCH", 1000)
    monkeypatch.setattr(decompression, "BLOCK", 1000)


def short_inputs(folder: Path) -> list[Path]:
    texts = [f"document {number} " * (number % 7 + 1) for number in [*range(60), *range(20)]]
    (folder / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts) + "{broken\n")
    (folder / "b.txt").write_text("<>".join([*texts, "long " * 3000, "\n", "short"]))
    return [folder / "a.jsonl", folder / "b.txt"]


SHORT = {"dedup": "exact", "val_tokens": 500, "shard_tokens": 3000, "document_separator": "<>"}


def test_the_corpus_is_the_same_wherever_a_process_dies(tmp_path: Path, small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = short_inputs(tmp_path)
    corpora.prepare(*inputs, out=tmp_path / "whole", **SHORT)
    expected, real_fsync, kills, manifests = corpora.contents(tmp_path / "whole"), os.fsync, 0, 0
    for moment in range(1, 200):
        left = iter(range(moment))

        def fsync_or_die(number: int, left: object = left) -> None:
            if next(left, None) is None:  # type: ignore[call-overload]
                raise Killed
            real_fsync(number)

        out = tmp_path / f"out{moment}"
        monkeypatch.setattr(os, "fsync", fsync_or_die)
        try:
            corpora.prepare(*inputs, out=out, **SHORT)
            break
        except Killed:
            kills += 1
        finally:
            monkeypatch.setattr(os, "fsync", real_fsync)
        manifests += (out / "manifest.json").exists()
        corpora.prepare(*inputs, out=out, **SHORT)
        assert corpora.contents(out) == expected, moment
    assert kills > 30 and manifests <= 1  # Only one fsync follows the rename of the manifest: that of the folder.


def test_finished_segments_and_shards_are_not_written_again(tmp_path: Path, small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, encoded, written = short_inputs(tmp_path), [], []
    real_encode, real_write = tokenizing.encode_batch, shards.write_shard
    monkeypatch.setattr(encoding, "encode_batch", lambda *a, **k: encoded.append(1) or real_encode(*a, **k))
    monkeypatch.setattr(shards, "write_shard", lambda job: written.append(job.name) or real_write(job))
    monkeypatch.setattr(pipeline, "write_json", lambda path, _: kill() if path.name == "manifest.json" else path.write_text("{}"))
    monkeypatch.setattr(pipeline, "_start_or_resume", lambda folder, description, overwrite: None)
    with pytest.raises(Killed):
        corpora.prepare(*inputs, out=tmp_path / "out", **SHORT)
    first = len(encoded), len(written)
    with pytest.raises(Killed):
        corpora.prepare(*inputs, out=tmp_path / "out", **SHORT)
    assert first[0] > 10 and first[1] > 3 and (len(encoded), len(written)) == first
    (tmp_path / "out" / "train-00001.bin").write_bytes(b"damaged")
    with pytest.raises(Killed):
        corpora.prepare(*inputs, out=tmp_path / "out", **SHORT)
    assert written[first[1] :] == ["train-00001"]
    (tmp_path / "out" / ".work" / "task-00000" / "00001.bin").write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"00001.bin is damaged"):
        corpora.prepare(*inputs, out=tmp_path / "out", **SHORT)


def test_the_keys_of_the_journal_and_the_plan_stay_as_they_are(tmp_path: Path) -> None:
    interrupt_before_shards(short_inputs(tmp_path), tmp_path / "out")
    work = tmp_path / "out" / ".work"
    entry = json.loads((work / "task-00000" / "journal.jsonl").read_text().splitlines()[0])
    assert set(entry) == {"piece", "state"}
    assert set(entry["piece"]) == {"path", "tokens", "rows", "tokens_sha256", "rows_sha256"}
    assert set(entry["state"]) == {
        *("after", "counts", "open_hash", "open_tokens", "open_bytes", "rejects_size", "complete"),
    }
    assert set(entry["state"]["after"]) == {"file", "offset", "record", "in_document"}
    assert set(entry["state"]["counts"]) == {"records", "empty", "by_reason", "text_bytes", "tokens"}
    plan = json.loads((work / "plan.json").read_text())
    assert set(plan) == {"tokenizer", "source", "options", "work", "overwrite"}
    assert set(plan["source"][0]) == {"path", "bytes", "changed"} and set(plan["work"]) == {"tasks"}


def test_a_full_disk_is_an_error_and_the_command_resumes_afterwards(tmp_path: Path) -> None:
    arguments = write_inputs(tmp_path, megabytes=3)
    assert start(*arguments, *options(tmp_path / "whole")).wait() == 0

    def limit_file_size() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, 150_000))

    process = start(*arguments, *options(tmp_path / "out"), preexec_fn=limit_file_size)
    _, output = process.communicate()
    assert process.returncode == 2 and "Free some space and run the same command again" in output, output
    assert not (tmp_path / "out" / "manifest.json").exists()
    process = start(*arguments, *options(tmp_path / "out"))
    _, output = process.communicate()
    assert process.returncode == 0 and "resuming" in output, output
    assert corpora.contents(tmp_path / "out") == corpora.contents(tmp_path / "whole")


def test_a_disk_that_fills_up_while_shards_are_written_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = short_inputs(tmp_path)

    def fail(_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(shards, "write_shard", fail)
        with pytest.raises(UserError, match=r"No space left on device\. Free some space"):
            corpora.prepare(*inputs, out=tmp_path / "out", **SHORT)
    assert corpora.prepare(*inputs, out=tmp_path / "out", **SHORT)["parts"]["train"]["tokens"] > 0


def interrupt_before_shards(inputs: list[Path], out: Path) -> None:
    """Start a preparation that ends when everything is encoded and no shard is written."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "write_shards", kill)
        with pytest.raises(Killed):
            corpora.prepare(*inputs, out=out, **SHORT)


def change(path: Path) -> None:
    text = path.read_text()
    path.write_text("D" + text[1:])
    os.utime(path, ns=(1, 1))


CHANGES: dict[str, Callable[[list[Path]], tuple[list[Path], dict[str, object]]]] = {
    'a.jsonl" has changed': lambda inputs: (change(inputs[0]), (inputs, {}))[1],
    'b.txt" is no longer an input': lambda inputs: (inputs[:1], {}),
    "the inputs are in a different order": lambda inputs: (inputs[::-1], {}),
    "val_tokens was 500 and is now 600": lambda inputs: (inputs, {"val_tokens": 600}),
    'name was "byte" and is now "gpt2"': lambda inputs: (inputs, {"tokenizer": "gpt2"}),
}


@pytest.mark.parametrize("message", CHANGES)
def test_a_change_since_the_interruption_is_an_error(tmp_path: Path, message: str) -> None:
    inputs = short_inputs(tmp_path)
    interrupt_before_shards(inputs, tmp_path / "out")
    inputs, changed = CHANGES[message](inputs)
    with pytest.raises(UserError) as caught:
        corpora.prepare(*inputs, out=tmp_path / "out", **SHORT | changed)
    error = str(caught.value)
    assert "contains a corpus (unfinished) that differs" in error and message in error and "overwrite=true" in error
    corpora.prepare(*inputs, out=tmp_path / "out", overwrite=True, **SHORT | changed)
    corpora.prepare(*inputs, out=tmp_path / "fresh", **SHORT | changed)
    assert corpora.contents(tmp_path / "out") == corpora.contents(tmp_path / "fresh")


def test_a_file_that_changes_while_it_is_read_is_an_error(tmp_path: Path, small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = short_inputs(tmp_path)
    real = tokenizing.encode_batch
    monkeypatch.setattr(encoding, "encode_batch", lambda *a, **k: os.utime(inputs[0], ns=(1, 1)) or real(*a, **k))
    with pytest.raises(UserError, match=r"a.jsonl has changed since this corpus was started"):
        corpora.prepare(*inputs, out=tmp_path / "out", **SHORT)


def test_a_complete_corpus_is_not_touched(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inputs = short_inputs(tmp_path)
    corpora.prepare(*inputs, out=tmp_path / "out", **SHORT)
    before = corpora.contents(tmp_path / "out")
    (tmp_path / "out" / "notes.txt").write_text("mine")
    change(inputs[0])
    corpora.prepare(*inputs, out=tmp_path / "out", workers=2, **SHORT)
    assert "already complete" in capsys.readouterr().out
    message = r"a corpus \(complete\) that differs from the requested one: shard_tokens was 3000 and is now 4000"
    with pytest.raises(UserError, match=message):
        corpora.prepare(*inputs, out=tmp_path / "out", **SHORT | {"shard_tokens": 4000})
    assert corpora.contents(tmp_path / "out") == before | {"notes.txt": b"mine"}
    (tmp_path / "out" / "train-00000.bin").unlink()
    with pytest.raises(UserError, match=r"train-00000.bin is missing"):
        corpora.prepare(*inputs, out=tmp_path / "out", **SHORT)
    corpora.prepare(*inputs, out=tmp_path / "out", overwrite=True, **SHORT | {"shard_tokens": 10**6})
    assert set(corpora.contents(tmp_path / "out")) == {
        *("manifest.json", "rejected.jsonl", "notes.txt"),
        *("train-00000.bin", "train-00000.idx", "val-00000.bin", "val-00000.idx"),
    }


def test_two_processes_do_not_write_the_same_corpus(tmp_path: Path) -> None:
    arguments = write_inputs(tmp_path, megabytes=10)
    first = start(*arguments, *options(tmp_path / "out"))
    while not (tmp_path / "out" / ".work" / "plan.json").exists():
        time.sleep(0.01)
    first.send_signal(signal.SIGSTOP)
    second = start(*arguments, *options(tmp_path / "out"))
    _, output = second.communicate()
    assert second.returncode == 2 and "another process is writing this corpus" in output
    first.terminate()
    first.send_signal(signal.SIGCONT)
    assert first.wait() == 143


@pytest.mark.slow
def test_a_killed_worker_ends_the_command_which_can_be_resumed(tmp_path: Path) -> None:
    arguments = write_inputs(tmp_path, megabytes=10)
    process = start(*arguments, *options(tmp_path / "out"))
    while count_finished(tmp_path / "out") < 2 and process.poll() is None:
        time.sleep(0.002)
    os.kill(int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0]), signal.SIGKILL)
    try:
        output = process.communicate(timeout=30)[1]
    finally:
        process.kill()
    assert process.returncode == 2 and "A worker process was killed" in output
    again = start(*arguments, *options(tmp_path / "out"))
    assert again.wait(60) == 0 and "resuming an interrupted preparation" in again.communicate()[1]


def test_files_of_unknown_origin_are_not_overwritten(tmp_path: Path) -> None:
    inputs = write_inputs(tmp_path, megabytes=0.1)
    out = tmp_path / "out"
    out.mkdir()
    for name in ("train-00007.bin", "rejected.jsonl"):
        (out / name).write_text("precious")
    with pytest.raises(UserError, match=r"contains rejected\.jsonl, train-00007\.bin, which would be overwritten") as caught:
        corpora.prepare(*inputs, out=out)
    assert "overwrite=true" in str(caught.value)
    assert {(out / name).read_text() for name in ("train-00007.bin", "rejected.jsonl")} == {"precious"}
    corpora.prepare(*inputs, out=out, overwrite=True)
    (out / "manifest.json").unlink()
    with pytest.raises(UserError, match="would be overwritten"):
        corpora.prepare(*inputs, out=out)


def test_an_input_inside_the_corpus_folder_is_an_error(tmp_path: Path) -> None:
    inputs = write_inputs(tmp_path, megabytes=0.1)
    with pytest.raises(UserError, match="which is reserved for the corpus"):
        corpora.prepare(*inputs, out=tmp_path)


def test_an_interrupted_overwrite_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = write_inputs(tmp_path, megabytes=0.3)
    corpora.prepare(*inputs, out=tmp_path / "out")
    monkeypatch.setattr(segments, "SEGMENT_BYTES", 10_000)
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "write_shards", kill)
        with pytest.raises(Killed):
            corpora.prepare(*inputs, out=tmp_path / "out", overwrite=True)
    monkeypatch.setattr(encoding, "encode_batch", kill)
    corpora.prepare(*inputs, out=tmp_path / "out", overwrite=True)


def test_a_wrong_text_field_can_be_corrected(tmp_path: Path) -> None:
    lines = tmp_path / "a.jsonl"
    lines.write_text("".join(json.dumps({"body": f"text {n}"}) + "\n" for n in range(50)))
    message = r"no field text in an object with body.*Set text_field= to the field that contains the text"
    with pytest.raises(UserError, match=message) as caught:
        corpora.prepare(lines, out=tmp_path / "out", max_rejected=0.001)
    assert "max_rejected=1" not in str(caught.value)
    assert corpora.prepare(lines, out=tmp_path / "out", text_field="body")["parts"]["train"]["documents"] > 0


def test_a_complete_corpus_is_reported_without_its_inputs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inputs = write_inputs(tmp_path, megabytes=0.1)
    corpora.prepare(*inputs, out=tmp_path / "out")
    for file in inputs:
        Path(file).unlink()
    capsys.readouterr()
    corpora.prepare(out=tmp_path / "out", report=True)
    assert "bytes of text per token" in capsys.readouterr().out
    with pytest.raises(UserError, match="no complete corpus to report on"):
        corpora.prepare(out=tmp_path / "nothing", report=True)


def test_progress_is_printed_in_lines_without_a_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    corpora.prepare(*write_inputs(tmp_path, megabytes=0.1), out=tmp_path / "out")
    assert re.search(r"^\d+%  [\d,]+ documents  [\d.]+ MB/s  [\d,]+ tokens/s$", capsys.readouterr().err, re.MULTILINE)
