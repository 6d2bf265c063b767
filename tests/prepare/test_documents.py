"""Documents that are read and encoded together are those that lie between the separators of a text."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt_pretrain.prepare import tokenizing
from gpt_pretrain.prepare.tokenizing import encode_batch
from gpt_pretrain.texts import reading
from gpt_pretrain.texts.chunks import Chunk, Cursor, Documents, ReadPosition
from gpt_pretrain.texts.documents import MARKER, Separators, divide_documents
from gpt_pretrain.tokenizers import splitting
from tests.helpers import corpora

pytest.importorskip("gigatoken")

PIECES = st.sampled_from(["<|endoftext|>", "<|endof", "text|>", "<>", "<><", "<", ">", "\n", "\n\n", " ", "é", "word "])


@pytest.mark.parametrize("separators", [[], [b"<>"], [b"\n\n"], [b"<"], [b"<><"], [b"<|"], [MARKER]], ids=repr)
@given(pieces=st.lists(PIECES, max_size=20), end=st.integers(0, 60))
def test_separators_are_those_of_a_regular_expression(separators: list[bytes], pieces: list[str], end: int) -> None:
    data, found = "".join(pieces).encode(), Separators([MARKER, *separators])
    pattern = re.compile(b"|".join(map(re.escape, sorted({MARKER, *separators}, key=len, reverse=True))))
    matches = [match for match in pattern.finditer(data) if match.start() < end]
    first = (matches[0].start(), matches[0][0]) if matches else None
    assert found.find(data, 0, end) == first
    assert found.whole_documents(data, 0, end) == (len(matches), matches[-1].end() if matches else 0)
    whole = data[: matches[-1].end()] if matches else b""
    if whole:
        assert found.split(whole) == (pattern.split(whole)[:-1], pattern.findall(whole))


@pytest.mark.parametrize("block", [7, 50, 10_000])
def test_reading_resumes_behind_every_chunk(tmp_path: Path, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpt_pretrain.texts.containers.decompression.BLOCK", block)
    monkeypatch.setattr("gpt_pretrain.texts.containers.blocks.BLOCK", block)
    monkeypatch.setattr("gpt_pretrain.texts.containers.blocks.HEAD", block)
    text = "".join(f"{'word é ' * (number % 9)}{number}\r\n<>{' <|endoftext|>' * (number % 2)}" for number in range(40))
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf" + text.encode())
    tokenizer, inputs = corpora.cached_tokenizer("gpt2"), replace(corpora.inputs_of(tmp_path / "a.txt"), separator="<>")

    def read(start: ReadPosition) -> list[Chunk]:
        return list(reading.read_inputs(inputs, tokenizer, start=start))

    def texts(chunks: list[Chunk]) -> list[tuple[int, object]]:
        documents: dict[int, object] = {}
        for part in (part for chunk in chunks for part in divide_documents(chunk)):
            documents[part.first] = str(documents.get(part.first, "")) + str(part.content)
        return list(documents.items())

    everything = read(ReadPosition())
    expected = re.split(r"<>|<\|endoftext\|>", text.replace("\r\n", "\n"))
    assert [content for _, content in texts(everything)] == expected[:-1]
    for number, chunk in enumerate(everything):
        assert texts(read(chunk.end)) == texts(everything[number + 1 :])


def read_documents(data: bytes) -> Chunk:
    return Cursor("a.txt", ReadPosition(), bytes_read=lambda: 0).documents(data, (MARKER, b"<>"), count=data.count(b">"))


@given(st.lists(st.text(alphabet="ab1 \n.,'é東\u3000\x00\x1c\U0001f600", max_size=60), min_size=1, max_size=12))
def test_documents_have_the_tokens_and_counts_of_single_ones(texts: list[str]) -> None:
    chunk = read_documents(
        "".join(text + ("<>" if number % 3 else "<|endoftext|>") for number, text in enumerate(texts)).encode()
    )
    together, encoder = encode_batch([chunk], "gpt2", "text", fast=True), tokenizing.cached_encoder("gpt2", use_library=True)
    alone = encode_batch(list(divide_documents(chunk)), "gpt2", "text")
    assert encoder.takes_documents
    assert together.tokens.tolist() == alone.tokens.tolist() and together.rows.tobytes() == alone.rows.tobytes()
    counts = ("records", "empty", "markers", "controls", "nuls", "marks", "rejected")
    assert [getattr(together, name) for name in counts] == [getattr(alone, name) for name in counts]


def test_only_the_document_that_is_not_utf8_is_left_out() -> None:
    batch = encode_batch([read_documents(b"one<>t\xffwo<|endoftext|>three<>")], "byte", "text")
    (rejected,) = batch.rejected
    assert (rejected.file, rejected.record, rejected.reason) == ("a.txt", 2, "not UTF-8")
    assert "near byte 6" in rejected.detail
    assert bytes(batch.tokens[batch.tokens < 256].tolist()) == b"onethree" and batch.records == 3


def test_a_long_document_among_short_ones_is_split(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(splitting, "PART", 300)
    monkeypatch.setattr(splitting, "LOOKAHEAD", 40)
    monkeypatch.setattr(splitting, "CHECKED", 10)
    text = "some words, " * 100
    chunk = read_documents(f"one<>{text}<>two<>".encode())
    batch = encode_batch([chunk], "gpt2", "text", fast=True)
    expected = corpora.encode_naively(["one", text, "two"], "gpt2").tolist()
    assert batch.tokens.tolist() == expected
    assert batch.rows["state"].tolist() == [1, *[0] * (len(batch.rows) - 3), 1, 1] and len(batch.rows) > 5
    assert isinstance(chunk.content, Documents)
