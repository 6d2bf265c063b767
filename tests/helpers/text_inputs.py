"""The same texts in files of many kinds, and what training and a corpus read from a file."""

import bz2
import gzip
import io
import json
import lzma
import tarfile
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from gpt_pretrain.texts.text import Text, find_text_files
from gpt_pretrain.tokenizers.base import END_OF_TEXT
from tests.helpers import corpora

DOCUMENTS = [
    "The old lighthouse stood alone.",
    "今天天气很好\uff0c我们去公园。",
    'He said: "no, [never], {never}\\", and left.',
    "Line one.\nLine two.",
]


PLAIN = "The old lighthouse stood alone. Nobody had lit it for years.\n" * 200


def in_training(path: Path, **settings: object) -> list[str]:
    """Return the documents of what data=text reads."""
    return "".join(Text(find_text_files(str(path), **settings), **settings).pieces()).split(END_OF_TEXT)  # type: ignore[arg-type]


def in_corpus(path: Path, out: Path, **settings: object) -> list[str]:
    """Return the documents of what gpt-pretrain prepare reads."""
    corpora.prepare(path, out=out, **({"val_fraction": 0.0, "max_rejected": 0.0, "max_failed_files": 0} | settings))
    return corpora.texts(out, "train")


def check(path: Path, documents: list[str], **settings: object) -> None:
    """Check that training and a corpus have exactly these documents."""
    assert in_training(path, **settings) == documents
    assert in_corpus(path, path.parent / f"corpus of {path.name}", **settings) == documents


def tar(files: dict[str, bytes], mode: str = "w", **options: object) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode, **options) as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def zipped(files: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content, compression)
    return stream.getvalue()


def lines(documents: list[str] = DOCUMENTS) -> bytes:
    return "".join(json.dumps({"id": n, "text": text}) + "\n" for n, text in enumerate(documents)).encode()


def table(documents: list[str] = DOCUMENTS, delimiter: str = ",") -> bytes:
    rows = [f'{n}{delimiter}"{text.replace(chr(34), 2 * chr(34))}"{delimiter}x' for n, text in enumerate(documents)]
    return "\n".join([delimiter.join(["id", "text", "more"]), *rows]).encode() + b"\n"


def parquet(documents: list[str] = DOCUMENTS) -> bytes:
    stream = io.BytesIO()
    pq.write_table(pa.table({"text": documents, "n": list(range(len(documents)))}), stream)
    return stream.getvalue()


RECORDS: dict[str, bytes] = {
    "a.jsonl": lines(),
    "a.ndjson": lines().replace(b"\n", b"\r\n"),
    "mac.jsonl": lines().replace(b"\n", b"\r"),
    "mark.jsonl": b"\xef\xbb\xbf" + lines(),
    "wide.jsonl": lines().decode().encode("utf-16"),
    "array.json": json.dumps([{"text": text} for text in DOCUMENTS]).encode(),
    "pretty.json": json.dumps([{"n": [1, {"a": 2}], "text": text} for text in DOCUMENTS], indent=2, ensure_ascii=False).encode(),
    "objects.json": "\n".join(json.dumps({"text": text}, indent=1) for text in DOCUMENTS).encode(),
    "commas.json": ",\n".join(json.dumps({"text": text}, indent=1) for text in DOCUMENTS).encode(),
    "arrays.json": b"".join(json.dumps([{"text": text}]).encode() + b"\n" for text in DOCUMENTS),
    "array.jsonl": b" \n" + json.dumps([{"text": text} for text in DOCUMENTS]).encode(),
    "a.csv": table(),
    "crlf.csv": b"\xef\xbb\xbf" + table().replace(b"x\n", b"x\r\n"),
    "semicolons.csv": table(delimiter=";"),
    "a.tsv": table(delimiter="\t"),
    "a.csv.gz": gzip.compress(table()),
    "a.parquet": parquet(),
    "a.jsonl.gz": gzip.compress(lines()),
    "a.jsonl.bz2": bz2.compress(lines()),
    "a.jsonl.xz": lzma.compress(lines()),
    "a.jsonl.lzma": lzma.compress(lines(), lzma.FORMAT_ALONE),
    "a.jsonl.zst": zstandard.ZstdCompressor().compress(lines()),
    "two.jsonl.xz": lzma.compress(lines(DOCUMENTS[:1])) + bytes(8) + lzma.compress(lines(DOCUMENTS[1:])),
    "no suffix": lines(),
    "wrong suffix.dat": gzip.compress(lines()),
    "table in.zip": zipped({"deep/a.parquet": parquet()}),
    "nameless in.zip": zipped({"": lines()}),
    "lines in.tgz": tar({"deep/a.jsonl": lines()}, "w:gz"),
    "nested.tar.xz": tar({"one.xz": lzma.compress(tar({"a.jsonl": lines()}))}, "w:xz"),
    "zip in.tar": tar({"inner.zip": zipped({"a.json.gz": gzip.compress(lines())})}),
    "array in.zip": zipped({"a.json": json.dumps([{"text": text} for text in DOCUMENTS]).encode()}, zipfile.ZIP_STORED),
}
