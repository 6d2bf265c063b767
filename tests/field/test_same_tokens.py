"""The same text gives the same tokens by every way into the program."""

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt_pretrain.data.token_cache import tokenize_text
from gpt_pretrain.errors import UserError
from gpt_pretrain.prepare import pipeline
from gpt_pretrain.texts import chunks, reading
from gpt_pretrain.texts.documents import divide_documents
from gpt_pretrain.texts.text import Text
from gpt_pretrain.tokenizers.build import build_tokenizer
from tests.helpers import corpora
from tests.helpers.corpora import SHORT, interrupt_before_shards, write_short_inputs

MARKER = "<|endoftext|>"
GPT2 = build_tokenizer("gpt2")


def corpus_tokens(tmp_path: Path, *sources: Path, **settings: object) -> list[int]:
    out = tmp_path / f"corpus-{len(list(tmp_path.iterdir()))}"
    corpora.prepare(*sources, out=out, **{"tokenizer": "gpt2", "val_fraction": 0.0} | settings)
    corpora.check_manifest(out)
    return corpora.tokens(out, "train").tolist()  # type: ignore[no-any-return]


def training_tokens(tmp_path: Path, *files: Path) -> list[int]:
    """Return the tokens of data=text, with the end of text that a corpus has after its last document."""
    split = tokenize_text(Text(files), GPT2, train_ratio=1.0, cache_dir=tmp_path)
    return [*split.train.read().tolist(), GPT2.eos_id]


TEXTS = {
    "markers": "One day a cat sat.\n<|endoftext|>\nTwo birds flew.\n<|endoftext|>\nThree dogs ran.\n",
    "markers without spaces": "One.<|endoftext|>Two.<|endoftext|>Three.",
    "a marker in the marker": "One <|endof<|endoftext|>text|> two <|endoftext|",
    "Windows": "line one\r\nline two\r\n\r\nlast",
    "old Macintosh": "line one\rline two\r\rlast",
    "a mixture": "a\r\n\rb\n\rc\r\r\nd",
    "before a marker": "one\r<|endoftext|>\r\ntwo",
}


@pytest.mark.parametrize("name", TEXTS)
def test_a_text_has_the_same_tokens_in_training_and_in_a_corpus(tmp_path: Path, name: str) -> None:
    text = TEXTS[name]
    (tmp_path / "a.txt").write_bytes(text.encode())
    (tmp_path / "marked.txt").write_bytes(b"\xef\xbb\xbf" + text.encode())
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(text.encode()))
    (tmp_path / "a.jsonl").write_bytes(json.dumps({"text": text}).encode())
    expected = [*GPT2.encode(text.replace("\r\n", "\n").replace("\r", "\n")), GPT2.eos_id]
    for file in ("a.txt", "marked.txt"):
        assert training_tokens(tmp_path, tmp_path / file) == expected
    for file in ("a.txt", "marked.txt", "a.txt.gz", "a.jsonl"):
        assert corpus_tokens(tmp_path, tmp_path / file) == expected


