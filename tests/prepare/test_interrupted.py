"""Preparations that are killed, stopped or out of disk space, and then resumed."""

import errno
import json
import os
import random
import re
import resource
import shutil
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest

from gpt_pretrain.errors import UserError
from gpt_pretrain.prepare import encoding, pipeline, progress, segments, shards, tokenizing
from gpt_pretrain.prepare.encoded_corpus import EncodedCorpus
from gpt_pretrain.prepare.segments import read_journal
from gpt_pretrain.texts import reading
from gpt_pretrain.texts.containers import decompression
from gpt_pretrain.tokenizers import splitting
from tests.conftest import ROOT
from tests.helpers import corpora
from tests.helpers.corpora import SHORT, Killed, interrupt_before_shards, kill, start_prepare, write_inputs, write_short_inputs

VERSION_0_1_0 = ROOT / "tests" / "data" / "compat" / "0.1.0"


def options(out: Path) -> list[str]:
    return [f"out={out}", "workers=2", "dedup=exact", "val_tokens=20000", "shard_tokens=100000", "max_rejected=0.1"]


def count_finished(out: Path) -> int:
    """Return the number of finished segments and shards."""
    journals = [out / ".work" / "task-00000" / "journal.jsonl", out / ".work" / "shards.jsonl"]
    finished = 0
    for journal in journals:
        with suppress(FileNotFoundError):  # also one that has just been deleted
            finished += journal.read_bytes().count(b"\n")
    return finished


