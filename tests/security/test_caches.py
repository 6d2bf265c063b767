"""Caches into which somebody else has put something."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpt_pretrain.data.datamodule import TextDataModule
from gpt_pretrain.data.private_cache import TAG, TAG_TEXT, mark_as_used, open_cache, open_own
from gpt_pretrain.data.remote import remote_cache
from gpt_pretrain.data.remote.download import download, download_name, find_download
from gpt_pretrain.data.token_cache import tokenize_text
from gpt_pretrain.errors import UserError
from gpt_pretrain.system.environment import COMPILE_CACHE, use_own_compile_cache
from gpt_pretrain.texts.text import Text
from tests.helpers.data_settings import data_settings
from tests.helpers.hostile_server import Stranger, remote_settings
from tests.helpers.made_shards import BYTE, random_documents, write_nanogpt, write_shards

Script = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Return a folder with files that must stay as they are."""
    folder = tmp_path / "home"
    for name in ("photos/wedding.jpg", "thesis.tex", "0" * 32 + "/whole/old.bin"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"precious")
        os.utime(folder / name, (1, 1))
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def remote_corpus(stranger: Stranger, tmp_path: Path) -> str:
    train, val = random_documents(1200, seed=1), random_documents(150, seed=2)
    folder = write_shards(tmp_path / "corpus", train=train, val=val, shard_tokens=5000)
    stranger.files |= {f"/corp/{path.name}": path.read_bytes() for path in folder.iterdir()}
    return f"{stranger.url}/corp"


def rows(cache: Path, url: str, **changes: Any) -> list[list[int]]:
    data = TextDataModule(
        data_settings(cache, name="shards", path=url, remote=remote_settings(**changes)), BYTE, context_length=32, seed=1
    )
    data.prepare_data()
    found = [row for batch in data.train_dataloader() for row in batch[0].tolist()]
    data.stop_workers()
    return found


@pytest.mark.parametrize("name", ["remote", "downloads", "tokens"])
def test_a_cache_folder_that_is_a_link_is_refused(stranger: Stranger, tmp_path: Path, home: Path, name: str) -> None:
    before, cache = contents(home), tmp_path / "cache"
    cache.mkdir()
    (cache / name).symlink_to(home)
    with pytest.raises(UserError, match=rf"cache/{name} is a link to .*home, so it is not used as a cache"):
        if name == "remote":
            rows(cache, remote_corpus(stranger, tmp_path), cache_bytes=1_000_000)
        elif name == "downloads":
            stranger.files["/t/evil.desktop"] = b"[Desktop Entry]"
            download(f"{stranger.url}/t/evil.desktop", sha256=None, cache_dir=cache)
        else:
            (tmp_path / "t.txt").write_text("some text")
            tokenize_text(Text((tmp_path / "t.txt",)), BYTE, train_ratio=0.5, cache_dir=cache)
    assert contents(home) == before


