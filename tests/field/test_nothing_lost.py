"""Check that nothing is lost in silence: an input that cannot be read to its end stops the preparation, or is listed."""

import errno
import gzip
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
import zstandard

from gpt_pretrain.commands.main import main
from gpt_pretrain.commands.tokenizer import tokenizer_command
from gpt_pretrain.config.schema import SourceSettings
from gpt_pretrain.data.sources import find_data_sources, find_shard_tokenizer
from gpt_pretrain.errors import UserError
from gpt_pretrain.texts import reading
from gpt_pretrain.tokenizers.byte import ByteTokenizer
from tests.helpers import corpora
from tests.helpers.data_settings import data_settings
from tests.helpers.training_runs import Printed, Train

GOOD = [f"a good document with the number {hash((number, 1)):x}" for number in range(1000)]


def lines(documents: list[str]) -> bytes:
    return "".join(json.dumps({"text": text}) + "\n" for text in documents).encode()


def parquet(documents: list[str]) -> bytes:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    stream = io.BytesIO()
    parquet.write_table(arrow.table({"text": documents}), stream)
    return stream.getvalue()


# Files that cannot be read to their end, as interrupted downloads, copies and full disks leave them.
FAILING = {
    "half.jsonl.gz": gzip.compress(lines(GOOD))[:-500],
    "half.txt.gz": gzip.compress(" ".join(GOOD).encode())[:-500],
    "half.jsonl.zst": zstandard.compress(lines(GOOD))[:-500],
    "changed.jsonl.gz": gzip.compress(lines(GOOD))[:4000] + b"\xff" * 500 + gzip.compress(lines(GOOD))[4500:],
    "wrong_checksum.jsonl.gz": gzip.compress(lines(GOOD))[:-8] + b"\0" * 8,
    "second_member.jsonl.gz": gzip.compress(lines(GOOD)) + gzip.compress(lines(GOOD))[:-20],
    "half.parquet": parquet(GOOD)[:5000],
    "half.jsonl": lines(GOOD)[:-30],
    "latin.txt": "Grüße aus München. ".encode("latin-1") * 500,
}


def write(folder: Path, *names: str) -> list[Path]:
    (folder / "good.jsonl").write_bytes(lines(GOOD))
    for name in names:
        (folder / name).write_bytes(FAILING[name])
    return [folder / "good.jsonl", *(folder / name for name in names)]


@pytest.mark.parametrize("name", FAILING)
def test_a_file_that_cannot_be_read_to_its_end_stops_the_command(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=rf"{name}.*(max_failed_files=1|Convert|iconv)"):
        corpora.prepare(*write(tmp_path, name), out=tmp_path / "out", val_fraction=0.0, max_failed_files=0)
    assert not (tmp_path / "out" / "manifest.json").exists()


@pytest.mark.parametrize("name", [name for name in FAILING if name not in ("latin.txt", "changed.jsonl.gz")])
def test_with_max_failed_files_it_is_listed_and_the_exit_code_says_so(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    arguments = [*map(str, write(tmp_path, name)), f"out={out}", "val_fraction=0", "workers=1", "tokenizer=byte"]

    def exit_code(*more: str) -> Any:
        monkeypatch.setattr("sys.argv", ["gpt-pretrain", "prepare", *arguments, *more])
        with pytest.raises(SystemExit) as caught:
            main()
        return caught.value.code

    assert exit_code() == 2 and "max_failed_files=1" in capsys.readouterr().err
    assert exit_code("max_failed_files=1") == 3
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].startswith("INCOMPLETE: 1 file ") and f"{tmp_path / name}, record" in "\n".join(shown)
    assert "complete except" in shown[-1] and not any("unusable record" in line for line in shown)
    assert exit_code("max_failed_files=1") == 3, "the corpus is still incomplete"
    shown = capsys.readouterr().out.splitlines()
    assert "INCOMPLETE" in shown[0] and name in shown[1]
    assert corpora.texts(out, "train")[: len(GOOD)] == GOOD
    manifest = corpora.read_manifest(out)
    assert manifest["rejected"]["records"] == 0 and name in manifest["failed_files"][0]


def test_several_failures_are_counted_over_resumptions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = write(tmp_path, *(name for name in FAILING if name != "latin.txt"))
    count = len(inputs) - 1
    for allowed in range(count):
        with pytest.raises(UserError, match="cannot be read to"):
            corpora.prepare(*inputs, out=tmp_path / "out", val_fraction=0.0, max_failed_files=allowed)
    corpora.prepare(*inputs, out=tmp_path / "out", val_fraction=0.0, max_failed_files=count)
    corpora.prepare(*inputs, out=tmp_path / "at once", val_fraction=0.0, max_failed_files=count)
    assert len(corpora.read_manifest(tmp_path / "out")["failed_files"]) == count
    for name, content in corpora.contents(tmp_path / "at once").items():
        assert corpora.contents(tmp_path / "out")[name] == content


