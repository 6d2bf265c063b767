"""Pickles of strangers: what they cost, and what of them is read."""

from __future__ import annotations

import copy
import pickle
import struct
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from gpt_pretrain.checkpoints.checkpoint_file import read_checkpoint
from gpt_pretrain.checkpoints.pretrained import load_pretrained, open_weights
from gpt_pretrain.checkpoints.serialization.tensor_files import read_torch_file
from gpt_pretrain.data.files import LocalFiles
from gpt_pretrain.data.shards.formats import open_corpus
from gpt_pretrain.errors import UserError
from gpt_pretrain.system.reading import DamagedFileError
from gpt_pretrain.training.optimization.optimizer import check_optimizer_state
from tests.conftest import tiny_model
from tests.helpers.hostile_files import hostile_run, read_plain_pickle, save_with_checksum, shared_list
from tests.helpers.made_shards import write_nanogpt
from tests.helpers.resource_limits import within


def with_pickle(path: Path, data: bytes) -> Path:
    """Write an archive of torch.save that has this pickle."""
    torch.save({}, path)
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, data if name.endswith("data.pkl") else content)
    return path


def legacy_with_pickle(path: Path, data: bytes) -> Path:
    """Write a file as PyTorch did before 1.6, that has this pickle."""
    before = [0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}]
    path.write_bytes(b"".join(pickle.dumps(part, 2) for part in before) + data + pickle.dumps([], 2))
    return path


def call(name: str, arguments: bytes) -> bytes:
    """Return a pickle that calls a function."""
    return b"\x80\x02c" + name.replace(".", "\n", 1).encode() + b"\n" + arguments + b"R."


NUMBER = b"J" + struct.pack("<i", 2_000_000_000) + b"\x85"


@pytest.mark.parametrize("write", [with_pickle, legacy_with_pickle])
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (call("builtins.bytearray", NUMBER), r"it needs builtins\.bytearray"),
        (call("__builtin__.bytearray", NUMBER), r"it needs builtins\.bytearray"),
        (call("builtins.bytes", NUMBER), r"it needs builtins\.bytes"),
        (call("torch.FloatStorage", NUMBER), r"it needs torch\.FloatStorage"),
        (call("torch.Tensor", NUMBER), r"it needs torch\.Tensor"),
        (call("_codecs.encode", b"X\x01\0\0\0aX\x04\0\0\0idna\x86"), "encodes a text as 'idna'"),
        (call("torch._utils._rebuild_parameter", b"N\x88N\x87"), "a parameter is not described as PyTorch does"),
        (b"\x80\x02" + b"(" * 600_000 + b".", "more than 500,000 containers"),
        (b"\x80\x02" + b"]" * 600_000 + b".", "more than 500,000 containers"),
        (b"\x80\x02X\xff\xff\xff\x7fabc.", "beyond the end of the file"),
        (
            b"\x80\x02}(" + b"".join(b"\x8a\x0a" + (n * ((1 << 61) - 1)).to_bytes(10, "little") + b"N" for n in range(9)) + b"u.",
            "large number",
        ),
    ],
    ids=["bytearray", "python 2", "bytes", "storage", "tensor", "codec", "parameter", "marks", "lists", "length", "equal hashes"],
)
def test_a_pickle_that_would_fill_the_memory_is_refused(
    tmp_path: Path, write: Callable[[Path, bytes], Path], data: bytes, message: str
) -> None:
    path = write(tmp_path / "x.pth", data)
    with within(seconds=5, megabytes=200), pytest.raises(UserError, match=message):
        load_pretrained(path, n_heads=4)


def test_parts_that_stand_for_countless_values_are_refused(tmp_path: Path) -> None:
    state = tiny_model().state_dict()
    fields = tiny_model().config.to_dict()
    model = {"state_dict": state, "architecture": fields, "tokenizer": "byte"}
    files = {
        "nanogpt": {"model": state, "model_args": {"n_head": shared_list(), "block_size": shared_list()}},
        "architecture": model | {"architecture": fields | {"n_heads": shared_list()}},
        "settings": model | {"config": {"data": {"remote": {"options": {"a": shared_list()}}}}},
        "pieces": model | {"shards": {"folder": "x", "files": []}, "callbacks": shared_list()},
        "itself": model | {"config": (itself := [])},
    }
    itself.append(itself)
    for name, content in files.items():
        path = save_with_checksum(content, tmp_path / f"{name}.ckpt")
        with within(seconds=2, megabytes=200), pytest.raises(UserError, match=r"stand for more than|nested more than"):
            open_weights(path, n_heads=4)
        with within(seconds=2, megabytes=200), pytest.raises(UserError):
            read_checkpoint(path)