def test_a_marker_in_a_column_of_a_table_ends_a_document(tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(arrow.table({"text": ["One.<|endoftext|>Two.\r\n", "Three."]}), tmp_path / "a.parquet")
    corpora.prepare(tmp_path / "a.parquet", out=tmp_path / "out", val_fraction=0.0)
    assert corpora.texts(tmp_path / "out", "train") == ["One.", "Two.\n", "Three."]


def test_the_markers_are_counted_on_the_screen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.txt").write_text(f"One.{MARKER}Two.{MARKER}")
    (tmp_path / "b.jsonl").write_text(json.dumps({"text": f"{MARKER}Three."}) + "\n" + json.dumps({"text": MARKER}))
    corpora.prepare(tmp_path / "a.txt", tmp_path / "b.jsonl", out=tmp_path / "out", val_fraction=0.0)
    assert corpora.texts(tmp_path / "out", "train") == ["One.", "Two.", "Three."]
    shown = capsys.readouterr().out
    assert f"4 documents ended at {MARKER} in the text." in shown and "2 records without text" in shown


def test_training_counts_the_markers_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpt_pretrain.texts.text.PIECE_CHARS", 7)
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text(f"One.{MARKER}Two.{MARKER}Three.")
    for _ in ("tokenized", "from the cache"):
        split = tokenize_text(Text((tmp_path / "a.txt", tmp_path / "b.txt")), GPT2, train_ratio=0.9, cache_dir=tmp_path)
        assert split.text_size == f"28 characters, 4 {MARKER} in the text"


def test_the_split_cuts_no_marker_in_the_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a" * 20 + MARKER + "b" * 20)
    for cut in range(18, 36):
        split = tokenize_text(Text((tmp_path / "a.txt",)), GPT2, train_ratio=cut / 53 + 1e-9, cache_dir=tmp_path)
        tokens = [*split.train.read().tolist(), *split.val.read().tolist()]
        assert tokens.count(GPT2.eos_id) == 1 and MARKER not in GPT2._encoding.decode(tokens).replace(MARKER, "", 1)


def test_markers_give_the_corpus_that_separate_records_give(tmp_path: Path) -> None:
    documents = [f"document {number}. " * (number % 9 + 1) for number in range(300)]
    (tmp_path / "a.txt").write_text(MARKER.join(documents))
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    for name in ("a.txt", "a.jsonl"):
        corpora.prepare(tmp_path / name, out=tmp_path / name[2:], val_fraction=0.2, dedup="exact")
    for part in ("train", "val"):
        assert corpora.texts(tmp_path / "txt", part) == corpora.texts(tmp_path / "jsonl", part)


@pytest.mark.parametrize("separator", [MARKER + "\\n", "\\n" + MARKER, MARKER, "\\r\\n\\r\\n", "\\n\\n", "<|"])
def test_a_separator_of_ones_own_and_the_marker_divide_together(tmp_path: Path, separator: str) -> None:
    (tmp_path / "a.txt").write_bytes(f"one\r\n\r\ntwo\r\n{MARKER}\r\nthree{MARKER}".encode())
    corpora.prepare(tmp_path / "a.txt", out=tmp_path / "out", val_fraction=0.0, document_separator=separator)
    expected = {
        MARKER + "\\n": ["one\n\ntwo\n", "three"],
        "\\n" + MARKER: ["one\n\ntwo", "\nthree"],
        MARKER: ["one\n\ntwo\n", "\nthree"],
        "\\r\\n\\r\\n": ["one", "two\n", "\nthree"],
        "\\n\\n": ["one", "two\n", "\nthree"],
        "<|": ["one\n\ntwo\n", "\nthree"],
    }
    assert corpora.texts(tmp_path / "out", "train") == expected[separator]


@given(
    st.lists(st.sampled_from(["<|endoftext|>", "<|endof", "text|>", "<>", "\r", "\n", "é", "word ", "<"]), max_size=30),
    st.integers(1, 20),
)
def test_documents_do_not_depend_on_the_size_of_the_blocks(pieces: list[str], block: int) -> None:
    text = "".join(pieces)
    data = text.replace("\r", "\n").encode()
    blocks = (data[start : start + block] for start in range(0, len(data), block))
    cursor, found = chunks.Cursor("name", chunks.ReadPosition(), bytes_read=lambda: 0), [""]
    chunks_read = reading.split_documents(blocks, cursor, "<>", GPT2)
    for chunk in (part for read in chunks_read for part in divide_documents(read)):
        found[-1] += str(chunk.content)
        found += [""] if chunk.ends else []
    expected = data.decode().replace(MARKER, "<>").split("<>")
    assert found[:-1] == (expected if expected[-1] or len(expected) == 1 else expected[:-1])
    assert cursor.offset == len(data)


@pytest.mark.parametrize("end", ["\r\n", "\n"])
def test_json_lines_may_end_in_any_way(tmp_path: Path, end: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpt_pretrain.texts.containers.decompression.BLOCK", 5)
    documents = ["one", "two\nlines", "three"]
    (tmp_path / "a.jsonl").write_bytes("".join(json.dumps({"text": text}) + end for text in documents).encode())
    corpora.prepare(tmp_path / "a.jsonl", out=tmp_path / "out", val_fraction=0.0, max_rejected=0.0)
    assert corpora.texts(tmp_path / "out", "train") == documents


def test_a_text_with_windows_line_ends_is_resumed_at_the_right_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpt_pretrain.prepare.segments.SEGMENT_BYTES", 3000)
    monkeypatch.setattr("gpt_pretrain.texts.reading.BATCH", 1000)
    monkeypatch.setattr("gpt_pretrain.texts.containers.blocks.BLOCK", 600)
    (tmp_path / "a.txt").write_bytes(b"".join(b"line %d\r\n<>\r\n" % number for number in range(2000)))
    inputs = [tmp_path / "a.txt"]
    expected = corpus_tokens(tmp_path, *inputs, tokenizer="byte", document_separator="<>")
    left = iter(range(20))

    def add_or_die(self: object, *arguments: object) -> None:
        if next(left, None) is None:
            raise corpora.Killed
        real(self, *arguments)  # type: ignore[arg-type]

    real = pipeline.encode_inputs.__globals__["SegmentWriter"].add
    with monkeypatch.context() as patch:
        patch.setattr("gpt_pretrain.prepare.segments.SegmentWriter.add", add_or_die)
        with pytest.raises(corpora.Killed):
            corpora.prepare(*inputs, out=tmp_path / "out", val_fraction=0.0, document_separator="<>")
    corpora.prepare(*inputs, out=tmp_path / "out", val_fraction=0.0, document_separator="<>")
    assert corpora.tokens(tmp_path / "out", "train").tolist() == expected


def start_as_an_earlier_version(inputs: list[Path], out: Path) -> None:
    """Leave a preparation that a version without the present rules has begun."""
    interrupt_before_shards(inputs, out)
    [journal] = out.glob(".work/task-*/journal.jsonl")
    entry = json.loads(journal.read_text().splitlines()[-1])
    entry["state"]["complete"] = False
    journal.write_text(json.dumps(entry) + "\n")
    plan = json.loads((out / ".work" / "plan.json").read_text())
    del plan["work"]["text_rules"]
    (out / ".work" / "plan.json").write_text(json.dumps(plan))


def test_an_unfinished_corpus_of_text_files_of_an_earlier_version_is_refused(tmp_path: Path) -> None:
    inputs = write_short_inputs(tmp_path)
    start_as_an_earlier_version(inputs, tmp_path / "out")
    with pytest.raises(UserError, match=r"unfinished corpus of an earlier version.*overwrite=true"):
        corpora.prepare(*inputs, out=tmp_path / "out", **SHORT)
    corpora.prepare(*inputs, out=tmp_path / "out", overwrite=True, **SHORT)
    corpora.prepare(*inputs, out=tmp_path / "whole", **SHORT)
    assert corpora.texts(tmp_path / "out", "train") == corpora.texts(tmp_path / "whole", "train")


def test_an_unfinished_corpus_of_records_of_an_earlier_version_goes_on_by_its_rules(tmp_path: Path) -> None:
    records, documents = tmp_path / "a.jsonl", [f"one\r\n{MARKER}", *(f"document {number} " * 9 for number in range(20))]
    records.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "has_old_rules", lambda plan: True)
        interrupt_before_shards([records], tmp_path / "out")
    corpora.prepare(records, out=tmp_path / "out", **SHORT)
    found = corpora.texts(tmp_path / "out", "train") + corpora.texts(tmp_path / "out", "val")
    assert sorted(found) == sorted(documents)


def test_a_finished_corpus_of_an_earlier_version_stays(tmp_path: Path) -> None:
    inputs = write_short_inputs(tmp_path)
    corpora.prepare(*inputs, out=tmp_path / "out", **SHORT)
    before = corpora.contents(tmp_path / "out")
    corpora.prepare(*inputs, out=tmp_path / "out", **SHORT)
    assert corpora.contents(tmp_path / "out") == before


BLANKS = {
    "a marker at the end": ("a<|endoftext|>\n", ["a"]),
    "two markers": ("a<|endoftext|><|endoftext|>b", ["a", "b"]),
    "blanks between markers": ("\n<|endoftext|>a\n<|endoftext|> \n\u3000<|endoftext|>b", ["a\n", "b"]),
    "many blanks": (" \n" * 600_000 + "a<|endoftext|>" + "\n\t" * 600_000, [" \n" * 600_000 + "a"]),
}


@pytest.mark.parametrize("name", BLANKS)
def test_documents_without_text_are_left_out_everywhere(tmp_path: Path, name: str) -> None:
    text, documents = BLANKS[name]
    (tmp_path / "a.txt").write_text(text)
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in (text, "z", " " * 1_100_000)))
    for file, expected in (("a.txt", documents), ("a.jsonl", [*documents, "z"])):
        assert "".join(Text((tmp_path / file,)).pieces()).split(MARKER) == expected
        corpora.prepare(tmp_path / file, out=tmp_path / f"of {file}", val_fraction=0.0)
        assert corpora.texts(tmp_path / f"of {file}", "train") == expected


