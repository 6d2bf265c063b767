"""The folder of a corpus: what is complete, changed, or foreign in it, and who may write."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from gpt_pretrain.errors import UserError
from gpt_pretrain.prepare import encoding, pipeline, segments
from tests.helpers import corpora, vocabularies
from tests.helpers.corpora import SHORT, Killed, interrupt_before_shards, kill, start_prepare, write_inputs, write_short_inputs
from tests.helpers.made_runs import make_run
from tests.helpers.waiting import wait_until


def change(path: Path) -> None:
    text = path.read_text()
    path.write_text("D" + text[1:])
    os.utime(path, ns=(1, 1))


CHANGES: dict[str, Callable[[list[Path]], tuple[list[Path], dict[str, object]]]] = {
    'a.jsonl" has changed': lambda inputs: (change(inputs[0]), (inputs, {}))[1],
    'b.txt" is no longer an input': lambda inputs: (inputs[:1], {}),
    "the inputs are in a different order": lambda inputs: (inputs[::-1], {}),
    "val_tokens was 500 and is now 600": lambda inputs: (inputs, {"val_tokens": 600}),
    'requested one: tokenizer was "byte" and is now "gpt2". Choose': lambda inputs: (inputs, {"tokenizer": "gpt2"}),
}


def test_inputs_that_changed_or_vanished_after_the_end_are_noticed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "a.txt"
    file.write_text("some text " * 100)
    corpora.prepare(file, out=tmp_path / "out", val_tokens=100)
    file.write_text("more text " * 100)
    inputs = corpora.inputs_of(file)
    pipeline._warn_of_changed_inputs(inputs, tmp_path / "out")
    assert "a.txt changed after the corpus was completed. overwrite=true prepares it again." in capsys.readouterr().err
    file.unlink()  # while the inputs are being looked at
    pipeline._warn_of_changed_inputs(inputs, tmp_path / "out")


@pytest.mark.parametrize("message", CHANGES)
def test_a_change_since_the_interruption_is_an_error(tmp_path: Path, message: str) -> None:
    inputs = write_short_inputs(tmp_path)
    interrupt_before_shards(inputs, tmp_path / "out")
    inputs, changed = CHANGES[message](inputs)
    with pytest.raises(UserError) as caught:
        corpora.prepare(*inputs, out=tmp_path / "out", **SHORT | changed)
    error = str(caught.value)
    assert "contains a corpus (unfinished) that differs" in error and message in error and "overwrite=true" in error
    corpora.prepare(*inputs, out=tmp_path / "out", overwrite=True, **SHORT | changed)
    corpora.prepare(*inputs, out=tmp_path / "fresh", **SHORT | changed)
    assert corpora.contents(tmp_path / "out") == corpora.contents(tmp_path / "fresh")


def test_a_vocabulary_that_has_changed_is_named_without_its_hash(tmp_path: Path) -> None:
    inputs, vocabulary = write_short_inputs(tmp_path), tmp_path / "vocabulary"
    vocabularies.byte_level(vocabulary)
    corpora.prepare(*inputs, out=tmp_path / "out", **SHORT | {"tokenizer": str(vocabulary)})
    vocabularies.byte_level(tmp_path / "another", size=380)
    (tmp_path / "another" / "tokenizer.json").replace(vocabulary / "tokenizer.json")
    pipeline.cached_tokenizer.cache_clear()
    with pytest.raises(UserError, match=r"differs from the requested one: the vocabulary vocabulary was another one then"):
        corpora.prepare(*inputs, out=tmp_path / "out", **SHORT | {"tokenizer": str(vocabulary)})


def test_a_complete_corpus_is_not_touched(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inputs = write_short_inputs(tmp_path)
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
    arguments = [*write_inputs(tmp_path, megabytes=10), f"out={tmp_path / 'out'}", "workers=2", "max_rejected=0.1"]
    first = start_prepare(*arguments)
    wait_until((tmp_path / "out" / ".work" / "plan.json").exists)
    first.send_signal(signal.SIGSTOP)
    second = start_prepare(*arguments)
    _, output = second.communicate()
    assert second.returncode == 2 and "another process is writing this corpus" in output
    first.terminate()
    first.send_signal(signal.SIGCONT)
    assert first.wait() == 143


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


def test_a_corpus_is_not_mixed_with_a_run(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("A text.")
    make_run(tmp_path / "run")
    before = sorted((tmp_path / "run").rglob("*"))
    with pytest.raises(UserError, match=r"run holds a run or a sweep\. Choose another folder for the corpus\."):
        corpora.prepare(tmp_path / "a.txt", out=tmp_path / "run")
    assert sorted((tmp_path / "run").rglob("*")) == before
