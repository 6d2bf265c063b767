"""Each limit on what a file may hold refuses something of its own, so that none can be lost unnoticed."""

from __future__ import annotations

import io
import os
import struct
import tarfile
import zipfile
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import torch

from gpt_pretrain.checkpoints.checkpoint_file import nested_dicts
from gpt_pretrain.checkpoints.serialization import torch_pickles
from gpt_pretrain.checkpoints.serialization.torch_pickles import _encode, _plain, _StorageSizes, check_torch_zip
from gpt_pretrain.checkpoints.sharded import _read_index
from gpt_pretrain.config.checkpoint_settings import read_stored_settings
from gpt_pretrain.errors import UserError
from gpt_pretrain.system import hub_transfer, number_keys, pickle_limits, pickle_machine
from gpt_pretrain.system.json_files import parse_json
from gpt_pretrain.system.pickle_rules import PickledName, PickledReference, PickleRules
from gpt_pretrain.system.pickles import read_pickle
from gpt_pretrain.system.reading import DamagedFileError, read_bytes
from gpt_pretrain.system.terminal import MAX_LINE, print_escaped
from gpt_pretrain.system.yaml_files import parse_yaml
from gpt_pretrain.texts.containers import archives
from gpt_pretrain.texts.containers.contents import open_contents
from gpt_pretrain.texts.containers.decompression import DamagedArchiveError
from gpt_pretrain.texts.left_out import LeftOut
from gpt_pretrain.tokenizers.formats import nanogpt_meta

HARMLESS = PickleRules(calls={"a.make": lambda *arguments: len(arguments)}, references=False)
LONG_KEY = b"X" + struct.pack("<I", 100_000) + b"x" * 100_000 + b"q\x00"  # a text, kept in the memo


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"(" + b"]" * 60 + b"l.", "more than 50 containers"),
        (b"(" + b"ca\nmake\n)R" * 30 + b"l.", "more than 20 calls"),
        (b"}" + LONG_KEY + b"}" + b"h\x00K\x01s" * 20 + b".", "copy far more than it holds"),
        (b"}(" + b"".join(b"G" + struct.pack(">d", n + 0.5) + b"N" for n in range(11)) + b"u.", "more than 10 keys"),
        (b"}\x8a\x09" + (1 << 62).to_bytes(9, "little") + b"Ns.", "a key of a dict is a large number"),
        (b"}]Ns.", "a key of a dict is a list"),
        (b"c" + b"a" * 5000 + b"\nb\n.", "cannot be read as a pickle"),
        (b"X\xff\xff\xff\x7fabc.", "leads beyond the end"),
        (b"cos\nsystem\n.", "it needs os.system"),
        (b"N)R.", "a call of something that is not a function"),
        (b"}}b.", "it would build an object"),
        (b"NQ.", "refers to something outside"),
        (b"NN\x87.", "stack is too short"),
        (b"}Na.", "appends to a dict"),
        (b"]NNs.", "sets an item of a list"),
        (b"NN\x93.", "a name is not a string"),
        (b"N", "cannot be read as a pickle"),
        (b"\x82\x01.", "it has the opcode EXT1"),
        (b"ca\nmake\n)\x81.", "the opcode NEWOBJ"),
    ],
)
def test_what_a_pickle_may_not_do(monkeypatch: pytest.MonkeyPatch, data: bytes, message: str) -> None:
    for name, most in {"MAX_CONTAINERS": 50, "MAX_CALLS": 20, "FREE_COPIES": 1000}.items():
        monkeypatch.setattr(pickle_limits, name, most)
    monkeypatch.setattr(number_keys, "MAX_ODD_KEYS", 10)
    with pytest.raises(DamagedFileError, match=message):
        read_pickle(io.BytesIO(data), HARMLESS, size=len(data))


def test_a_pickle_has_a_limited_number_of_opcodes(monkeypatch: pytest.MonkeyPatch) -> None:
    data = b"](" + b"N" * 200 + b"e."
    assert len(read_pickle(io.BytesIO(data), size=len(data))) == 200
    monkeypatch.setattr(pickle_machine, "MAX_OPCODES", 100)
    with pytest.raises(DamagedFileError, match="more than 100 opcodes"):
        read_pickle(io.BytesIO(data), size=len(data))


def test_shared_parts_of_a_pickle_are_counted_as_often_as_they_stand_there() -> None:
    data = b"]q\x00" + b"(h\x00h\x00lq\x00" * 30 + b"."  # each list holds the one before twice
    with pytest.raises(DamagedFileError, match="stand for more than"):
        read_pickle(io.BytesIO(data), size=len(data))