def test_links_within_a_cache_folder_are_not_followed(
    stranger: Stranger, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder carries the program's mark, as one from an archive may."""
    monkeypatch.setattr(remote_cache, "WHOLE_FILES_LIMIT", 0.0)
    before, cache = contents(home), tmp_path / "cache"
    expected = rows(cache, url := remote_corpus(stranger, tmp_path), cache_bytes=1_000_000)
    (key,) = (path for path in (cache / "remote").iterdir() if path.name != TAG)
    key.rename(tmp_path / "moved")
    key.symlink_to(home)
    (cache / "remote" / ("1" * 32)).symlink_to(home)
    (cache / "remote" / ("2" * 32)).mkdir()
    (cache / "remote" / ("2" * 32) / "whole").symlink_to(home)
    (cache / "remote" / "notes.txt").write_text("mine")
    assert rows(cache, url, cache_bytes=1_000_000) == expected
    assert contents(home) == before
    assert (cache / "remote" / "notes.txt").exists(), "not a name of its own form"
    assert not key.is_symlink()


@pytest.mark.parametrize("name", ["remote", "downloads", "tokens"])
def test_a_folder_with_files_of_another_origin_is_not_used_as_a_cache(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    folder.mkdir(mode=0o755)
    (folder / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match=rf"{name} holds files of another origin, such as thesis\.tex"):
        open_cache(tmp_path, name)
    assert folder.stat().st_mode & 0o777 == 0o755
    assert sorted(path.name for path in folder.iterdir()) == ["thesis.tex"]


def test_a_cache_of_an_earlier_version_is_taken_over(tmp_path: Path) -> None:
    old = tmp_path / "tokens" / ("a" * 32)
    old.mkdir(parents=True)
    os.chmod(tmp_path / "tokens", 0o755)
    open_cache(tmp_path, "tokens")
    assert (tmp_path / "tokens").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "tokens" / TAG).read_text() == TAG_TEXT
    assert old.is_dir()


@pytest.mark.skipif(os.name != "posix", reason="users and modes")
def test_a_cache_of_another_user_is_refused(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a folder away")
    (tmp_path / "tokens").mkdir()
    (tmp_path / "tokens" / TAG).write_text(TAG_TEXT)
    os.chown(tmp_path / "tokens", 12345, 12345)
    with pytest.raises(UserError, match=r"tokens belongs to another user"):
        open_cache(tmp_path, "tokens")


def test_only_the_user_can_read_the_cache(stranger: Stranger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = os.umask(0o022)
    try:
        cache, text = tmp_path / "cache", tmp_path / "private.txt"
        text.write_text("some private text")
        text.chmod(0o600)
        tokenize_text(Text((text,)), BYTE, train_ratio=0.5, cache_dir=cache)
        rows(cache, remote_corpus(stranger, tmp_path))
        stranger.files["/t.txt"] = b"some text"
        download(f"{stranger.url}/t.txt", sha256=None, cache_dir=cache)
    finally:
        os.umask(before)
    assert cache.stat().st_mode & 0o777 == 0o700
    for path in cache.rglob("*"):
        if not path.name.endswith(".lock"):
            assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path


@pytest.mark.parametrize("signed", [True, False])
def test_tokens_and_their_checksums_changed_together_are_made_again(
    tmp_path: Path, signed: bool, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "t.txt").write_text("Every effort moves you. " * 40)
    text = Text((tmp_path / "t.txt",))
    first = tokenize_text(text, BYTE, train_ratio=0.9, cache_dir=tmp_path)
    expected = first.train.read().tolist()
    (folder,) = (path for path in (tmp_path / "tokens").iterdir() if path.is_dir())
    fields = json.loads((folder / "split.json").read_text())
    for part in ("train", "val"):
        data = np.full(fields[part]["count"], ord("!"), "<u2").tobytes()
        (folder / f"{part}.bin").write_bytes(data)
        fields[part]["sha256"] = hashlib.sha256(data).hexdigest()
    if not signed:
        del fields["signature"]
    (folder / "split.json").write_text(json.dumps(fields))
    again = tokenize_text(text, BYTE, train_ratio=0.9, cache_dir=tmp_path)
    assert again.train.read().tolist() == expected
    assert "will be rebuilt" in caplog.text


def test_tokens_of_another_text_do_not_pass_with_their_signature(tmp_path: Path) -> None:
    for name, content in (("a.txt", "Every effort moves you. " * 40), ("b.txt", "!" * 960)):
        (tmp_path / name).write_text(content)
        tokenize_text(Text((tmp_path / name,)), BYTE, train_ratio=0.9, cache_dir=tmp_path / name[0])
    (folder,) = (path for path in (tmp_path / "a" / "tokens").iterdir() if path.is_dir())
    (other,) = (path for path in (tmp_path / "b" / "tokens").iterdir() if path.is_dir())
    for file in other.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    again = tokenize_text(Text((tmp_path / "a.txt",)), BYTE, train_ratio=0.9, cache_dir=tmp_path / "a")
    assert bytes(again.train.read(0, 5).tolist()) == b"Every"


def poison(cache: Path) -> int:
    files = [path for path in (cache / "remote").glob("*/*/*") if path.is_file() and not path.name.startswith(".")]
    for path in files:
        size = path.stat().st_size
        path.write_bytes(np.full(size // 2, 33, "<u2").tobytes())
    return len(files)


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("states_checksums", [True, False])
def test_what_another_one_puts_into_a_cache_is_fetched_again(
    stranger: Stranger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: bool, states_checksums: bool
) -> None:
    monkeypatch.setattr(remote_cache, "WHOLE_FILES_LIMIT", 0.8 if whole else 0.0)
    if states_checksums:
        url = remote_corpus(stranger, tmp_path)
    else:
        ids = list(range(32, 127)) * 400
        folder = write_nanogpt(tmp_path / "nano", train=ids, val=ids[:5000])
        stranger.files |= {f"/corp/{path.name}": path.read_bytes() for path in folder.iterdir()}
        index = "".join(f'<a href="{path.name}">x</a>' for path in folder.iterdir()).encode()
        stranger.answers["/corp/"] = lambda answer: answer.reply(200, index, headers={"Content-Type": "text/html"})
        url = f"{stranger.url}/corp"
    expected = rows(tmp_path / "cache", url)
    wait_for_whole_files(tmp_path / "cache", expected=whole)
    assert poison(tmp_path / "cache") > 0
    assert rows(tmp_path / "cache", url) == expected
    assert rows(tmp_path / "cache", url) == expected


def wait_for_whole_files(cache: Path, *, expected: bool) -> None:
    end = time.monotonic() + 20
    while expected and not list((cache / "remote").glob("*/whole/[!.]*")):
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_device_in_the_cache_is_not_waited_for(stranger: Stranger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_cache, "WHOLE_FILES_LIMIT", 0.0)
    url = remote_corpus(stranger, tmp_path)
    expected = rows(tmp_path / "cache", url)
    for path in (tmp_path / "cache" / "remote").glob("*/*/*"):
        path.unlink()
        os.mkfifo(path)
    assert rows(tmp_path / "cache", url) == expected


@pytest.mark.parametrize("planted", ["nothing", "link", "file", "writable by all"])
def test_compiled_code_comes_from_a_folder_of_the_user_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, planted: str
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv(COMPILE_CACHE, str(tmp_path / "torchinductor_me"))  # as PyTorch sets it
    usual = tmp_path / f"gpt-pretrain-compiled-{os.geteuid()}"
    (tmp_path / "theirs").mkdir()
    if planted == "link":
        usual.symlink_to(tmp_path / "theirs")
    elif planted == "file":
        usual.touch()
    elif planted == "writable by all":
        usual.mkdir()
        usual.chmod(0o777)
    use_own_compile_cache()
    used = Path(os.environ[COMPILE_CACHE])
    assert (used == usual) == (planted == "nothing")
    assert not used.is_symlink() and stat.S_IMODE(used.stat().st_mode) == 0o700
    use_own_compile_cache()
    assert Path(os.environ[COMPILE_CACHE]) == used, "what is set stays"


@pytest.mark.parametrize("linked", ["folder", "file"])
def test_a_link_in_a_cache_is_neither_read_nor_marked_as_used(tmp_path: Path, linked: str) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "a").write_bytes(b"precious")
    os.utime(tmp_path / "home" / "a", (1, 1))
    folder = tmp_path / "cache"
    if linked == "folder":
        folder.symlink_to(tmp_path / "home")
    else:
        folder.mkdir()
        (folder / "a").symlink_to(tmp_path / "home" / "a")
    for use in (open_own, mark_as_used):
        with pytest.raises(OSError, match="is a link"):
            use(folder / "a")
    assert (tmp_path / "home" / "a").stat().st_mtime == 1


def test_a_download_that_somebody_else_has_put_into_the_cache_is_not_used(stranger: Stranger, tmp_path: Path) -> None:
    stranger.files |= {"/t.txt": b"the text", "/u.txt": b"another text"}
    url = f"{stranger.url}/t.txt"
    other = download(f"{stranger.url}/u.txt", sha256=None, cache_dir=tmp_path)
    place, signed = tmp_path / "downloads" / download_name(url), other.with_name(f"{other.name}.signature").read_bytes()
    for content, sign in ((b"poison", None), (b"poison", bytes(32)), (other.read_bytes(), signed)):
        place.write_bytes(content)
        if sign is not None:
            place.with_name(f"{place.name}.signature").write_bytes(sign)
        assert find_download(url, cache_dir=tmp_path) is None
        assert download(url, sha256=None, cache_dir=tmp_path).read_bytes() == b"the text"
    asked = len(stranger.asked)
    assert download(url, sha256=None, cache_dir=tmp_path).read_bytes() == b"the text"
    assert len(stranger.asked) == asked, "its own download is used"


@pytest.mark.skipif(os.name != "posix", reason="users and modes")
def test_a_download_in_a_folder_of_another_user_is_not_used(stranger: Stranger, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a folder away")
    stranger.files["/t.txt"] = b"the text"
    url = f"{stranger.url}/t.txt"
    (tmp_path / "downloads").mkdir()
    (tmp_path / "downloads" / download_name(url)).write_bytes(b"poison")
    os.chown(tmp_path / "downloads", 12345, 12345)
    with pytest.raises(UserError, match=r"downloads belongs to another user"):
        download(url, sha256=None, cache_dir=tmp_path)
