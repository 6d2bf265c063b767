"""Tasks are read from the hub by their names; a server on this machine stands for the hub."""

import hashlib
import io
import json
import os
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from gpt_pretrain.config.inference_rules import TASK_NAMES
from gpt_pretrain.errors import UserError
from gpt_pretrain.evaluation.tasks.hub_tasks import HUB_TASKS, read_hub_task
from gpt_pretrain.evaluation.tasks.published_tasks import read_item
from gpt_pretrain.system import hub as hub_module
from tests.evaluation.test_tasks import make_items
from tests.helpers.hostile_server import Answer, Stranger

datasets = pytest.importorskip("datasets")
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stranger]:
    server = Stranger()
    Thread(target=server.serve_forever, daemon=True).start()
    for name, value in (("HF_ENDPOINT", server.url), ("HF_HUB_OFFLINE", False), ("HF_DATASETS_CACHE", tmp_path / "cache")):
        monkeypatch.setattr(datasets.config, name, value)
    for name, value in (("ENDPOINT", server.url), ("HF_HUB_OFFLINE", False), ("HF_HUB_CACHE", str(tmp_path / "hub"))):
        monkeypatch.setattr(hub_module.constants, name, value)
    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(hub_module.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    yield server
    server.shutdown()
    server.server_close()


def answer_with_file(request: Answer, *, data: bytes) -> None:
    headers = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": COMMIT}
    if (found := re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range", ""))) is None:
        request.reply(200, data, headers=headers)
        return
    first, last = int(found[1]), min(int(found[2] or len(data)), len(data) - 1)
    request.reply(206, data[first : last + 1], headers=headers | {"Content-Range": f"bytes {first}-{last}/{len(data)}"})


def publish(hub: Stranger, name: str, splits: dict[str, list[dict[str, Any]]]) -> None:
    """Put a dataset on the server, as Parquet files, in the layout of its publisher."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    source = HUB_TASKS[name]
    files = {}
    for split, items in splits.items():
        stream = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(items), stream)
        files[f"data/{split}-00000-of-00001.parquet"] = stream.getvalue()
    listed = [{"split": split, "path": f"data/{split}-*"} for split in splits]
    config = json.dumps([{"config_name": source.config or "default", "data_files": listed}])
    files["README.md"] = f"---\nconfigs: {config}\n---\n".encode()
    base, api = f"/datasets/{source.repository}", f"/api/datasets/{source.repository}"
    tree = [{"type": "file", "path": path, "size": len(data), "oid": COMMIT} for path, data in files.items()]
    siblings = [{"rfilename": path} for path in files]
    info = {
        "id": source.repository,
        "sha": COMMIT,
        "private": False,
        "tags": [],
        "downloads": 0,
        "likes": 0,
        "siblings": siblings,
    }
    for address in (api, f"{api}/revision/{COMMIT}", f"{api}/revision/main"):
        hub.files[address] = json.dumps(info).encode()
    folder = [{"type": "directory", "path": "data", "oid": COMMIT}]
    hub.files[f"{api}/tree/{COMMIT}/data"] = json.dumps([one for one in tree if one["path"].startswith("data")]).encode()
    hub.files[f"{api}/tree/{COMMIT}"] = json.dumps([*folder, tree[-1]]).encode()
    for path, data in files.items():
        for revision in (COMMIT, "main"):
            hub.answers[f"{base}/resolve/{revision}/{path}"] = partial(answer_with_file, data=data)


def test_the_names_are_those_of_the_settings() -> None:
    assert tuple(HUB_TASKS) == TASK_NAMES


@pytest.mark.parametrize("name", TASK_NAMES)
def test_items_of_the_hub_are_those_of_their_files(hub: Stranger, name: str) -> None:
    scored, others = make_items(name.partition("_")[0], count=8), make_items(name.partition("_")[0], count=20)[8:]
    source = HUB_TASKS[name]
    publish(hub, name, {source.examples: others} | {source.split: scored})
    task = read_hub_task(name, limit=5)
    assert task.name == name
    assert list(task.items) == [read_item(item, line=1) for item in scored[:5]]
    pool = scored if source.examples == source.split else others
    with_examples = read_hub_task(name, limit=5, n_shots=3)
    assert with_examples.items == task.items
    assert {one for examples in with_examples.examples for one in examples} <= {read_item(item, line=1) for item in pool}


def test_a_dataset_of_another_layout_is_explained(hub: Stranger) -> None:
    publish(hub, "piqa", {"validation": [{"goal": "a", "sol1": "b", "sol2": "c", "label": 0}] * 3 + [{"goal": "a"}]})
    with pytest.raises(UserError, match=r'^tasks\.names=piqa: baber/piqa, validation, item 4: "label" is missing'):
        read_hub_task("piqa")


def test_a_hub_that_cannot_be_reached_is_explained(hub: Stranger) -> None:
    message = r"^tasks\.names=copa: aps/super_glue cannot be read from the hub: .* give the file as tasks\.path\."
    with pytest.raises(UserError, match=message):
        read_hub_task("copa")


def test_a_folder_here_does_not_take_the_place_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "baber/piqa").mkdir(parents=True)
    (tmp_path / "baber/piqa/validation.jsonl").write_text('{"goal": "a", "sol1": "b", "sol2": "c", "label": 0}', encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"^tasks\.names=piqa: the current folder contains a folder baber/piqa"):
        read_hub_task("piqa")


def test_images_of_a_task_are_not_opened(hub: Stranger, tmp_path: Path) -> None:
    named = tmp_path / "private.png"
    os.mkfifo(named)  # opening it would not return
    item = {"goal": {"bytes": None, "path": str(named)}, "sol1": "b", "sol2": "c", "label": 0}
    publish(hub, "piqa", {"validation": [item]})
    address = f"/datasets/{HUB_TASKS['piqa'].repository}/resolve/{COMMIT}/README.md"
    features = [("goal", "image"), ("sol1", "string"), ("sol2", "string"), ("label", "int64")]
    info = json.dumps({"features": [{"name": name, "dtype": dtype} for name, dtype in features]})
    readme = hub.answers[address].keywords["data"].replace(b"---\nconfigs", f"---\ndataset_info: {info}\nconfigs".encode())  # type: ignore[attr-defined]
    for revision in (COMMIT, "main"):
        hub.answers[address.replace(COMMIT, revision)] = partial(answer_with_file, data=readme)
    with pytest.raises(UserError, match=r'item 1: "goal" is .*, but must be a text'):
        read_hub_task("piqa")
