"""Read files from a hub that means harm."""

from __future__ import annotations

import gzip
import hashlib
import json
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Event

import pytest

from gpt_pretrain.errors import UserError
from gpt_pretrain.system import hub as hub_module
from gpt_pretrain.system import hub_transfer
from gpt_pretrain.system.hub import fetch
from gpt_pretrain.texts.chunks import ReadPosition
from gpt_pretrain.texts.inputs import StreamedDataset
from gpt_pretrain.texts.records.tables import read_dataset
from tests.helpers.hostile_server import Answer, Stranger, taken
from tests.helpers.resource_limits import within

Script = Callable[..., "subprocess.CompletedProcess[str]"]


CONFIG = json.dumps({"model_type": "gpt2", "n_embd": 4, "n_layer": 1, "n_head": 1, "n_positions": 4, "vocab_size": 4}).encode()
GOOD = {"ETag": f'"{hashlib.sha1(CONFIG).hexdigest()}"', "X-Repo-Commit": "c" * 40}


@pytest.fixture
def hostile_hub(stranger: Stranger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stranger:
    for name, value in (("ENDPOINT", stranger.url), ("HF_HUB_OFFLINE", False), ("HF_HUB_CACHE", str(tmp_path / "hub"))):
        monkeypatch.setattr(hub_module.constants, name, value)
    monkeypatch.setattr(
        hub_module.constants, "HUGGINGFACE_CO_URL_TEMPLATE", stranger.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(hub_module, "hf_hub_url", lambda repo_id, file: f"{stranger.url}/{repo_id}/resolve/main/{file}")
    monkeypatch.setattr(hub_transfer, "PAUSE_SECONDS", 0.01)
    return stranger


def say(
    headers: dict[str, str], *, data: bytes = CONFIG, endless: bool = False, length: int | None = None
) -> Callable[[Answer], None]:
    def answer(request: Answer) -> None:
        if endless and request.command == "GET":
            request.reply_without_end(headers=headers)
        else:
            request.reply(200, data, headers=headers, length=length)

    return answer


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ETag": '"../../../../PWNED"'}, "neither 40 nor 64 hexadecimal digits"),
        ({"X-Linked-Etag": '"../../../../PWNED"'}, "neither 40 nor 64 hexadecimal digits"),
        ({"ETag": f'"{"a" * 40}\\n"'}, "neither 40 nor 64 hexadecimal digits"),
        ({"ETag": '"/PWNED"'}, "neither 40 nor 64 hexadecimal digits"),
        ({"X-Repo-Commit": "../../../PWNED"}, "the commit .* is not 40 hexadecimal digits"),
        ({"X-Linked-Size": "-5"}, "no size"),
        ({"X-Linked-Size": "30000000"}, "no SHA-256, without which a file has at most"),
        ({"X-Linked-Size": str(10**15), "X-Linked-Etag": "a" * 64}, "has room for"),
    ],
)
def test_what_a_hub_states_is_checked(hostile_hub: Stranger, tmp_path: Path, changes: dict[str, str], message: str) -> None:
    hostile_hub.answers["/some/model/resolve/main/config.json"] = say(GOOD | changes)
    with pytest.raises(UserError, match=rf"^some/model: config\.json.*{message}"):
        fetch("some/model", "config.json")
    assert list(tmp_path.rglob("*PWNED*")) == []


def test_a_hub_that_changes_its_answer_is_not_asked_twice(hostile_hub: Stranger, tmp_path: Path) -> None:
    answers = iter([GOOD, GOOD, *[GOOD | {"ETag": '"../../../../PWNED"'}] * 9])
    hostile_hub.answers["/some/model/resolve/main/config.json"] = lambda request: say(next(answers))(request)
    assert fetch("some/model", "config.json").read_bytes() == CONFIG
    assert len(hostile_hub.asked) == 2, "a HEAD and a GET"
    assert list(tmp_path.rglob("*PWNED*")) == []


def test_a_hub_is_asked_for_content_that_is_not_compressed(hostile_hub: Stranger) -> None:
    """A compressed answer could be a thousand times as long as what it states."""
    wanted = []

    def answer(request: Answer) -> None:
        wanted.append((request.command, request.headers["Accept-Encoding"]))
        request.reply(200, CONFIG, headers=GOOD)

    hostile_hub.answers["/some/model/resolve/main/config.json"] = answer
    fetch("some/model", "config.json")
    assert wanted == [("HEAD", "identity"), ("GET", "identity")]


