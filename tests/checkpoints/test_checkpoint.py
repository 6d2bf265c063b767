"""This program's own checkpoints: writing, reading, damage and where they are found."""

import errno
import os
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_pretrain.checkpoints.checkpoint_file import (
    copy_checkpoint,
    first_readable,
    read_checkpoint,
    write_checkpoint,
)
from gpt_pretrain.checkpoints.pretrained import load_pretrained, open_checkpoint, open_weights
from gpt_pretrain.checkpoints.serialization.checksum import SummedStream, check_early, checksum_error
from gpt_pretrain.errors import UserError
from gpt_pretrain.runs.folder import find_checkpoints, find_run
from gpt_pretrain.system.files import remove_scratch_files
from tests.conftest import tiny_model
from tests.helpers.hostile_files import add_checksum
from tests.helpers.other_models import Hostile


def content(**changes: Any) -> dict[str, Any]:
    model = tiny_model()
    state = {f"model.{name}": value.clone() for name, value in model.state_dict().items()}
    return {"state_dict": state, "architecture": model.config.to_dict(), "tokenizer": "byte"} | changes


def test_a_model_is_restored_exactly(tmp_path: Path) -> None:
    path = tmp_path / "x.ckpt"
    write_checkpoint(content(), path)
    assert open_weights(path).tokenizer == "byte"
    model = load_pretrained(path)
    assert not model.training
    token_ids = torch.randint(0, 97, (2, 16))
    assert torch.equal(model(token_ids), tiny_model()(token_ids))
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.ckpt"]