@pytest.mark.slow
@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_the_corpus_is_the_same_after_any_number_of_interruptions(tmp_path: Path, signal_number: signal.Signals) -> None:
    arguments = write_inputs(tmp_path, megabytes=10)
    undisturbed = start_prepare(*arguments, *options(tmp_path / "whole"))
    assert undisturbed.wait() == 0
    rng, stops, output = random.Random(signal_number), 0, ""
    while stops < 60:
        before = count_finished(tmp_path / "out")
        process = start_prepare(*arguments, *options(tmp_path / "out"))
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
    process = start_prepare(*arguments, *options(tmp_path / "out"), start_new_session=True)
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
    assert start_prepare(*arguments, f"out={tmp_path / 'whole'}", "max_rejected=0.1").wait() == 0
    killed = start_prepare(name, *arguments, f"out={tmp_path / 'out'}", "max_rejected=0.1", code=KILL_AT_RENAME)
    assert killed.wait() == -signal.SIGKILL
    assert list((tmp_path / "out").rglob(f".{name}.*.tmp"))
    assert start_prepare(*arguments, f"out={tmp_path / 'out'}", "max_rejected=0.1").wait() == 0
    assert corpora.contents(tmp_path / "out") == corpora.contents(tmp_path / "whole")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make segments, parts and batches so small that a short corpus has many of them."""
    monkeypatch.setattr(segments, "SEGMENT_BYTES", 4000)
    monkeypatch.setattr(splitting, "PART", 700)
    monkeypatch.setattr(splitting, "LOOKAHEAD", 400)
    monkeypatch.setattr(reading, "BATCH", 1000)
    monkeypatch.setattr(decompression, "BLOCK", 1000)


def test_the_corpus_is_the_same_wherever_a_process_dies(tmp_path: Path, small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = write_short_inputs(tmp_path)
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
    assert kills > 30 and manifests <= 1  # Only the fsync of the folder follows the rename of the manifest.


def test_finished_segments_and_shards_are_not_written_again(tmp_path: Path, small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, encoded, written = write_short_inputs(tmp_path), [], []
    real_encode, real_write = tokenizing.encode_batch, shards.write_shard
    monkeypatch.setattr(encoding, "encode_batch", lambda *a, **k: encoded.append(1) or real_encode(*a, **k))
    monkeypatch.setattr(shards, "write_shard", lambda job: written.append(job.name) or real_write(job))
    monkeypatch.setattr(pipeline, "write_json", lambda path, _: kill() if path.name == "manifest.json" else path.write_text("{}"))
    monkeypatch.setattr(pipeline, "start_or_resume", lambda folder, description, overwrite: description)
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
    interrupt_before_shards(write_short_inputs(tmp_path), tmp_path / "out")
    work = tmp_path / "out" / ".work"
    entry = json.loads((work / "task-00000" / "journal.jsonl").read_text().splitlines()[0])
    assert set(entry) == {"piece", "state"}
    assert set(entry["piece"]) == {"path", "tokens", "rows", "tokens_sha256", "rows_sha256"}
    assert set(entry["state"]) == {
        *("after", "counts", "open_hash", "open_tokens", "open_bytes", "rejects_size", "complete"),
    }
    assert set(entry["state"]["after"]) == {"file", "offset", "record", "in_document", "member"}
    assert set(entry["state"]["counts"]) == {
        *("records", "empty", "by_reason", "text_bytes", "tokens", "markers", "controls", "nuls", "marks", "failed_files"),
        *("unknown", "unknown_example"),
    }
    plan = json.loads((work / "plan.json").read_text())
    assert set(plan) == {"tokenizer", "source", "options", "work", "overwrite"}
    assert set(plan["source"][0]) == {"path", "bytes", "changed"} and set(plan["work"]) == {"tasks", "text_rules"}


def test_a_journal_and_segments_that_were_changed_are_refused(tmp_path: Path) -> None:
    interrupt_before_shards(write_short_inputs(tmp_path), tmp_path / "out")
    work = tmp_path / "out" / ".work" / "task-00000"
    corpus = EncodedCorpus.open([work], itemsize=2)
    segment = read_journal(work)[0][0]
    segment.path.write_bytes(segment.path.read_bytes()[:101])
    with pytest.raises(
        UserError, match=r"\.bin is damaged: it is shorter than the journal says\. Start over with overwrite=true"
    ):
        corpus.tokens(0, segment.tokens)
    lines = (work / "journal.jsonl").read_text().splitlines(keepends=True)
    entry = json.loads(lines[0])
    entry["state"]["counts"]["unknown_example"] = 3
    (work / "journal.jsonl").write_text(json.dumps(entry) + "\n" + "".join(lines[1:]))
    with pytest.raises(UserError, match=r"journal\.jsonl is damaged: an example is not a text\. Delete .*\.work to start over"):
        read_journal(work)


@pytest.mark.parametrize("encoded", ["everything", "the first segment"])
def test_an_interrupted_preparation_of_version_0_1_0_is_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], encoded: str
) -> None:
    shutil.copytree(VERSION_0_1_0 / "interrupted", tmp_path / "out")
    shutil.copy(VERSION_0_1_0 / "documents.jsonl", tmp_path)
    os.utime(tmp_path / "documents.jsonl", ns=(10**18, 10**18))  # The modification time in the plan.
    (tmp_path / "out" / ".train-00002.bin.tmp").write_bytes(b"half-written")
    if encoded == "the first segment":
        journal = tmp_path / "out" / ".work" / "task-00000" / "journal.jsonl"
        journal.write_text(journal.read_text().splitlines(keepends=True)[0])
    monkeypatch.chdir(tmp_path)
    corpora.prepare("documents.jsonl", out=Path("out"), val_fraction=0.1, shard_tokens=2000)
    assert "resuming an interrupted preparation" in capsys.readouterr().err
    assert corpora.contents(tmp_path / "out") == corpora.contents(VERSION_0_1_0 / "corpus")


def test_a_full_disk_is_an_error_and_the_command_resumes_afterwards(tmp_path: Path) -> None:
    arguments = write_inputs(tmp_path, megabytes=3)
    assert start_prepare(*arguments, *options(tmp_path / "whole")).wait() == 0

    def limit_file_size() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, 150_000))

    process = start_prepare(*arguments, *options(tmp_path / "out"), preexec_fn=limit_file_size)
    _, output = process.communicate()
    assert process.returncode == 2 and "Allow larger files (ulimit -f unlimited) and run the same command again" in output, output
    assert not (tmp_path / "out" / "manifest.json").exists()
    process = start_prepare(*arguments, *options(tmp_path / "out"))
    _, output = process.communicate()
    assert process.returncode == 0 and "resuming" in output, output
    assert corpora.contents(tmp_path / "out") == corpora.contents(tmp_path / "whole")


def test_a_disk_that_fills_up_while_shards_are_written_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = write_short_inputs(tmp_path)

    def fail(_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(shards, "write_shard", fail)
        with pytest.raises(UserError, match=r"No space left on device\. Free some space"):
            corpora.prepare(*inputs, out=tmp_path / "out", **SHORT)
    assert corpora.prepare(*inputs, out=tmp_path / "out", **SHORT)["parts"]["train"]["tokens"] > 0


def test_a_file_that_changes_while_it_is_read_is_an_error(tmp_path: Path, small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = write_short_inputs(tmp_path)
    real = tokenizing.encode_batch
    monkeypatch.setattr(encoding, "encode_batch", lambda *a, **k: os.utime(inputs[0], ns=(1, 1)) or real(*a, **k))
    with pytest.raises(UserError, match=r"a.jsonl has changed since this command started"):
        corpora.prepare(*inputs, out=tmp_path / "out", **SHORT)


@pytest.mark.slow
def test_a_killed_worker_ends_the_command_which_can_be_resumed(tmp_path: Path) -> None:
    arguments = write_inputs(tmp_path, megabytes=10)
    process = start_prepare(*arguments, *options(tmp_path / "out"))
    while count_finished(tmp_path / "out") < 2 and process.poll() is None:
        time.sleep(0.002)
    os.kill(int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0]), signal.SIGKILL)
    try:
        output = process.communicate(timeout=30)[1]
    finally:
        process.kill()
    assert process.returncode == 2 and "A worker process was killed" in output
    again = start_prepare(*arguments, *options(tmp_path / "out"))
    assert again.wait(60) == 0 and "resuming an interrupted preparation" in again.communicate()[1]


def test_progress_is_printed_in_lines_without_a_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    corpora.prepare(*write_inputs(tmp_path, megabytes=0.1), out=tmp_path / "out")
    assert re.search(r"^\d+%  [\d,]+ documents  [\d.]+ MB/s  [\d,]+ tokens/s$", capsys.readouterr().err, re.MULTILINE)