@pytest.mark.parametrize("linked", [{}, {"X-Linked-Size": "1000", "X-Linked-Etag": '"' + "a" * 64 + '"'}])
def test_a_file_without_end_is_cut_off_at_its_stated_size(hostile_hub: Stranger, tmp_path: Path, linked: dict[str, str]) -> None:
    hostile_hub.answers["/some/model/resolve/main/model.safetensors"] = say(GOOD | linked, endless=True, length=1000)
    with pytest.raises(UserError, match=r"the server sends more than the 1,000 bytes that it states"):
        fetch("some/model", "model.safetensors")
    assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) == 0


@pytest.mark.parametrize("status", [404, 500])
def test_an_error_without_end_is_cut_off(hostile_hub: Stranger, status: int) -> None:
    sent = 0

    def answer(request: Answer) -> None:
        nonlocal sent
        if request.command == "HEAD":
            request.reply(200, CONFIG, headers=GOOD)
            return
        request.reply(status, length=10**12)
        with suppress(OSError):
            while sent < 100:
                request.wfile.write(bytes(1 << 20))
                sent += 1

    hostile_hub.answers["/some/model/resolve/main/config.json"] = answer
    with pytest.raises(UserError, match=r"^some/model"):
        fetch("some/model", "config.json")
    assert sent < 50


def test_the_body_of_a_redirect_is_not_read(hostile_hub: Stranger) -> None:
    sent: list[int] = []

    def redirect(request: Answer) -> None:
        if request.command == "HEAD":
            request.reply(200, CONFIG, headers=GOOD)
        else:
            sent.append(request.redirect_without_end("/blob"))

    hostile_hub.answers["/some/model/resolve/main/config.json"] = redirect
    hostile_hub.files["/blob"] = CONFIG
    assert fetch("some/model", "config.json").read_bytes() == CONFIG
    assert taken(sent, answers=1) < 50


def test_a_hub_that_redirects_without_end_is_given_up(hostile_hub: Stranger) -> None:
    path = "/some/model/resolve/main/config.json"
    hostile_hub.answers[path] = lambda request: (
        request.reply(200, CONFIG, headers=GOOD) if request.command == "HEAD" else request.reply(302, headers={"Location": path})
    )
    with pytest.raises(UserError, match="leads to more than 20 redirects"):
        fetch("some/model", "config.json")


def test_a_file_that_does_not_arrive_is_given_up(hostile_hub: Stranger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_transfer, "READ_TIMEOUT_SECONDS", 0.1)
    is_over = Event()

    def answer(request: Answer) -> None:
        if request.command == "HEAD":
            request.reply(200, CONFIG, headers=GOOD)
        else:
            is_over.wait(60)

    hostile_hub.answers["/some/model/resolve/main/config.json"] = answer
    with pytest.raises(UserError, match=r"could not be downloaded \(ReadTimeout"):
        fetch("some/model", "config.json")
    is_over.set()


def test_a_compressed_file_is_not_expanded(hostile_hub: Stranger) -> None:
    data = gzip.compress(bytes(200_000_000), compresslevel=1)
    headers = GOOD | {"Content-Encoding": "gzip"}

    def answer(request: Answer) -> None:
        request.reply(200, CONFIG if request.command == "HEAD" else data, headers=GOOD if request.command == "HEAD" else headers)

    hostile_hub.answers["/some/model/resolve/main/config.json"] = answer
    with within(seconds=20, megabytes=100), pytest.raises(UserError, match="sends more than the"):
        fetch("some/model", "config.json")


def test_a_file_of_which_nothing_arrives_is_given_up(hostile_hub: Stranger) -> None:
    linked = {"X-Linked-Size": "1000", "X-Linked-Etag": '"' + "a" * 64 + '"'}
    hostile_hub.answers["/some/model/resolve/main/model.safetensors"] = say(GOOD | linked, data=b"")
    with pytest.raises(UserError, match=r"the server sends less than the 1,000 bytes that it states"):
        fetch("some/model", "model.safetensors")


PROGRAMS = "/api/agent-harnesses"


