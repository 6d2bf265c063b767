"""The readers of files that anybody may have written, each with the real files that a fuzzer changes."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import re
import shutil
import tarfile
import zipfile
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file

from gpt_pretrain.checkpoints.pretrained import open_weights
from gpt_pretrain.checkpoints.serialization.checksum import LENGTH, has_checksum
from gpt_pretrain.data.files import LocalFiles
from gpt_pretrain.data.shards.corpus import split_corpus
from gpt_pretrain.data.shards.formats import open_corpus
from gpt_pretrain.prepare import corpus_folder
from gpt_pretrain.prepare.encoded_corpus import EncodedCorpus
from gpt_pretrain.prepare.segments import SegmentWriter, read_journal
from gpt_pretrain.prepare.tokenizing import encode_batch
from gpt_pretrain.texts import reading
from gpt_pretrain.texts.chunks import ReadPosition
from gpt_pretrain.texts.inputs import CorpusInputs, stat_input_file
from gpt_pretrain.tokenizers.base import decode, fingerprint
from gpt_pretrain.tokenizers.build import StoredTokenizer, build_tokenizer, restore_tokenizer
from gpt_pretrain.tokenizers.byte import ByteTokenizer
from gpt_pretrain.training.start.checkpoint import read_resumable
from tests.conftest import tiny_model
from tests.helpers import made_shards, vocabularies
from tests.helpers.hostile_files import add_checksum
from tests.security import mutations
from tests.security.fuzz_folders import FOLDER_READERS
from tests.security.fuzz_inputs import INPUT_READERS
from tests.security.fuzz_network import NETWORK_READERS
from tests.security.fuzz_runs import RUN_READERS
from tests.security.fuzzed_reader import BLIND, COMPAT, JSON, PICKLE, TEXT, ZIP, FuzzedReader

# In PyTorch's old format, a tensor is stored under the address that it had in memory.
OLD_KEY = re.compile(rb"X[\x0a-\x0f]\0\0\0(\d{10,15})")


def _order_by_address(model: torch.nn.Module) -> None:
    """Move a model's tensors so that their addresses are in their own order, in which the old format writes them."""
    tensors = list(model.parameters())
    moved = sorted((torch.empty(0) for _ in tensors), key=lambda tensor: str(tensor.untyped_storage()._cdata))
    for tensor, target in zip(tensors, moved, strict=True):
        tensor.data = target.resize_(tensor.shape).copy_(tensor.data)


def _save_old(content: object, path: Path) -> None:
    """Save in the old format, with numbers in place of the addresses, so that the file is the same at each run."""
    torch.save(content, path, _use_new_zipfile_serialization=False)
    numbers: dict[bytes, bytes] = {}
    data = OLD_KEY.sub(
        lambda key: b"X\x0e\0\0\0" + numbers.setdefault(key[1], b"%014d" % (10**13 + len(numbers))), path.read_bytes()
    )
    path.write_bytes(data)


def _make_torch(folder: Path) -> None:
    model = tiny_model(n_layers=1, emb_dim=8, n_heads=2, vocab_size=257)
    _order_by_address(model)
    state = model.state_dict()
    torch.save({"model_state_dict": state, "epoch": 3}, folder / "zip.pth")
    _save_old(dict(state), folder / "legacy.pth")
    arguments = {"n_head": 2, "block_size": 16, "n_embd": 8, "n_layer": 1, "vocab_size": 257, "dropout": 0.0, "bias": False}
    torch.save({"model": state, "model_args": arguments, "iter_num": 5}, folder / "nanogpt.pt")
    torch.save({"model": model, "args": Namespace(n_head=2)}, folder / "module.pt")
    _save_old([model], folder / "old_module.pt")


def _read_weights(path: Path) -> None:
    weights = open_weights(path, n_heads=2)
    weights.build()
    weights.build_tokenizer("byte" if weights.config.vocab_size == 257 else None)


def _copy_checkpoints(kind: str) -> Callable[[Path], object]:
    return lambda folder: shutil.copytree(COMPAT / kind / "checkpoints", folder / "checkpoints", dirs_exist_ok=True)


def _mend_checksum(path: Path) -> None:
    """Give a changed checkpoint the checksum that belongs to it, as an attacker would."""
    data = path.read_bytes()
    if has_checksum(path):
        data = data[: -LENGTH - 2] + b"\0\0"
    if data.endswith(b"\0\0") and data[-22:-18] == b"PK\5\6":
        path.write_bytes(data)
        add_checksum(path)


def _read_checkpoint(folder: Path) -> None:
    path = folder / "checkpoints" / "last.ckpt"
    try:
        read_resumable(path)
    finally:
        _read_weights(path)


