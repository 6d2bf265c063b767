"""Files that cannot be read: each in the table has a message that says what is wrong with it, in a reader's words."""

from __future__ import annotations

import base64
import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gpt_pretrain.checkpoints.serialization.tensor_files import read_torch_file, state_dict_tensors
from gpt_pretrain.data.files import LocalFiles
from gpt_pretrain.data.shards.formats import open_corpus
from gpt_pretrain.errors import UserError
from gpt_pretrain.system.json_files import read_json
from gpt_pretrain.system.reading import DamagedFileError
from gpt_pretrain.system.yaml_files import read_yaml
from gpt_pretrain.tokenizers.build import StoredTokenizer, build_tokenizer, restore_tokenizer
from tests.helpers.made_shards import write_shards

MODEL = {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": []}


def definition(**changes: Any) -> bytes:
    return json.dumps({"version": "1.0", "model": MODEL} | changes).encode()


def split_by(pattern: str) -> bytes:
    return definition(pre_tokenizer={"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False})


def table(**fields: Any) -> bytes:
    return pickle.dumps(fields)


def ranks(*more: bytes, without: int = -1) -> bytes:
    tokens = [bytes([byte]) for byte in range(256) if byte != without] + list(more)
    return b"".join(base64.b64encode(token) + b" %d\n" % number for number, token in enumerate(tokens))


class Changed:
    """Pickled as a change of an attribute of a dict."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (dict, (), {"attribute": 1})


def pieces(*kinds: int) -> bytes:
    """Return a SentencePiece model whose tokens are of these kinds. The first kind is the token for unknown text."""
    tokens = [b"\x0a\x01" + bytes([97 + number]) + b"\x15\0\0\0\0\x18" + bytes([kind]) for number, kind in enumerate(kinds)]
    return b"".join(b"\x0a" + bytes([len(token)]) + token for token in tokens)


# Name of a file, its content, and what the message says of it.
TOKENIZER_FILES: list[tuple[str, bytes, str]] = [
    ("tokenizer.json", definition(normalizer=3), "its normalizer is 3, not an object"),
    ("tokenizer.json", definition(added_tokens={"a": 1}), "its added_tokens are not a list"),
    ("tokenizer.json", definition(added_tokens=[{"content": ""}]), "its added token {'content': ''} is invalid"),
    ("tokenizer.json", definition(model=MODEL | {"type": "Neural"}), "its model has the type 'Neural', which is not one of BPE,"),
    ("tokenizer.json", definition(model={"type": "BPE", "vocab": {"a": 0}}), "its model has no list of merges"),
    ("tokenizer.json", definition(model=MODEL | {"vocab": ["a"]}), "its vocabulary is not a table of tokens"),
    ("tokenizer.json", definition(model=MODEL | {"vocab": {"a": 1, "b": 1}}), "two of its tokens have the same id"),
    ("tokenizer.json", definition(normalizer={"type": "Precompiled", "precompiled_charsmap": "?"}), "is not in base64"),
    (
        "tokenizer.json",
        definition(normalizer={"type": "Sequence", "normalizers": [{"type": "NFC"}] * 65}),
        "its normalizer has 65 steps",
    ),
    ("tokenizer.json", split_by("(a"), "its regular expression '(a' is not used, since its brackets do not match"),
    ("tokenizer.json", split_by("a)"), "is not used, since its brackets do not match"),
    ("tokenizer.json", split_by("[a"), "is not used, since its brackets do not match"),
    ("tokenizer.json", split_by("a{1000000}"), "is not used, since it repeats a part millions of times"),
    ("tokenizer.json", split_by("(" * 60 + "a" + ")" * 60), "since it has more than 50 groups inside of one another"),
    ("tokenizer.json", split_by("(?<=a*)b"), "since what stands before a character has repetitions in it"),
    ("tokenizer.json", split_by("a" * 10_001), "it has 1 regular expression with 10,001 characters in total"),
    ("tokenizer.json", split_by(r"(a)\1"), r"since \1 in it may take unlimited time"),
    ("vocab.txt", b"\xff\xfe\n", "it is not UTF-8"),
    ("x.tiktoken", b"YQ== x\n", "its line b'YQ== x' is not a token in base64 and its number"),
    ("x.tiktoken", ranks(without=65), "it lacks some of the 256 single bytes"),
    ("x.tiktoken", ranks(b"a" * 1001), "one of its tokens has more than 1000 bytes"),
    ("x.model", pieces(1, 1), "it has no token for unknown text"),
    ("x.model", pieces(2, 1, 5), "it has unused tokens, which would get other ids here; give the model's tokenizer.json instead"),
    ("meta.pkl", pickle.dumps(["a"]), "it holds an array, not a table of tokens"),
    ("meta.pkl", table(), "it has neither a table itos of the tokens by their ids nor a vocab_size"),
    ("meta.pkl", table(vocab_size=2_000_000), "nor a vocab_size of up to 1,048,576: it states 2000000"),
    ("meta.pkl", table(stoi={"a": 0, "b": 0}), "two tokens of its stoi have the same id"),
    ("meta.pkl", table(itos=["a", "b"], vocab_size=3), "its vocab_size is 3, but it has 2 tokens"),
    ("meta.pkl", table(itos=["a", ""]), "its itos holds '', which is not a token"),
    ("meta.pkl", table(itos=["up", "up"]), "its tokens are not all different, or one is empty"),
    ("meta.pkl", table(itos={0: Changed()}), "it needs builtins.dict"),
    ("meta.pkl", b"not a pickle", "it cannot be read as a pickle"),
]


@pytest.mark.parametrize("number", range(len(TOKENIZER_FILES)))
def test_a_tokenizer_file_is_refused_in_plain_words(tmp_path: Path, number: int) -> None:
    name, content, message = TOKENIZER_FILES[number]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        build_tokenizer(str(tmp_path / name))
    (problem,) = caught.value.problems
    assert problem.startswith(str(tmp_path)) and f"{name} cannot be used as a tokenizer: " in problem
    assert message in problem


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        (StoredTokenizer("x@000", '{"kind": "spells"}'), "it has the kind 'spells', which this version does not know"),
        (StoredTokenizer("x@000", '{"kind": "tokenizer.json", "fields": 3}'), "it is not the definition of a tokenizer"),
        (StoredTokenizer("x@000", '{"kind": "table", "tokens": 3}'), "it is not the definition of a tokenizer"),
        (StoredTokenizer("ids:many", None), "tokenizer='ids:many': write the number of ids, such as ids:1500, up to 1,048,576."),
        (
            StoredTokenizer("ids:1048577", None),
            "tokenizer='ids:1048577': write the number of ids, such as ids:1500, up to 1,048,576.",
        ),
    ],
)
def test_a_stored_tokenizer_is_refused_in_plain_words(stored: StoredTokenizer, message: str) -> None:
    with pytest.raises(UserError) as caught:
        restore_tokenizer(stored, origin="last.ckpt")
    assert message in str(caught.value)


def changed_manifest(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    write_shards(folder, train=[[1, 2, 3]] * 20, val=[[1, 2, 3]])
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


# What is wrong with a manifest, and what the message says of it.
MANIFESTS: list[tuple[Callable[[dict[str, Any]], object], str]] = [
    (lambda manifest: manifest.pop("parts"), "manifest.json is damaged: its entry 'parts' is missing. Copy it again, or prepare"),
    (lambda manifest: manifest.update(parts=3), "manifest.json is damaged: an entry has the wrong type. Copy it again"),
    (lambda manifest: manifest["parts"]["train"]["shards"][0].update(file="../x"), "a shard has an invalid name or length"),
    (lambda manifest: manifest["parts"]["train"].update(documents=-1), "an invalid number of documents or bytes"),
    (lambda manifest: manifest.update(version=99), "version 99, but this program reads 'gpt-pretrain shards', version 1."),
]


@pytest.mark.parametrize("number", range(len(MANIFESTS)))
def test_a_damaged_manifest_is_refused_in_plain_words(tmp_path: Path, number: int) -> None:
    change, message = MANIFESTS[number]
    changed_manifest(tmp_path, change)
    with pytest.raises(UserError) as caught:
        open_corpus(LocalFiles(tmp_path))
    assert message in str(caught.value)
    assert "Error" not in str(caught.value)


@pytest.mark.parametrize(
    ("format_name", "message"),
    [
        ("gpt_pretrain", "manifest.json is missing."),
        ("nanogpt", "train.bin is missing, which nanoGPT's format requires."),
        ("llmc", "there are no files *_train_*.bin, which llm.c's format requires."),
        ("numpy", "there are no files *train*.npy, which token ids in NumPy arrays require."),
    ],
)
def test_a_format_that_a_folder_does_not_have_is_named(tmp_path: Path, format_name: str, message: str) -> None:
    (tmp_path / "other.txt").write_text("text")
    with pytest.raises(UserError) as caught:
        open_corpus(LocalFiles(tmp_path), format_name=format_name)
    assert str(caught.value).startswith(f"data.path={tmp_path}: {message}")


def saved(value: object) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream)
    return stream.getvalue()


def with_pickle(content: bytes, old: bytes, new: bytes) -> bytes:
    """Return a PyTorch file with a change in its pickle."""
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as archive, zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as target:
        for name in archive.namelist():
            data = archive.read(name)
            target.writestr(name, data.replace(old, new) if name.endswith("data.pkl") else data)
    return stream.getvalue()


TENSOR = saved({"weight": torch.zeros(3, 5)})

# Content of a file for PyTorch, and what the message says of it.
TORCH_FILES: list[tuple[bytes, str]] = [
    (with_pickle(TENSOR, b"K\x03K\x05", b"K\xffK\x05"), "a tensor claims the shape (255, 5), more than its storage holds"),
    (with_pickle(TENSOR, b"K\x0fQ" if b"K\x0fQ" in TENSOR else b"K\x0ft", b"Nt"), "a storage is not described as PyTorch does"),
    (with_pickle(TENSOR, b"storage", b"storags"), "a storage is not described as PyTorch does"),
    (TENSOR[:200], "is incomplete: it begins as PyTorch's files do, but its end is missing"),
    (b"", "is incomplete: it is empty"),
    (b"hello", "is damaged or is not a PyTorch file"),
    (pickle.dumps({"a": 1}, protocol=2), "it does not begin as PyTorch's files do"),
]


@pytest.mark.parametrize("number", range(len(TORCH_FILES)))
def test_a_damaged_file_of_pytorch_is_refused_in_plain_words(tmp_path: Path, number: int) -> None:
    content, message = TORCH_FILES[number]
    (tmp_path / "model.pt").write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_torch_file(tmp_path / "model.pt")
    assert message in str(caught.value)


def test_a_file_of_weights_that_is_gone_or_no_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.pt: no such file\."):
        read_torch_file(tmp_path / "gone.pt")
    with pytest.raises(UserError, match=r" is not a regular file\."):
        read_torch_file(tmp_path)


def test_a_tensor_of_another_layout_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(bytes(1000))
    with pytest.raises(UserError, match=r"the tensor w is not a plain dense tensor\."):
        state_dict_tensors({"w": torch.zeros(3, 3).to_sparse()}, tmp_path / "model.pt")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: " + "9" * 1001, "it holds a number of more than a thousand digits"),
        ("a: [" * 101 + "]" * 101, "it is nested more than 100 levels deep"),
        ("a: &x 1\n<<: {b: 1}", "it holds the key <<, which merges mappings; write out what is merged"),
        ("- a", "it holds an array, not a mapping"),
    ],
)
def test_a_file_of_settings_is_refused_in_plain_words(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "config.yaml").write_text(content)
    with pytest.raises(DamagedFileError) as caught:
        read_yaml(tmp_path / "config.yaml")
    assert message in str(caught.value)


def test_a_json_file_is_refused_in_plain_words(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    for content, message in (
        (b"[1]", "it holds an array, not an object"),
        (b"{", "it cannot be read as JSON"),
        (b" " * 20_000_001, "it has more than 20,000,000 bytes"),
    ):
        file.write_bytes(content)
        with pytest.raises(DamagedFileError) as caught:
            read_json(file)
        assert message in str(caught.value)