def _reference(count: object = 4, *more: object) -> PickledReference:
    return PickledReference(("storage", PickledName("torch.FloatStorage"), "0", "cpu", count, *more))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((_reference(), 0, (1,) * 65, (1,) * 65), "more than 64 dimensions"),
        ((_reference(), 0, (-1,), (1,)), "invalid shape"),
        ((_reference(), 0, (1 << 62,), (1,)), "invalid shape"),
        ((_reference(), 0, (1, 1), (1,)), "invalid shape"),
        ((_reference(), 0, (5,), (1,)), "more than its storage holds"),
        ((_reference(), 1, (2, 2), (2, 1)), "more than its storage holds"),
        ((_reference(), 0, (4,), (1,), False, {"a": 1}), "has hooks"),
        ((_reference("4"), 0, (4,), (1,)), "not described as PyTorch does"),
        (("x", 0, (4,), (1,)), "has no storage"),
    ],
)
def test_what_a_tensor_may_not_be(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(DamagedFileError, match=message):
        _StorageSizes(1000).rebuild(*arguments)


def test_tensors_are_no_larger_than_their_file() -> None:
    sizes = _StorageSizes(15)
    sizes.rebuild(_reference(), 0, (4,), (1,))
    with pytest.raises(DamagedFileError, match="claim 16 bytes in total"):
        sizes.check_total()
    with pytest.raises(DamagedFileError, match="claims 16 bytes, and the archive has 12"):
        sizes.check_records({"data/0": 12})
    whole = _StorageSizes(1000, build=lambda *_: torch.empty(0))
    with pytest.raises(DamagedFileError, match="a part of another"):
        whole.rebuild(_reference(4, "view"), 0, (4,), (1,))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: _encode("a", "idna"), "encodes a text as 'idna'"),
        (lambda: _plain([[b"a"]], "torch.Size"), "it calls torch.Size with"),
        (lambda: nanogpt_meta._encode("a" * 401, "latin1"), "it calls a function"),
        (lambda: nanogpt_meta._encode("a", "idna"), "it calls a function"),
        (lambda: nanogpt_meta._number(nanogpt_meta._Dtype("U999"), b"a" * 401), "a NumPy value of the type 'U999'"),
        (lambda: nanogpt_meta._build([], {}), "it changes a list"),
        (lambda: torch_pickles._check_state([], {}), "sets attributes of a list"),
        (lambda: torch_pickles._check_state({}, {"__class__": 1}), "sets attributes of a dict"),
    ],
    ids=["encoding", "size", "long text", "meta encoding", "number", "build", "list state", "dict state"],
)
def test_what_stands_in_for_a_call_takes_only_what_honest_files_pass(call: Any, message: str) -> None:
    with pytest.raises(DamagedFileError, match=message):
        call()


def test_the_parts_of_an_archive_of_weights_fit_into_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.pth"
    torch.save({"a": torch.zeros(100_000)}, path)
    check_torch_zip(path)
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(tmp_path / "b.pth", "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content, zipfile.ZIP_DEFLATED)
    with pytest.raises(DamagedFileError, match="larger than the file"):
        check_torch_zip(tmp_path / "b.pth")
    monkeypatch.setattr(torch_pickles, "MAX_RECORDS", 2)
    with pytest.raises(DamagedFileError, match="more than 2 parts"):
        check_torch_zip(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": ' + b"1" * 101 + b"}", "a number of 101 digits"),
        (b'{"a": ' + b"[" * 101 + b"]" * 101 + b"}", "more than 100 levels deep"),
        (b'{"a": [' + b"0," * 2_000_001 + b"0]}", "more than 2,000,000 values"),
    ],
    ids=["digits", "depth", "values"],
)
def test_what_json_may_not_hold(content: bytes, message: str) -> None:
    with pytest.raises(DamagedFileError, match=message):
        parse_json(content)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: " + "[" * 101 + "]" * 101, "more than 100 levels deep"),
        ("a: " + "1" * 1001, "more than a thousand digits"),
        ("a: &a {k: v}\nb: {<<: *a}", "the key <<"),
        ("a: {" + ", ".join(f"{n}: 1" for n in range(1001)) + "}", "more than 1,000 names in its mappings are no texts"),
        ("a: &a [" + "x, " * 50 + "]\nb: [" + "*a, " * 50 + "]", "aliases stand for more than"),
    ],
    ids=["depth", "digits", "merge", "numbers as names", "aliases"],
)
def test_what_yaml_may_not_hold(content: str, message: str) -> None:
    with pytest.raises(DamagedFileError, match=message):
        parse_yaml(content)