def _make_huggingface(folder: Path) -> None:
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        shutil.copy(COMPAT / "exported" / name, folder)
    tensors = "model.safetensors"
    shutil.copytree(folder, folder / "index", ignore=shutil.ignore_patterns("index"))
    (folder / "index" / tensors).rename(folder / "index" / "model-00001-of-00001.safetensors")
    weight_map = dict.fromkeys(load_file(folder / tensors), "model-00001-of-00001.safetensors")
    (folder / "index" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def _read_corpus(folder: Path) -> None:
    corpus = open_corpus(LocalFiles(folder))
    tokenizer = build_tokenizer("byte") if corpus.tokenizer == "gpt2" else corpus.build_tokenizer()
    split_corpus(corpus, tokenizer, train_ratio=0.9, verify=True)


def _make_tokenizers(folder: Path) -> None:
    vocabularies.byte_level(folder / "json", size=300)
    vocabularies.unigram(folder / "unigram")
    vocabularies.llama_like(folder / "llama")
    vocabularies.word_pieces(folder / "pieces")
    vocabularies.gpt2_files(folder / "pair", added={"<|user|>": 401})
    ranks = {bytes([byte]): byte for byte in range(256)} | {b"th": 256, b"the": 257}
    vocabularies.rank_file(folder / "own.tiktoken", ranks)


def _read_tokenizer(path: Path) -> None:
    tokenizer = build_tokenizer(str(path))
    decode(tokenizer, tokenizer.encode("Der Sinn <|user|> 今天\n\n  a"))
    again = restore_tokenizer(StoredTokenizer.of(tokenizer), origin="x")
    assert fingerprint(again) == fingerprint(tokenizer)


def _make_nanogpt(folder: Path) -> None:
    made_shards.write_nanogpt(folder, train=[1, 2, 3, 0] * 50, val=[1, 2])
    characters = "\n abcé"
    tables = {"vocab_size": 6, "itos": dict(enumerate(characters)), "stoi": {c: n for n, c in enumerate(characters)}}
    (folder / "meta.pkl").write_bytes(pickle.dumps(tables))


def _make_prepared(folder: Path) -> None:
    shutil.copytree(COMPAT / "corpus", folder, dirs_exist_ok=True)


def _make_llmc(folder: Path) -> None:
    made_shards.write_llmc(folder, train=[[256, 1, 2] * 50], val=[256, 5, 6])


LINES = b"".join(json.dumps({"text": f"Document {n}, with some words.", "n": [n, {"a": n}]}).encode() + b"\n" for n in range(20))


def _encode(path: Path) -> None:
    inputs = CorpusInputs([stat_input_file(str(path))], None, "text", "<>", [], [])
    for chunks in reading.batch_chunks(reading.read_inputs(inputs, ByteTokenizer(), start=ReadPosition())):
        encode_batch(chunks, "byte", "text")


def _make_lines(folder: Path) -> None:
    import zstandard

    (folder / "a.jsonl").write_bytes(LINES)
    (folder / "a.jsonl.gz").write_bytes(gzip.compress(LINES, mtime=0))
    (folder / "a.jsonl.zst").write_bytes(zstandard.ZstdCompressor().compress(LINES))
    (folder / "a.txt.gz").write_bytes(gzip.compress(b"One text.<>Another one.<>" * 20, mtime=0))


ARCHIVES = ("a.tar", "a.tar.xz", "a.zip", "a.csv", "a.json", "wide.txt")


def _make_archives(folder: Path) -> None:
    rows = "".join(f'{n},"Document {n}, with ""words"".",x\n' for n in range(20))
    (folder / "a.csv").write_text("id,text,more\n" + rows)
    (folder / "a.json").write_text(json.dumps([json.loads(line) for line in LINES.splitlines()], indent=1))
    (folder / "wide.txt").write_bytes("A text of some words, and more of them.\n".encode("utf-16-le") * 20)
    for name, mode in (("a.tar", "w"), ("a.tar.xz", "w:xz")):
        with tarfile.open(folder / name, mode) as archive:  # type: ignore[call-overload]
            for member, file in (("deep/" + "x" * 120 + ".csv", "a.csv"), ("a.json", "a.json")):
                header = tarfile.TarInfo(member)  # not that of the file: it has the time and the user
                header.size = (folder / file).stat().st_size
                archive.addfile(header, io.BytesIO((folder / file).read_bytes()))
    with zipfile.ZipFile(folder / "a.zip", "w") as zipped:
        for member, file in (("a.json", "a.json"), ("inner.tar", "a.tar")):
            zipped.writestr(zipfile.ZipInfo(member), (folder / file).read_bytes(), zipfile.ZIP_DEFLATED)


def _make_parquet(folder: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({"text": [f"Document {n % 7}, with some words." for n in range(300)], "n": list(range(300))})
    pq.write_table(table, folder / "a.parquet", row_group_size=100, compression="zstd")


def _make_work(folder: Path) -> None:
    work = folder / ".work" / "task-00000"
    writer = SegmentWriter(work, itemsize=2)
    inputs = folder / "a.jsonl"
    inputs.write_bytes(LINES)
    files = CorpusInputs([stat_input_file(str(inputs))], None, "text", None, [], [])
    for chunks in reading.batch_chunks(reading.read_inputs(files, ByteTokenizer(), start=ReadPosition())):
        writer.add(encode_batch(chunks, "byte", "text"), chunks[-1].end)
    writer.finish_segment(complete=True)
    writer.close()
    _make_prepared(folder)
    (folder / ".work" / "plan.json").write_text(json.dumps({"source": [{"path": "a.jsonl", "bytes": 3}], "options": {}}))


def _read_work(folder: Path) -> None:
    work = folder / ".work" / "task-00000"
    corpus_folder.read_plan(folder)
    segments, _, _ = read_journal(work)
    if all(segment.is_intact() for segment in segments):
        encoded = EncodedCorpus(segments, itemsize=2)
        encoded.tokens(0, min(encoded.n_tokens, 1000))
        next(encoded.rows(), None)
    if (manifest := corpus_folder.read_manifest(folder)) is not None:
        corpus_folder.check_complete(folder, manifest)


READERS = (
    {
        "torch": FuzzedReader(
            _make_torch,
            {
                "zip.pth": (ZIP,),
                "legacy.pth": (BLIND, PICKLE),
                "nanogpt.pt": (ZIP,),
                "module.pt": (ZIP,),
                "old_module.pt": (BLIND, PICKLE),
            },
            _read_weights,
            parts=("zip.pth", "legacy.pth", "nanogpt.pt", "module.pt", "old_module.pt"),
        ),
        "checkpoint": FuzzedReader(
            _copy_checkpoints("run"),
            {"checkpoints/last.ckpt": (ZIP,)},
            _read_checkpoint,
            lambda folder: _mend_checksum(folder / "checkpoints" / "last.ckpt"),
        ),
        "pieces": FuzzedReader(
            _copy_checkpoints("sharded"),
            {"checkpoints/last.ckpt": (ZIP,), "checkpoints/shards*/rank-00000.safetensors": (BLIND,)},
            _read_checkpoint,
            lambda folder: _mend_checksum(folder / "checkpoints" / "last.ckpt"),
        ),
        "safetensors": FuzzedReader(
            _make_huggingface,
            {
                "model.safetensors": (BLIND, TEXT),
                "config.json": (BLIND, JSON, TEXT),
                "tokenizer.json": (JSON, BLIND),
                "index/model.safetensors.index.json": (JSON, BLIND),
            },
            _read_weights,
            parts=("index", "."),
        ),
        "tokenizer": FuzzedReader(
            _make_tokenizers,
            {
                "json/tokenizer.json": (JSON, BLIND, TEXT),
                "unigram/tokenizer.json": (JSON, BLIND),
                "llama/tokenizer.json": (JSON, BLIND, TEXT),
                "pieces/vocab.txt": (TEXT, BLIND),
                "pair/vocab.json": (JSON, BLIND),
                "pair/merges.txt": (TEXT, BLIND),
                "own.tiktoken": (TEXT, BLIND),
            },
            _read_tokenizer,
            parts=("json", "unigram", "llama", "pieces", "pair", "own.tiktoken"),
        ),
        "nanogpt": FuzzedReader(_make_nanogpt, {"meta.pkl": (PICKLE, PICKLE, BLIND), "train.bin": (BLIND,)}, _read_corpus),
        "manifest": FuzzedReader(
            _make_prepared, {"manifest.json": (JSON, JSON, BLIND), "train-00000.bin": (BLIND,)}, _read_corpus
        ),
        "llmc": FuzzedReader(_make_llmc, {"tale_train_000001.bin": (BLIND,), "tale_val_000000.bin": (BLIND,)}, _read_corpus),
        "journal": FuzzedReader(
            _make_work,
            {".work/task-00000/journal.jsonl": (JSON, BLIND), ".work/plan.json": (JSON,), "manifest.json": (JSON,)},
            _read_work,
        ),
        "lines": FuzzedReader(
            _make_lines,
            {
                "a.jsonl": (JSON, BLIND, TEXT),
                "a.jsonl.gz": (mutations.change_gzip,),
                "a.jsonl.zst": (BLIND,),
                "a.txt.gz": (BLIND,),
            },
            _encode,
            parts=("a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.txt.gz"),
        ),
        "archives": FuzzedReader(
            _make_archives,
            dict.fromkeys(ARCHIVES, (BLIND,)) | {"a.json": (JSON, BLIND, TEXT), "a.csv": (TEXT, BLIND), "a.zip": (BLIND, ZIP)},
            _encode,
            parts=ARCHIVES,
        ),
        "parquet": FuzzedReader(_make_parquet, {"a.parquet": (BLIND,)}, _encode, parts=("a.parquet",)),
    }
    | INPUT_READERS
    | FOLDER_READERS
    | NETWORK_READERS
    | RUN_READERS
)
