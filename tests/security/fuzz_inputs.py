"""More readers for the fuzzer: of prompts, tasks, settings, and files of other programs."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from gpt_pretrain.checkpoints.checkpoint_file import read_checkpoint
from gpt_pretrain.checkpoints.formats.llmc_model import _shapes
from gpt_pretrain.checkpoints.pretrained import open_weights
from gpt_pretrain.commands.command_line.stored_overrides import admit_overrides, stored_options
from gpt_pretrain.commands.process.rank_processes import _stored_devices
from gpt_pretrain.config.checkpoint_settings import admit_settings, read_data_settings, read_stored_settings
from gpt_pretrain.data.files import LocalFiles
from gpt_pretrain.data.shards.corpus import split_corpus
from gpt_pretrain.data.shards.formats import open_corpus
from gpt_pretrain.errors import UserError
from gpt_pretrain.evaluation.tasks.core_tasks import read_core_tasks
from gpt_pretrain.evaluation.tasks.task_files import find_tasks
from gpt_pretrain.evaluation.tasks.task_items import Task
from gpt_pretrain.evaluation.tasks.task_scoring import TaskEncoder, check_characters
from gpt_pretrain.generation.prompt_files import answer_line, check_prompts, read_prompts
from gpt_pretrain.generation.prompts import Continuation
from gpt_pretrain.texts.datasets.files import check_saved_dataset
from gpt_pretrain.texts.text import Text, find_text_files
from gpt_pretrain.tokenizers.build import StoredTokenizer, build_tokenizer, restore_tokenizer
from gpt_pretrain.tokenizers.byte import ByteTokenizer
from tests.helpers import vocabularies
from tests.security.fuzzed_reader import BLIND, COMPAT, JSON, TEXT, YAML, FuzzedReader


def _write_lines(path: Path, values: list[Any]) -> None:
    path.write_text("".join(f"{json.dumps(value)}\n" for value in values), encoding="utf-8")


def _make_prompts(folder: Path) -> None:
    _write_lines(folder / "a.jsonl", [{"prompt": f"Every effort {n}", "id": n, "more": {"a": [n]}} for n in range(8)] + ["x"])
    (folder / "a.txt").write_text("Every effort moves you\n\nThe second 1 one\r\nnaïve\n")


def _read_prompts(path: Path) -> None:
    check_prompts(path, name="prompts=x")
    for prompt in read_prompts(path, name="prompts=x"):
        answer_line(prompt, Continuation(prompt.text + "!", [1], [33]), sample=1)


TASKS: dict[str, list[dict[str, Any]]] = {
    "own": [{"context": f"{n} and", "choices": ["one", "two"], "label": n % 2} for n in range(6)],
    "schema": [{"contexts": [f"it is {n}", "no"], "continuation": "x", "label": 1, "delimiter": "\n"} for n in range(4)],
    "hellaswag": [
        {"activity_label": "a", "ctx_a": f"b {n}.", "ctx_b": "then [x]", "endings": ["c", "d", "e", "f"], "label": "2"}
        for n in range(4)
    ],
    "arc": [{"question": f"{n}?", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "B"} for n in range(4)],
    "winogrande": [{"sentence": f"{n} _ is", "option1": "a", "option2": "b", "answer": "1"} for n in range(4)],
    "lambada": [{"text": f"He went to the {n} word"} for n in range(4)],
}


def _make_tasks(folder: Path) -> None:
    for name, items in TASKS.items():
        _write_lines(folder / f"{name}.jsonl", items)


def _read_tasks(path: Path) -> None:
    _encode_tasks(find_tasks(str(path), n_shots=2))


def _encode_tasks(tasks: list[Task]) -> None:
    tokenizer = ByteTokenizer()
    for task in tasks:
        check_characters(task, tokenizer)
        for _ in TaskEncoder(task, tokenizer, 64).requests():
            pass


def _make_core(folder: Path) -> None:
    lines: dict[str, list[Any]] = {
        "a": [{"query": f"{n} is ", "choices": ["odd", "even"], "gold": n % 2} for n in range(6)],
        "b": [{"context_options": ["it", "they"], "continuation": "are", "gold": 1}] * 5,
        "c": [{"context": "one two ", "continuation": "three"}] * 5,
    }
    (folder / "eval_data").mkdir()
    entries = []
    for (name, items), kind in zip(lines.items(), ("multiple_choice", "schema", "language_modeling"), strict=True):
        _write_lines(folder / "eval_data" / f"{name}.jsonl", items)
        entries.append({"label": name, "icl_task_type": kind, "dataset_uri": f"{name}.jsonl", "num_fewshot": [2]})
    (folder / "core.yaml").write_text(yaml.safe_dump({"icl_tasks": entries}))
    (folder / "eval_meta_data.csv").write_text("Eval Task,Random baseline,More\na,50,x\nb,50.0,y\nc,0,z\n")


def _read_core(folder: Path) -> None:
    _encode_tasks(read_core_tasks(folder))


OVERRIDES = [
    "model=tiny",
    "model.emb_dim=16,32",
    "optimizer.lr=interval(1e-4,1e-2)",
    "seed=range(1,4)",
    "start_context='a b'",
    "trainer.max_steps=choice(1,2)",
]


def _make_settings(folder: Path) -> None:
    overrides = {"hydra": ["hydra.mode=MULTIRUN", "hydra.sweeper.n_trials=3"], "task": OVERRIDES}
    hydra = {"job": {"name": "train"}, "overrides": overrides, "runtime": {"choices": {"model": "tiny", "optimizer": "adamw"}}}
    (folder / "multirun.yaml").write_text(yaml.safe_dump({"hydra": hydra}))
    (folder / "config.yaml").write_bytes((COMPAT / "run" / "config.yaml").read_bytes())
    stored = read_checkpoint(COMPAT / "run" / "checkpoints" / "last.ckpt")["config"]
    (folder / "config.json").write_text(json.dumps(stored))


def _read_settings(path: Path) -> None:
    if path.name == "multirun.yaml":
        admit_overrides(path.parent, script="train", typed=frozenset())
        stored_options(path.parent, chosen=frozenset())
    elif path.name == "config.yaml":
        _stored_devices(path)
    else:
        try:
            config = json.loads(path.read_bytes())
        except (ValueError, RecursionError) as error:
            raise UserError("no settings") from error
        stored = read_stored_settings(config, own=False, origin="x")
        admit_settings(stored, {}, is_typed=lambda _: False, own=False, origin="x", folder=path.parent)
        read_data_settings({"config": config})


def _field(number: int, value: bytes | int | float) -> bytes:
    """Return a field of a protocol buffer."""
    if isinstance(value, bytes):
        return (
            bytes([number << 3 | 2, *([len(value)] if len(value) < 128 else [len(value) & 127 | 128, len(value) >> 7])]) + value
        )
    if isinstance(value, float):
        return bytes([number << 3 | 5]) + struct.pack("<f", value)
    return (
        (number << 3).to_bytes(1, "little") + bytes([value])
        if number < 16
        else bytes([number << 3 & 127 | 128, number >> 4, value])
    )


def _make_pieces(folder: Path) -> None:
    special = [("<unk>", 2), ("<s>", 3), ("</s>", 3), ("<user>", 4)]
    plain = ["▁the", "▁", *"abcdefghijklmnopqrstuvwxyz", "th", "he", "▁t", "▁th"]
    pieces = [*special, *((text, 1) for text in plain)]
    content = b"".join(
        _field(1, _field(1, text.encode()) + _field(2, -float(number)) + _field(3, kind))
        for number, (text, kind) in enumerate(pieces)
    )
    for name, kind in (("unigram", 1), ("bpe", 2)):
        (folder / name).mkdir()
        settings = _field(2, _field(3, kind) + _field(40, 0) + _field(42, 2)) + _field(3, _field(3, 1) + _field(4, 0))
        (folder / name / "tokenizer.model").write_bytes(content + settings)
    vocabularies.byte_level(folder / "made", size=300)
    stored = StoredTokenizer.of(build_tokenizer(str(folder / "made")))
    assert stored.definition is not None
    (folder / "definition.json").write_text(stored.definition)
    (folder / "name").write_text(stored.name)


def _read_pieces(path: Path) -> None:
    if path.is_dir():
        tokenizer = build_tokenizer(str(path))
    else:
        # Whoever changes a definition can compute its hash anew; the name that does not fit says what it should be.
        definition = path.read_bytes().decode(errors="replace")
        try:
            tokenizer = restore_tokenizer(StoredTokenizer((path.parent / "name").read_text(), definition), origin="x")
        except UserError as error:
            _, found, rest = str(error).partition("is damaged: its tokenizer is ")
            if not found:
                raise
            tokenizer = restore_tokenizer(StoredTokenizer(rest.partition(", not ")[0], definition), origin="x")
    tokenizer.encode("the <user> of it 今天\n\n  a")


def _make_others(folder: Path) -> None:
    header = np.zeros(256, dtype="<i4")
    header[:8] = [20240326, 3, 16, 101, 2, 4, 16, 128]  # as llm.c writes it: context, tokens, layers, heads, width, padded tokens
    count = sum(math.prod(shape) for _, shape in _shapes(16, 128, 16, 2))
    (folder / "model.bin").write_bytes(header.tobytes() + np.zeros(count, dtype="<f4").tobytes())
    (folder / "numpy").mkdir()
    for name in ("train", "val"):
        np.save(folder / "numpy" / f"{name}.npy", np.arange(200, dtype=np.uint16) % 256)


def _read_others(path: Path) -> None:
    if path.is_dir():
        split_corpus(open_corpus(LocalFiles(path)), ByteTokenizer(), train_ratio=0.9, verify=True)
    else:
        open_weights(path).build()


TEXTS = {
    "plain.txt": "One text.<|endoftext|>Another naïve one with 3 words.\n".encode() * 10,
    "latin.txt": "Ein Text für alle, mit Umläuten und Größe.\r\n".encode("latin-1") * 10,
    "wide.txt": "\ufeffA text of 2 bytes.\n".encode("utf-16-le") * 10,
    "seven.txt": b"A text +AOQ- and +AOk- more.\n" * 10,
    "page.html": b"<!DOCTYPE html><html><body><p>A page of 3 words</p></body></html>\n",
    "lines.jsonl": b'{"text": "A record", "n": 1}\n' * 10,
    "rows.tsv": b"text\tn\nA row\t1\n" * 5,
    "noname": b"\x1f\x8b" + bytes(20),
}


def _make_texts(folder: Path) -> None:
    for name, content in TEXTS.items():
        (folder / name).write_bytes(content)


def _read_text(path: Path) -> None:
    text = Text(find_text_files(str(path)))
    for _ in text.pieces():
        pass
    text.sha256()


def _make_saved(folder: Path) -> None:
    (folder / "train").mkdir()
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": ["train"]}))
    (folder / "train" / "state.json").write_text(json.dumps({"_data_files": [{"filename": "a.arrow"}], "_split": "train"}))
    (folder / "train" / "dataset_info.json").write_text(json.dumps({"features": {"text": {"dtype": "string", "_type": "Value"}}}))
    (folder / "train" / "a.arrow").write_bytes(b"x")


PIECES = ("unigram", "bpe", "definition.json")
SETTINGS = ("multirun.yaml", "config.yaml", "config.json")

INPUT_READERS = {
    "prompts": FuzzedReader(
        _make_prompts, {"a.jsonl": (JSON, JSON, BLIND), "a.txt": (BLIND, TEXT)}, _read_prompts, parts=("a.jsonl", "a.txt")
    ),
    "tasks": FuzzedReader(
        _make_tasks,
        {f"{name}.jsonl": (JSON, JSON, BLIND) for name in TASKS},
        _read_tasks,
        parts=tuple(f"{name}.jsonl" for name in TASKS),
    ),
    "core": FuzzedReader(
        _make_core,
        {
            "core.yaml": (YAML, BLIND),
            "eval_meta_data.csv": (TEXT, BLIND),
            **{f"eval_data/{n}.jsonl": (JSON, BLIND) for n in "abc"},
        },
        _read_core,
    ),
    "settings": FuzzedReader(
        _make_settings,
        {"multirun.yaml": (YAML, YAML, BLIND), "config.yaml": (YAML,), "config.json": (JSON,)},
        _read_settings,
        parts=SETTINGS,
    ),
    "vocabularies": FuzzedReader(
        _make_pieces,
        {"unigram/tokenizer.model": (BLIND,), "bpe/tokenizer.model": (BLIND,), "definition.json": (JSON, BLIND)},
        _read_pieces,
        parts=PIECES,
    ),
    "others": FuzzedReader(
        _make_others,
        {"model.bin": (BLIND,), "numpy/train.npy": (BLIND, TEXT), "numpy/val.npy": (BLIND,)},
        _read_others,
        parts=("model.bin", "numpy"),
    ),
    "texts": FuzzedReader(_make_texts, dict.fromkeys(TEXTS, (BLIND, TEXT)), _read_text, parts=tuple(TEXTS)),
    "saved": FuzzedReader(
        _make_saved,
        {"dataset_dict.json": (JSON, BLIND), "train/state.json": (JSON, BLIND), "train/dataset_info.json": (JSON, BLIND)},
        check_saved_dataset,
    ),
}