def test_a_small_file_is_not_read_beyond_its_limit(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 101)
    assert len(read_bytes(tmp_path / "a", max_bytes=101)) == 101
    with pytest.raises(DamagedFileError, match="more than 100 bytes"):
        read_bytes(tmp_path / "a", max_bytes=100)


def test_the_depth_of_yaml_is_known_before_it_is_composed() -> None:
    with pytest.raises(DamagedFileError, match="more than 100 levels deep"):
        parse_yaml("a: " + "[" * 200)
    # PyYAML's composer would end the process; from 6.0.4 on, its scanner has a limit.
    with pytest.raises(DamagedFileError, match=r"levels deep|flow level"):
        parse_yaml("a: " + "[" * 100_000)


def test_an_archive_has_few_layers_and_its_members_few_fields(monkeypatch: pytest.MonkeyPatch) -> None:
    content = b"A text."
    for _ in range(12):
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w") as archive:
            header = tarfile.TarInfo("a.tar")
            header.size = len(content)
            archive.addfile(header, io.BytesIO(content))
        content = stream.getvalue()
    with pytest.raises(DamagedArchiveError, match=r"nested more than \d+ levels deep"):
        for _ in open_contents("a.tar", io.BytesIO(content), size=len(content), left_out=LeftOut()):
            pass
    monkeypatch.setattr(archives, "MAX_FIELDS", 3)
    fields = b"".join(b"12 a=bcdefg\n" for _ in range(4))
    with pytest.raises(DamagedArchiveError, match="more than 3 fields"):
        archives._parse_extended(fields)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (None, "does not list its shards"),
        ({"folder": 1, "files": []}, "does not list its shards"),
        ({"folder": "x", "files": [1]}, "describes a shard as 1"),
        ({"folder": "x", "files": [{"name": "a", "sha256": "b", "rows": {"t": [0, -1]}}]}, "invalid rows of its shard 'a'"),
        ({"folder": "x", "files": [{"name": "a", "sha256": "b", "rows": {"t": [0]}}]}, "invalid rows of its shard 'a'"),
        ({"folder": "x", "files": [{"name": name, "sha256": "b", "rows": {}} for name in ("a", "z/a")]}, "lists a shard twice"),
    ],
)
def test_an_index_of_pieces_describes_each_of_them_once(index: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        _read_index(Path("x"), index)


def test_an_index_of_pieces_leads_nowhere_else() -> None:
    file = {"name": "../../a", "sha256": "b", "rows": {"t": [0, 1]}}
    folder, files = _read_index(Path("x"), {"folder": "../../y", "files": [file]})
    assert (folder, files[0]["name"]) == ("y", "a")


def test_settings_that_hold_themselves_are_not_searched_for_ever() -> None:
    settings: dict[str, Any] = {}
    settings["a"] = settings
    with pytest.raises(UserError, match="far too many parts"):
        nested_dicts(settings)


def test_settings_that_are_nested_deeply_are_one_message() -> None:
    value: Any = 0
    for _ in range(45):
        value = [{"a": value}]
    with pytest.raises(UserError, match="not valid"):
        read_stored_settings({"eval_freq": {"a": value}}, own=False, origin="x")


def test_a_printed_line_is_short_however_long_its_text_is() -> None:
    printed = io.StringIO()
    with redirect_stdout(printed):
        print_escaped("x" * 1_000_000 + "\nb")
    assert len(printed.getvalue()) < MAX_LINE + 100
    assert printed.getvalue().endswith("\nb\n")


def test_a_link_in_place_of_a_partial_download_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "thesis").write_bytes(b"precious")
    (tmp_path / "a.part").symlink_to(tmp_path / "thesis")
    hub_transfer.receive_file("https://example.org/a", tmp_path / "a.part", size=0, headers={}, label="a")
    assert (tmp_path / "thesis").read_bytes() == b"precious"
    assert not (tmp_path / "a.part").is_symlink()


@pytest.mark.parametrize("restored", [False, True], ids=["stays", "is gone again"])
def test_a_link_that_appears_while_a_file_is_opened_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, restored: bool
) -> None:
    private, file = tmp_path / "private.txt", tmp_path / "run" / "config.yaml"
    file.parent.mkdir()
    private.write_text("secret")
    file.write_text("seed: 1")
    open_file = os.open

    def swap(path: Path, *arguments: int) -> int:
        file.rename(file.with_name("kept"))
        file.symlink_to(private)
        handle = open_file(path, *arguments)
        if restored:
            file.unlink()
            file.with_name("kept").rename(file)
        return handle

    assert read_bytes(file, within=file.parent) == b"seed: 1"
    monkeypatch.setattr(os, "open", swap)
    with pytest.raises(OSError, match="a link that leads out of its folder"):
        read_bytes(file, within=file.parent)