@pytest.fixture
def fresh_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Give huggingface_hub the state that it has at the start of a process, with an empty cache."""
    detection = pytest.importorskip("huggingface_hub.utils._detect_agent")
    monkeypatch.setattr(detection, "_registry", None)
    monkeypatch.setattr(hub_module.constants, "AGENT_HARNESSES_PATH", str(tmp_path / "programs.json"))
    monkeypatch.setattr(hub_module.constants, "HF_HUB_DISABLE_TELEMETRY", False)


@pytest.mark.usefixtures("fresh_library")
def test_a_hub_is_asked_for_nothing_but_the_file(hostile_hub: Stranger, tmp_path: Path) -> None:
    """The library would read an answer of any length for any time, and tell the hub which environment variables are set."""
    hostile_hub.files[PROGRAMS] = json.dumps({"standardEnvVars": ["HOME"], "harnesses": {}}).encode()
    agents = []

    def answer(request: Answer) -> None:
        agents.append(request.headers["User-Agent"])
        request.reply(200, CONFIG, headers=GOOD)

    hostile_hub.answers["/some/model/resolve/main/config.json"] = answer
    fetch("some/model", "config.json")
    assert len(agents) == 2
    assert not any("agent/" in agent for agent in agents)
    assert not any(PROGRAMS in path for path in hostile_hub.asked)
    assert not (tmp_path / "programs.json").exists()


# Datasets


@pytest.fixture
def dataset_hub(stranger: Stranger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stranger:
    config = pytest.importorskip("datasets").config
    for name, value in (("HF_ENDPOINT", stranger.url), ("HF_HUB_OFFLINE", False)):
        monkeypatch.setattr(config, name, value)
    for name, value in (("ENDPOINT", stranger.url), ("HF_HUB_OFFLINE", False), ("HF_HUB_CACHE", str(tmp_path / "a" / "hub"))):
        monkeypatch.setattr(hub_module.constants, name, value)
    template = stranger.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(hub_module.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    return stranger


README = "/datasets/some/texts/resolve/main/README.md"


@pytest.mark.parametrize(
    ("changes", "status", "message"),
    [
        ({"ETag": '"../../../../../PWNED"'}, 200, "neither 40 nor 64 hexadecimal digits"),
        ({"X-Linked-Etag": '"../../../../../PWNED"'}, 200, "neither 40 nor 64 hexadecimal digits"),
        ({"X-Repo-Commit": "../../../../PWNED"}, 200, "the commit .* is not 40 hexadecimal digits"),
        (
            {"X-Repo-Commit": "../../../../PWNED", "X-Error-Code": "EntryNotFound"},
            404,
            "the commit .* is not 40 hexadecimal digits",
        ),
        ({"X-Error-Code": "EntryNotFound"}, 404, "the commit .* is not 40 hexadecimal digits"),
    ],
)
def test_what_a_hub_states_of_a_dataset_is_checked(
    dataset_hub: Stranger, tmp_path: Path, changes: dict[str, str], status: int, message: str
) -> None:
    dataset_hub.answers[README] = lambda request: request.reply(status, CONFIG if status == 200 else b"", headers=GOOD | changes)
    info = {"id": "some/texts", "sha": "../../../../PWNED", "private": False, "tags": [], "downloads": 0, "likes": 0}
    dataset_hub.files["/api/datasets/some/texts"] = json.dumps(info).encode()
    with pytest.raises(UserError, match=rf"^dataset=some/texts: .*{message}"):
        list(read_dataset(StreamedDataset("some/texts", None, "train"), "text", start=ReadPosition()))
    assert list(tmp_path.rglob("*PWNED*")) == []


@pytest.mark.usefixtures("fresh_library")
def test_the_hub_of_a_dataset_is_asked_for_nothing_but_the_dataset(dataset_hub: Stranger) -> None:
    with pytest.raises(UserError, match=r"^dataset=some/texts"):
        list(read_dataset(StreamedDataset("some/texts", None, "train"), "text", start=ReadPosition()))
    assert dataset_hub.asked
    assert not any(PROGRAMS in path for path in dataset_hub.asked)


@pytest.mark.parametrize("slow", ["HEAD", "GET"])
def test_headers_of_a_hub_that_trickle_are_not_waited_for(
    hostile_hub: Stranger, monkeypatch: pytest.MonkeyPatch, slow: str
) -> None:
    def answer(request: Answer) -> None:
        if request.command != slow:
            request.reply(200, CONFIG, headers=GOOD)
            return
        with suppress(OSError):
            request.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
            for _ in range(200):
                time.sleep(0.05)
                request.wfile.write(b"x")

    hostile_hub.answers = {"/m/n/resolve/main/config.json": answer}
    monkeypatch.setattr(hub_module, "ANSWER_SECONDS", 0.3)
    monkeypatch.setattr(hub_transfer, "ANSWER_SECONDS", 0.3)
    started = time.monotonic()
    with pytest.raises(UserError, match=r"cannot be reached|no answer within"):
        fetch("m/n", "config.json")
    assert time.monotonic() - started < 5
