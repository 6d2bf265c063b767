"""Commands that people mistype, the files that they name, and the check of their messages."""

from __future__ import annotations

import io
import json
import struct
import subprocess
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

Script = Callable[..., "subprocess.CompletedProcess[str]"]

TRAIN = ("train.py", "model=tiny", "data.cache_dir=cache", "trainer.accelerator=cpu", "trainer.max_steps=1")
PREPARE = ("-m", "gpt_pretrain", "prepare", "out=corpus", "tokenizer=byte")
SHARDS = (*TRAIN, "data=shards", "tokenizer=byte")
TEXT = (*TRAIN, "data=text", "tokenizer=byte")
COMPARE = ("-m", "gpt_pretrain", "compare")
LADDER = ("-m", "gpt_pretrain", "ladder", "data.cache_dir=cache", "trainer.accelerator=cpu")
LEADERBOARD = ("-m", "gpt_pretrain", "leaderboard")

OWN_MODEL = ("train.py", "data.cache_dir=cache", "trainer.accelerator=cpu", "tokenizer=byte", "data=text", "data.path=text.txt")
VOCABULARY = ("-m", "gpt_pretrain", "tokenizer")


def write_mistaken_files(tmp_path: Path) -> None:
    """Write the files that the commands name."""
    text = "The quick brown fox jumps over the lazy dog. " * 60
    (tmp_path / "text.txt").write_text(text)
    (tmp_path / "word.txt").write_text("moves")
    (tmp_path / "pointer.pt").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 123\n")
    (tmp_path / "run1").mkdir()
    (tmp_path / "run1" / "model-1000.index").touch()
    (tmp_path / "western.txt").write_bytes(("Déjà vu à la fenêtre. " * 60).encode("latin-1"))
    (tmp_path / "damaged.txt").write_bytes("Déjà vu à la fenêtre. ".encode() * 60 + b"\xff" + b" and more" * 9)
    (tmp_path / "half.txt").write_bytes(b"\xff\xfe" + text.encode("utf-16-le") + b"\x00\xd8\x20\x00")
    (tmp_path / "bracket.json").write_text('[{"text": "some"}}, {"text": "more"}]')
    (tmp_path / "japanese.txt").write_bytes("これは日本語の文章です。".encode("iso2022_jp"))
    (tmp_path / "surrogates.txt").write_bytes(b"x \xed\xa0\xbd\xed\xb8\x80 y\n")
    pq.write_table(pa.table({"text": [["a"]], "body": ["b"]}), tmp_path / "lists.parquet")
    (tmp_path / "two.csv").write_text("text,text\na,b\n")
    with zipfile.ZipFile(tmp_path / "settings.zip", "w") as archive:
        archive.writestr("a.json", '{"title": "x"}')
    (tmp_path / "lists.jsonl").write_text('[["text"]]\n' * 3)
    (tmp_path / "numbers.jsonl").write_text('{"text": 5}\n' * 3)
    # The offset of a byte in a member's entry, and its value: the flag of an encrypted member, and the method Deflate64.
    for name, offset, value in (("locked.zip", 6, 1), ("rare.zip", 8, 9)):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr("a.txt", text)
        changed = bytearray((tmp_path / name).read_bytes())
        for mark, further in ((b"PK\x03\x04", 0), (b"PK\x01\x02", 2)):
            changed[changed.index(mark) + offset + further] = value
        (tmp_path / name).write_bytes(changed)
    for name, kind in (("cut.tar", tarfile.REGTYPE), ("sparse.tar", tarfile.GNUTYPE_SPARSE)):
        with tarfile.open(tmp_path / name, "w") as archive_of_tar:
            member = tarfile.TarInfo("a.txt")
            member.size, member.type = len(text), kind
            archive_of_tar.addfile(member, io.BytesIO(text.encode()))
    (tmp_path / "cut.tar").write_bytes((tmp_path / "cut.tar").read_bytes()[:2000])
    (tmp_path / "pairs.jsonl").write_text('{"context": "a", "continuation": "b"}\n{"context": "c", "continuation": "d"}\n')
    mixed = '{"context": "a", "continuation": "b"}\n{"context": "a", "choices": ["b", "c"], "label": 1}\n'
    (tmp_path / "mixed.jsonl").write_text(mixed)
    for folder, content in (("foreign", "{}"), ("ruined", "[")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "manifest.json").write_text(content)
    (tmp_path / "run2" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run2" / "checkpoints" / "last.ckpt").write_bytes(b"PK")
    (tmp_path / "labels.jsonl").write_text('{"context": "a", "choices": ["b", "c"], "label": 2}\n')
    (tmp_path / "fields.jsonl").write_text('{"context": "a", "context": "b", "continuation": "c"}\n')
    (tmp_path / "aps" / "super_glue").mkdir(parents=True)
    (tmp_path / "fields").mkdir()
    (tmp_path / "fields" / "a.jsonl").write_text("".join(f'{{"f{number}": 1}}\n' for number in range(2001)))
    (tmp_path / "core_set").mkdir()
    entry = "{label: a, icl_task_type: schema, dataset_uri: a.jsonl, num_fewshot: [0]}"
    (tmp_path / "core_set" / "core.yaml").write_text(f"icl_tasks: [{entry}]")
    for folder in ("run", "cache", "links", "floats", "llama3", "clip", "nothing"):
        (tmp_path / folder).mkdir()
    for name in ("one.txt", "two.txt"):
        (tmp_path / "links" / name).symlink_to("gone.txt")
    for part in ("train", "val"):
        np.save(tmp_path / "floats" / f"{part}.npy", np.zeros(100, np.float32))
        (tmp_path / "llama3" / f"a_{part}_000001.bin").write_bytes(struct.pack("<3i", 20240801, 7, 100) + bytes(1012 + 400))
    (tmp_path / "clip" / "vocab.json").write_text(json.dumps({f"{letter}</w>": number for number, letter in enumerate("abc")}))
    (tmp_path / "clip" / "merges.txt").write_text("#version: 0.2\na b</w>\n")
    (tmp_path / "nothing" / "tokenizer.json").write_text(json.dumps({"model": {"type": "WordLevel", "vocab": {}}}))


def check_message(script: Script, command: tuple[str, ...], message: str) -> None:
    """Run a command that is refused, and check that its message has these words."""
    done = script(*command)
    assert message in " ".join(done.stderr.split())
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
