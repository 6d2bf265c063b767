"""Small files that would fill the disk, the memory or the day: what they may take follows from their size."""

from __future__ import annotations

import gzip
import json
import time
from pathlib import Path
from random import Random
from typing import Any

import pytest

from gpt_pretrain.errors import UserError
from gpt_pretrain.prepare.encoded_batch import LONGEST_DETAIL, MAX_LISTED
from gpt_pretrain.system.reading import DamagedFileError
from gpt_pretrain.texts.chunks import Cursor, ReadPosition
from gpt_pretrain.texts.records.json_values import split_glued, split_values
from gpt_pretrain.tokenizers import vocabulary
from gpt_pretrain.tokenizers.build import build_tokenizer
from gpt_pretrain.tokenizers.formats.definition import canonical_fields
from gpt_pretrain.tokenizers.tables import TableTokenizer
from tests.helpers import corpora, vocabularies
from tests.helpers.resource_limits import allocating_at_most

GOOD = b'{"text": "hello there"}\n'


def write_bad_records(path: Path, *, lines: int) -> Path:
    """Write an archive of a few kilobytes with thousands of records on each line, none of which has a text."""
    path.write_bytes(gzip.compress(GOOD * 10 + (b"{}" * 9000 + b"\n") * lines))
    assert path.stat().st_size < 2000
    return path


def test_the_list_of_rejected_records_ends_where_it_serves_nobody(tmp_path: Path) -> None:
    file, out = write_bad_records(tmp_path / "a.jsonl.gz", lines=2), tmp_path / "out"
    manifest = corpora.prepare(file, out=out, max_rejected=1.0, val_fraction=0.0)
    assert manifest["rejected"] == {"records": 18_000, "by_reason": {"field missing": 18_000}}
    assert len((out / "rejected.jsonl").read_bytes().splitlines()) == MAX_LISTED == 10_000


def test_a_message_says_how_many_rejected_records_are_listed(tmp_path: Path) -> None:
    file = write_bad_records(tmp_path / "a.jsonl.gz", lines=2)
    with pytest.raises(UserError, match=r"18,000 of 18,010 records .*rejected\.jsonl lists the first 10,000\. "):
        corpora.prepare(file, out=tmp_path / "out", max_rejected=0.1)