def test_failures_of_the_tasks_of_an_executor_are_counted_together(tmp_path: Path) -> None:
    pytest.importorskip("datatrove")
    inputs, options = write(tmp_path, "half.jsonl.gz", "half.jsonl"), {"executor": "local", "tasks": 3, "val_fraction": 0.0}
    with pytest.raises(UserError, match=r"2 files cannot be read to their end.*max_failed_files=2"):
        corpora.prepare(*inputs, out=tmp_path / "out", max_failed_files=1, **options)
    corpora.prepare(*inputs, out=tmp_path / "out", max_failed_files=2, **options)
    assert len(corpora.read_manifest(tmp_path / "out")["failed_files"]) == 2


def test_a_read_error_stops_the_command_which_can_be_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = [*write(tmp_path), tmp_path / "later.jsonl"]
    inputs[1].write_bytes(lines(["later"]))

    def fail(*_: object) -> object:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(reading, "split_lines", fail)
        with pytest.raises(UserError, match=r"good\.jsonl.*Input/output error"):
            corpora.prepare(*inputs, out=tmp_path / "out", val_fraction=0.0, max_failed_files=0)
    corpora.prepare(*inputs, out=tmp_path / "out", val_fraction=0.0, max_failed_files=0)
    assert corpora.texts(tmp_path / "out", "train") == [*GOOD, "later"]


def test_a_last_line_without_a_line_feed_is_fine_if_it_is_whole(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines(GOOD)[:-1])
    corpora.prepare(tmp_path / "a.jsonl", out=tmp_path / "out", val_fraction=0.0, max_rejected=0.0, max_failed_files=0)
    assert corpora.texts(tmp_path / "out", "train") == GOOD


def test_a_document_among_others_that_is_not_utf8_is_a_record(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"one<>Gr\xfc\xdfe<>three")
    manifest = corpora.prepare(tmp_path / "a.txt", out=tmp_path / "out", val_fraction=0.0, document_separator="<>")
    assert manifest["rejected"] == {"records": 1, "by_reason": {"not UTF-8": 1}} and "failed_files" not in manifest


def test_a_run_on_an_incomplete_corpus_warns(tmp_path: Path, train: Train, printed: Printed) -> None:
    corpora.prepare(*write(tmp_path, "half.jsonl"), out=tmp_path / "out", val_fraction=0.1, max_failed_files=1)
    train("data=shards", f"data.path={tmp_path / 'out'}", "trainer.max_steps=1")
    [line] = [line for line in printed() if "the corpus is incomplete" in line]
    assert "1 file could not be read to the end" in line and "manifest.json" in line


def test_an_archive_without_text_is_said_to_have_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("A text.")
    with zipfile.ZipFile("pictures.zip", "w") as archive:
        archive.writestr("a.png", b"\x89PNG\r\n\x1a\n" + bytes(40))
    message = r"^1 file contains no text: pictures.zip: it contains no file that can be read: 1 PNG image \(a.png\). Leave it out"
    with pytest.raises(UserError, match=message):
        corpora.prepare("pictures.zip", "a.txt", out=Path("corpus"), max_failed_files=0)
    with pytest.raises(UserError, match=r"^A file contains no text: pictures.zip: it contains .* Leave it out\.$"):
        tokenizer_command(["pictures.zip", "out=own", "vocab_size=300"])


def test_all_missing_sources_of_a_mixture_are_named_by_their_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("A text.")
    (tmp_path / "empty").mkdir()
    sources = [SourceSettings(path, 1.0) for path in ("gone.txt", "gone.bin", "a.txt", "empty")]
    settings = data_settings(tmp_path, name="mixture", sources=sources)
    for find in (lambda: find_data_sources(settings, ByteTokenizer()), lambda: find_shard_tokenizer(settings)):
        with pytest.raises(UserError) as caught:
            find()
        assert all(problem.startswith("data.sources: path=") for problem in caught.value.problems)
    with pytest.raises(UserError) as caught:
        find_data_sources(settings, ByteTokenizer())
    assert [problem.split("=")[1].split(":")[0] for problem in caught.value.problems] == ["gone.txt", "gone.bin", "empty"]