def test_a_tensor_that_repeats_one_number_is_refused_anywhere_in_a_checkpoint(tmp_path: Path) -> None:
    model = tiny_model()
    content = {"state_dict": model.state_dict(), "architecture": model.config.to_dict(), "tokenizer": "byte"}
    for name in ("optimizer_states", "callbacks"):
        path = save_with_checksum(content | {name: [{"state": torch.zeros(1).expand(10**9, 32)}]}, tmp_path / "x.ckpt")
        with pytest.raises(UserError, match=r"claim 128,\d+,\d+,\d+ bytes in total, more than the file holds"):
            read_checkpoint(path)


def test_an_optimizer_state_that_does_not_fit_is_refused() -> None:
    optimizer = torch.optim.AdamW((module := torch.nn.Linear(4, 4)).parameters(), fused=True)
    module(torch.ones(4)).sum().backward()
    optimizer.step()
    check_optimizer_state(optimizer)
    saved = optimizer.state_dict()
    for value in (torch.zeros(3), torch.zeros(1).expand(4, 4), torch.zeros(4, 4).expand(1, 4, 4), "x"):
        changed = copy.deepcopy(saved)
        changed["state"][0]["exp_avg"] = value
        optimizer.load_state_dict(changed)
        with pytest.raises(UserError, match="does not fit its weights"):
            check_optimizer_state(optimizer)


def test_a_damaged_training_state_is_one_message(
    finished_run: Path, script: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    hostile_run(finished_run, tmp_path / "h", lambda content: content["loops"]["fit_loop"].update(state_dict=3))
    done = script("train.py", "resume=h", f"data.cache_dir={tmp_path / 'cache'}")
    assert done.returncode == 2 and "its training state is damaged" in done.stderr and "Traceback" not in done.stderr


def test_everything_that_torch_saves_of_plain_data_is_read(tmp_path: Path) -> None:
    content = {
        "tensors": [torch.arange(6.0).view(2, 3), torch.zeros(0, 3), torch.zeros(2, dtype=torch.bfloat16), torch.tensor(1)],
        "types": [
            torch.zeros(2, dtype=torch.complex64),
            torch.ones(2).to(torch.float8_e4m3fn),
        ],
        "module": torch.nn.Linear(2, 2).state_dict(),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "plain": [
            None,
            True,
            1.5,
            2**62,
            b"\xff",
            "text",
            {1, 2},
            3j,
            (1, (2,)),
            {(1, 2): 3, 4: 5},
            torch.Size([2]),
            torch.float32,
        ],
        "optimizer": torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))]).state_dict(),
    }
    for zipped in (True, False):
        if not zipped:
            del content["types"]  # PyTorch itself cannot read these types in its old format.
        torch.save(content, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
        found = read_torch_file(tmp_path / "x.pth")
        assert found["plain"] == content["plain"] and found["optimizer"] == content["optimizer"]
        assert all(torch.equal(a, b) for a, b in zip(found["tensors"], content["tensors"], strict=True))


@pytest.mark.parametrize(
    "content",
    [
        b"Nr\0\0\0\x30.",
        b"\x80\x04" + b"]" * 600_000 + b".",
        call("os.system", b"X\x04\0\0\0true\x85"),
        pickle.dumps({"itos": {0: "a", 2: "b"}}),
        pickle.dumps({"itos": {0: "a", 1: ""}}),
        pickle.dumps({"itos": {0: "\ud800"}}),
        pickle.dumps({"itos": shared_list()}),
        pickle.dumps([]),
        b"",
    ],
    ids=["memo", "lists", "call", "gap", "nothing", "surrogate", "shared", "list", "empty"],
)
def test_a_damaged_meta_pkl_is_refused_at_once(tmp_path: Path, content: bytes) -> None:
    write_nanogpt(tmp_path, train=[1, 2, 3])
    (tmp_path / "meta.pkl").write_bytes(content)
    with within(seconds=3, megabytes=200), pytest.raises(UserError, match=r"meta\.pkl.* cannot be used"):
        open_corpus(LocalFiles(tmp_path))


@pytest.mark.parametrize("protocol", range(6))
def test_a_plain_pickle_is_read_in_every_protocol(protocol: int) -> None:
    content = {"vocab_size": 3, "itos": {0: "\n", 1: "é", 2: "你"}, "more": [1.5, None, True, (), (1, 2, 3, 4), -7, 10**20, {}]}
    assert read_plain_pickle(pickle.dumps(content, protocol)) == content


def test_few_values_may_be_named_again() -> None:
    assert read_plain_pickle(b"\x80\x04K\x01" + b"\x94" * 1_000_000 + b".") == 1
    with within(3, 180), pytest.raises(DamagedFileError, match="more than 1,000,000 values that may be named again"):
        read_plain_pickle(b"\x80\x04K\x01" + b"\x94" * 2_900_000 + b".")  # which would take 360 MB