def test_a_record_with_half_a_surrogate_pair_in_a_name_is_listed(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(
        GOOD * 10 + b'{"\\ud800": 1}\n' + b"{" + b", ".join(b'"%d%s": 1' % (n, b"x" * 200) for n in range(20)) + b"}\n"
    )
    corpora.prepare(tmp_path / "a.jsonl", out=tmp_path / "out", max_rejected=1.0, val_fraction=0.0)
    first, second = map(json.loads, (tmp_path / "out" / "rejected.jsonl").read_bytes().splitlines())
    assert first["detail"].endswith("an object with \ud800") and len(second["detail"]) == LONGEST_DETAIL


def letters(count: int, size: int, *, seed: int = 0) -> list[str]:
    """Return random words."""
    random = Random(seed)
    return ["".join(random.choices("abcdefghijklmnop", k=size)) for _ in range(count)]


def model_of(kind: str, vocab: Any, **more: Any) -> dict[str, Any]:
    return {"model": {"type": kind, "vocab": vocab} | more}


def unigram_of(tokens: list[str]) -> dict[str, Any]:
    return model_of("Unigram", [["<unk>", 0.0], *([token, -1.0] for token in tokens)], unk_id=0)


COSTLY = {
    "a long token of a unigram model": (unigram_of(["a" * 501]), "has 501 bytes"),
    "tokens that begin with one another": (unigram_of(["a" * n for n in range(1, 200)]), "and begins with 88 other tokens"),
    "tokens that have little in common": (unigram_of(letters(4000, 300)), "different beginnings, far more than a language has"),
    "long words of pieces": (
        model_of("WordPiece", {"a": 0, "##a": 1}, unk_token="a", max_input_chars_per_word=1000),
        "max_input_chars_per_word is 1000, more than the limit of 256",
    ),
    "long added tokens": (
        model_of("WordLevel", {"a": 0}, unk_token="a")
        | {"added_tokens": [{"id": n + 1, "content": f"{n}" + "\u6f22" * 7000} for n in range(100)]},
        "its added tokens have 2,100,190 bytes",
    ),
}


@pytest.mark.parametrize("name", COSTLY)
def test_a_vocabulary_that_costs_far_more_than_its_size_is_refused(name: str) -> None:
    fields, message = COSTLY[name]
    begin = time.process_time()
    with pytest.raises(DamagedFileError, match=message):
        canonical_fields(fields)
    assert time.process_time() - begin < 2


@pytest.mark.parametrize("form", ["languages", "one language", "runs", "no tokens in common"])
def test_vocabularies_like_those_of_known_models_are_used(form: str) -> None:
    blank, chars = "\u2581", "".join(map(chr, range(0x0E01, 0x0E3A)))  # Thai takes three bytes a character.
    random = Random(0)
    tokens = {
        "languages": [f"{blank}{''.join(random.choices(chars, k=random.randint(1, 5)))}" for _ in range(50_000)],
        "one language": [f"{blank}{word}" for word in letters(30_000, 7)],
        "runs": [sign * n for sign in f"-=*_. {blank}" for n in range(1, 17)] + ["-" * 2**n for n in range(5, 9)],
        "no tokens in common": letters(200, 400),
    }[form]
    canonical_fields(unigram_of(list(dict.fromkeys(tokens))))


def test_a_vocabulary_is_in_memory_once_until_both_modes_are_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = vocabularies.unigram(tmp_path / "unigram")
    tokenizer = build_tokenizer(str(folder))
    monkeypatch.setattr(vocabulary, "_load", lambda fields: pytest.fail("loaded again"))
    assert isinstance(tokenizer, vocabulary.VocabularyTokenizer)
    assert tokenizer.encode_ordinary("Sinn</s>").tolist() == tokenizer.encode_ordinary("Sinn</s>").tolist()
    monkeypatch.undo()
    assert tokenizer.encode("</s>") == [tokenizer.eos_id] != tokenizer.encode_ordinary("</s>").tolist()


def test_tokens_of_many_lengths_with_the_same_letter_are_refused() -> None:
    with pytest.raises(DamagedFileError, match="too many lengths"):
        TableTokenizer("table", [" ", "a", *("a" * (size - 1) + "b" for size in range(901, 1000))])
    words = [f"{letter}{'x' * size}" for letter in "abcdefghij" for size in range(60)]
    tokenizer = TableTokenizer("table", [" ", *words])
    assert [tokenizer.token_bytes(token_id) for token_id in tokenizer.encode("axxx bx")] == [b"axxx", b" ", b"bx"]


def test_a_long_line_is_divided_in_little_memory() -> None:
    line = b'{"text": "a"}{"text": "' + b"x" * 16_000_000 + b'"}'
    with allocating_at_most(megabytes=40):
        assert [len(value) for value in split_glued(line)] == [13, len(line) - 13]
    blocks = [b"[", line[:13], b",", *(line[13:][start : start + (1 << 20)] for start in range(0, len(line), 1 << 20)), b"]"]
    with allocating_at_most(megabytes=56):
        chunks = split_values(blocks, Cursor("a", ReadPosition(), bytes_read=lambda: 0), is_array=True)
        assert sum(len(chunk.content.split(b"\n")) - 1 for chunk in chunks) == 2  # type: ignore[union-attr,arg-type,misc]


@pytest.mark.parametrize("inside", [b'\\"}{', b"\\\\", b"}{", b'\\\\\\"'])
@pytest.mark.parametrize("shift", range(4))
def test_glued_objects_are_divided_the_same_wherever_blocks_end(inside: bytes, shift: int) -> None:
    value = b'{"text": "' + b"x" * ((1 << 20) - 12 + shift) + inside + b'"}'
    assert split_glued(b'{"a": 1}' + value + b'{"b": "c"}') == [b'{"a": 1}', value, b'{"b": "c"}']