def test_a_failed_write_leaves_the_old_checkpoint_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.ckpt"
    write_checkpoint(content(), path)
    before = path.read_bytes()

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_checkpoint(content(tokenizer="gpt2"), path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.ckpt"]


def test_best_is_independent_of_the_next_last(tmp_path: Path) -> None:
    last, best = tmp_path / "last.ckpt", tmp_path / "best.ckpt"
    write_checkpoint(content(step=1), last)
    copy_checkpoint(last, best)
    write_checkpoint(content(step=2), last)
    assert (read_checkpoint(best)["step"], read_checkpoint(last)["step"]) == (1, 2)


@pytest.mark.parametrize("lacks_links", [False, True])
def test_a_copy_takes_no_space_where_the_file_system_can_share_it(
    tmp_path: Path, lacks_links: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    last, best = tmp_path / "last.ckpt", tmp_path / "best.ckpt"
    write_checkpoint(content(step=1), last)

    def unable(*args: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr("gpt_pretrain.system.files._share_blocks", lambda source, target: False)
    if lacks_links:
        monkeypatch.setattr("os.link", unable)
    for _ in range(2):  # the second time, it is there already
        copy_checkpoint(last, best)
        assert (best.stat().st_ino == last.stat().st_ino) == (not lacks_links)
        assert best.read_bytes() == last.read_bytes()
        assert sorted(path.name for path in tmp_path.iterdir()) == ["best.ckpt", "last.ckpt"]


@pytest.mark.parametrize("sizes", [[1], [2, 0, 1], [1, 1, 1, 5], [3, 70_000, 1, 2]])
def test_the_checksum_of_what_is_written_is_that_of_the_file(tmp_path: Path, sizes: list[int]) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    parts = [bytes(range(size % 256)) + bytes(size - size % 256) for size in [*sizes, 2]]
    parts[-1] = b"\0\0"
    with open(one, "wb") as stream:
        summed = SummedStream(stream)
        for part in parts:
            assert summed.write(memoryview(part)) == len(part)
        summed.finish()
    other.write_bytes(b"".join(parts))
    add_checksum(other)
    assert one.read_bytes() == other.read_bytes()
    assert checksum_error(one) is None


@pytest.mark.parametrize("change", ["none", "damaged before", "replaced", "shortened", "removed"])
def test_a_checksum_that_is_verified_early_is_that_of_the_file_as_it_is_read(tmp_path: Path, change: str) -> None:
    path, other = tmp_path / "x", tmp_path / "y"
    path.write_bytes(bytes(100_000))
    add_checksum(path)
    damaged = bytearray(path.read_bytes())
    damaged[1000] = 1
    if change == "damaged before":
        path.write_bytes(damaged)
    check_early(str(path))
    if change == "replaced":
        other.write_bytes(damaged)
        other.replace(path)
    elif change == "shortened":
        path.write_bytes(damaged[500:])
    elif change == "removed":
        path.unlink()
        with pytest.raises(FileNotFoundError):
            checksum_error(path)
        return
    found = checksum_error(path)
    assert found == checksum_error(path)  # which is now computed
    assert (found is None) == (change == "none")


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/full")
def test_a_full_disk_is_reported_with_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = open
    monkeypatch.setattr(
        "builtins.open",
        lambda path, mode="r", **options: real("/dev/full", "wb") if mode == "xb" else real(path, mode, **options),
    )
    with pytest.raises(OSError, match="No space left on device"):
        write_checkpoint(content(), tmp_path / "x.ckpt")


@pytest.mark.parametrize("damage", ["flipped", "truncated", "zeroed", "marker"])
def test_damage_is_detected_and_the_newest_intact_checkpoint_is_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    last, older = tmp_path / "last.ckpt", tmp_path / "step-00000001.ckpt"
    write_checkpoint(content(step=1), older)
    write_checkpoint(content(step=2), last)
    data = bytearray(last.read_bytes())
    if damage == "flipped":
        data[len(data) // 2] ^= 1
    elif damage == "truncated":
        del data[-1:]
    elif damage == "marker":
        data[-20] ^= 1
    else:
        data[:] = bytes(len(data))
    last.write_bytes(data)
    with pytest.raises(UserError, match=r"last\.ckpt (is damaged|holds more than)"):
        read_checkpoint(last)
    assert first_readable([last, older], read_checkpoint)["step"] == 1
    assert f"The newest intact checkpoint is {older}" in caplog.text
    with pytest.raises(UserError, match=r"last\.ckpt") as caught:
        first_readable([last], read_checkpoint)
    older.write_bytes(b"")
    with pytest.raises(
        UserError, match=r"last\.ckpt.* No other checkpoint of this run can be read either\. Copy the run again"
    ) as both:
        first_readable([last, older], read_checkpoint)
    assert str(both.value).startswith(str(caught.value))


def test_intact_checkpoints_without_the_weights_that_are_asked_for_are_not_called_unreadable(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    for name in ("last", "step-00000001"):
        write_checkpoint(content(), tmp_path / "checkpoints" / f"{name}.ckpt")
    with pytest.raises(UserError, match=r"last\.ckpt holds no moving average .*; a run keeps one with ema_decay=0\.99\.$"):
        open_checkpoint(str(tmp_path), kind="ema")


@settings(max_examples=300, deadline=None)
@given(index=st.integers(0, 10**9), bit=st.integers(0, 7))
def test_every_flipped_bit_is_detected(tmp_path_factory: pytest.TempPathFactory, index: int, bit: int) -> None:
    path = tmp_path_factory.getbasetemp() / "small.ckpt"
    write_checkpoint({"state_dict": {"a": torch.arange(50.0)}, "architecture": {}, "tokenizer": "byte"}, path)
    data = bytearray(path.read_bytes())
    data[index % len(data)] ^= 1 << bit
    path.write_bytes(data)
    with pytest.raises(UserError):
        read_checkpoint(path)


def test_only_the_remains_of_a_killed_write_are_removed(tmp_path: Path) -> None:
    write_checkpoint(content(), tmp_path / "last.ckpt")
    (tmp_path / ".last.ckpt.0123abcd.tmp").write_bytes(b"half")
    (tmp_path / "notes.tmp").write_bytes(b"mine")
    remove_scratch_files(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.ckpt", "notes.tmp"]


def test_a_hostile_file_is_rejected_and_runs_nothing(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    torch.save(content(extra=Hostile(marker)), tmp_path / "a.ckpt")
    (tmp_path / "b.ckpt").write_bytes(pickle.dumps(Hostile(marker)))
    for name in ("a.ckpt", "b.ckpt"):
        with pytest.raises(UserError, match=r"not loaded|is damaged"):
            load_pretrained(tmp_path / name)
    assert not marker.exists()
    torch.load(tmp_path / "a.ckpt", weights_only=False)
    assert marker.exists(), "the file was not hostile"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": {"_target_": "os.system"}}, "unknown field '_target_'"),
        ({"architecture": 3}, "The stored architecture is a number"),
        ({"state_dict": {}}, "it holds no tensors of a GPT-2"),
        (
            {"state_dict": {"model.tok_emb.weight": torch.zeros(97, 32)}},
            r"does not fit a GPT-2: \d+ tensors are missing \(final_norm\.weight",
        ),
        ({"state_dict": {"model.odd": torch.zeros(1)}}, "is not a GPT-2: it has no token and position embeddings"),
    ],
)
def test_content_that_is_not_a_model_is_rejected(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    write_checkpoint(content(**change), tmp_path / "x.ckpt")
    with pytest.raises(UserError, match=message):
        load_pretrained(tmp_path / "x.ckpt")


def test_all_tensors_that_do_not_fit_are_listed(tmp_path: Path) -> None:
    wrong = content()
    wrong["state_dict"]["model.tok_emb.weight"] = torch.zeros(97, 31)
    wrong["state_dict"]["model.final_norm.bias"] = "zero"
    del wrong["state_dict"]["model.pos_emb.weight"]
    write_checkpoint(wrong, tmp_path / "x.ckpt")
    with pytest.raises(UserError) as caught:
        load_pretrained(tmp_path / "x.ckpt")
    (message,) = caught.value.problems
    assert "tok_emb.weight has (97, 31), but the model needs (97, 32)" in message
    assert "final_norm.bias holds a str" in message
    assert "1 tensor is missing (pos_emb.weight)" in message


@pytest.mark.parametrize("damage", ["missing", "empty", "text", "truncated", "list", "other"])
def test_damaged_and_foreign_files_are_rejected(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "x.ckpt"
    write_checkpoint(content(), path)
    whole = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage in ("empty", "text", "truncated"):
        path.write_bytes({"empty": b"", "text": b"not a checkpoint", "truncated": whole[: len(whole) // 2]}[damage])
    else:
        torch.save([1, 2] if damage == "list" else {"weights": torch.zeros(3)}, path)
    with pytest.raises(UserError, match=r"x\.ckpt"):
        load_pretrained(path)


@pytest.fixture
def outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for number, run in enumerate(("outputs/a", "outputs/multirun/s/0", "outputs/b", "outputs/empty")):
        folder = tmp_path / run / "checkpoints"
        folder.mkdir(parents=True)
        if run != "outputs/empty":
            (folder / "last.ckpt").write_bytes(b"x")
            os.utime(folder / "last.ckpt", (1000, [2000, 3000, 1000][number]))
    return tmp_path / "outputs"


def test_runs_are_found_by_name_and_by_age(outputs: Path) -> None:
    assert find_run("latest") == Path("outputs/multirun/s/0")
    assert find_run("outputs/a") == find_run("outputs/a/checkpoints/last.ckpt") == Path("outputs/a")
    assert find_checkpoints("latest") == [Path("outputs/multirun/s/0/checkpoints/last.ckpt")]
    assert find_checkpoints("outputs/a") == find_checkpoints("outputs/a/checkpoints/last.ckpt")
    folder = outputs / "a/checkpoints"
    for name, age in (("best.ckpt", 5000), ("step-00000003.ckpt", 7000), ("step-00000002.ckpt", 6000)):
        (folder / name).write_bytes(b"x")
        os.utime(folder / name, (age, age))
    names = ["last.ckpt", "step-00000003.ckpt", "step-00000002.ckpt", "best.ckpt"]
    assert [path.name for path in find_checkpoints("outputs/a")] == names, "last comes first, at any age"


@pytest.mark.parametrize("name", ["outputs/nowhere", "outputs/empty"])
def test_missing_runs_are_rejected(outputs: Path, name: str) -> None:
    with pytest.raises(UserError, match=name):
        find_run(name)
    with pytest.raises(UserError, match=name):
        find_checkpoints(name)