def test_a_long_blank_document_is_left_out_wherever_reading_resumes(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(f"one{MARKER}{' ' * 2_000_000}{MARKER}two")

    def read(start: chunks.ReadPosition) -> list[chunks.Chunk]:
        found = reading.read_inputs(corpora.inputs_of(tmp_path / "a.txt"), GPT2, start=start)
        return [part for chunk in found for part in divide_documents(chunk)]

    chunks_read = read(chunks.ReadPosition())
    assert [chunk.blank for chunk in chunks_read if chunk.ends] == [False, True, False] and len(chunks_read) > 4
    for number, chunk in enumerate(chunks_read[:-1]):
        assert [(other.content, other.blank) for other in read(chunk.end)] == [
            (other.content, other.blank) for other in chunks_read[number + 1 :]
        ]


def test_only_texts_with_blank_documents_between_markers_lose_their_cache(tmp_path: Path) -> None:
    contents = {"plain": "One. " * 9, "marked": f"One.{MARKER}Two. " * 9, "blank": f"One.{MARKER}\n{MARKER}Two. " * 9}
    for name, content in contents.items():
        (tmp_path / name).write_text(content)
        text = Text((tmp_path / name,))
        split = tokenize_text(text, GPT2, train_ratio=0.9, cache_dir=tmp_path)
        assert (split.text_sha256 == text.sha256()) == (name != "blank")
        assert tokenize_text(text, GPT2, train_ratio=0.9, cache_dir=tmp_path) == split


@pytest.mark.parametrize("change", ["grows", "shrinks", "disappears"])
def test_a_text_that_changes_while_it_is_read_is_refused(tmp_path: Path, change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    file, passes = tmp_path / "a.txt", iter(range(100))
    file.write_text("The old lighthouse stood alone.\n" * 50)
    real = Text.pieces

    def pieces(text: Text, *arguments: object) -> object:
        if next(passes) == 1:
            file.unlink() if change == "disappears" else file.write_text("Another story. " * (9 if change == "shrinks" else 900))
        return real(text, *arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch, pytest.raises(UserError, match=r"a\.txt has changed while it was being read"):
        patch.setattr(Text, "pieces", pieces)
        tokenize_text(Text((file,)), GPT2, train_ratio=0.9, cache_dir=tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("split.json"))
