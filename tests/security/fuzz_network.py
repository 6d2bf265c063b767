"""Readers for the fuzzer: of requests to the server, and of the hub's answers."""

from __future__ import annotations

import asyncio
import functools
import json
from pathlib import Path
from typing import Any
from unittest import mock

import httpx2
import torch
from huggingface_hub import constants
from huggingface_hub.utils import set_client_factory

from gpt_pretrain.errors import UserError
from gpt_pretrain.system import hub, hub_transfer
from gpt_pretrain.tokenizers.byte import ByteTokenizer
from tests.conftest import tiny_model
from tests.helpers.hub_server import COMMIT
from tests.security.fuzzed_reader import BLIND, JSON, FuzzedReader

Message = dict[str, Any]


REQUESTS: dict[str, tuple[str, Any]] = {
    "completions.json": (
        "/v1/completions",
        {
            "model": "m",
            "prompt": "Every",
            "max_tokens": 4,
            "temperature": 0.5,
            "n": 2,
            "logprobs": 2,
            "echo": True,
            "stop": ["x"],
        },
    ),
    "stream.json": ("/v1/completions", {"model": "m", "prompt": [[1, 2], [3]], "max_tokens": 3, "stream": True, "seed": 5}),
    "tokens.json": ("/api/tokens", {"model": "m", "text": "Every effort"}),
    "continue.json": ("/api/continue", {"model": "m", "prompt": [69, 118], "max_tokens": 3, "alternatives": 3, "top_p": 0.9}),
}

HEADERS = {"method": "POST", "path": "/v1/completions", "host": "127.0.0.1", "origin": "http://127.0.0.1", "content-length": "50"}


def _make_requests(folder: Path) -> None:
    for name, (_, body) in REQUESTS.items():
        (folder / name).write_text(json.dumps(body))
    (folder / "headers.json").write_text(json.dumps(HEADERS | {"content-type": "application/json", "authorization": "Bearer k"}))


@functools.cache
def _served_app() -> Any:
    """Return the application with an engine in a thread, once for each process of the fuzzer."""
    from gpt_pretrain.generation.decoding import DecodingModel
    from gpt_pretrain.generation.prompts import TextModel
    from gpt_pretrain.serving.engine import Engine
    from gpt_pretrain.serving.page import ModelFacts
    from gpt_pretrain.serving.requests import ServingLimits
    from gpt_pretrain.serving.server import Address, guarded_app

    torch.set_num_threads(1)
    model = tiny_model(vocab_size=257, context_length=32, emb_dim=16, n_heads=2, n_layers=1)
    engine = Engine({"m": TextModel(DecodingModel(model, dtype=torch.float32), ByteTokenizer())}, ServingLimits(rows=4, queue=8))
    engine.start()
    return guarded_app(engine, Address(), {"m": ModelFacts()})


def _send_request(path: Path) -> None:
    """Send a request to the application, and raise if its answer says that it has failed."""
    where, body = REQUESTS.get(path.name, ("", {}))[0], path.read_bytes()
    if path.name == "headers.json":
        try:
            headers = {str(name): str(value) for name, value in json.loads(body).items()}
        except (ValueError, AttributeError, RecursionError) as error:
            raise UserError("no headers") from error
        body = json.dumps(REQUESTS["completions.json"][1]).encode()
    else:
        headers = HEADERS | {"path": where, "content-type": "application/json", "content-length": str(len(body))}
    pairs = [(name.encode("utf-8", "replace").lower(), value.encode("utf-8", "replace")) for name, value in headers.items()]
    scope: Message = {
        "type": "http",
        "method": headers.get("method", "GET").encode("ascii", "replace").decode(),
        "path": headers.get("path", "/"),
        "raw_path": b"/",
        "query_string": headers.get("path", "").partition("?")[2].encode("utf-8", "replace"),
        "headers": pairs,
        "http_version": "1.1",
        "scheme": "http",
        "server": ("127.0.0.1", 8000),
        "client": ("127.0.0.1", 9000),
        "root_path": "",
    }
    statuses: list[int] = []

    async def answer() -> None:
        incoming: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> Message:
            if incoming:
                return incoming.pop()
            await asyncio.sleep(20)
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            statuses.append(message.get("status", 0))
            assert b'"server_error"' not in message.get("body", b""), message["body"][:300]

        await _served_app()(scope, receive, send)

    asyncio.run(answer())
    assert statuses[0] < 500
    if statuses[0] >= 400:
        raise UserError(f"{statuses[0]}")


def _make_hub(folder: Path) -> None:
    answer = {"status": 200, "x-repo-commit": COMMIT, "etag": f'"{"a" * 40}"', "x-linked-size": "14", "content-length": "14"}
    (folder / "answer.json").write_text(json.dumps(answer))
    (folder / "body").write_bytes(b'{"n_embd": 16}')


def _read_hub(folder: Path) -> None:
    """Fetch a file of a model from a hub that answers with these headers and this body."""
    try:
        answer = {str(name): value for name, value in json.loads((folder / "answer.json").read_bytes()).items()}
    except (ValueError, AttributeError, RecursionError) as error:
        raise UserError("no answer") from error
    status, body = answer.pop("status", 200), (folder / "body").read_bytes()
    status = status if isinstance(status, int) and 200 <= status < 600 else 404
    headers = [(name.encode("utf-8", "replace"), str(value).encode("utf-8", "replace")) for name, value in answer.items()]

    def respond(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(status, headers=headers, content=b"" if request.method == "HEAD" else body, request=request)

    set_client_factory(lambda: httpx2.Client(transport=httpx2.MockTransport(respond)))
    with (
        mock.patch.object(constants, "HF_HUB_CACHE", str(folder / "cache")),
        mock.patch.object(hub_transfer, "PAUSE_SECONDS", 0.0),
    ):
        made = hub.fetch("someone/model", "config.json").read_bytes()
    assert (folder / "cache").resolve() in (folder / "cache").glob("**/config.json").__next__().resolve().parents
    assert len(made) <= len(body)


NETWORK_READERS = {
    "requests": FuzzedReader(
        _make_requests,
        dict.fromkeys((*REQUESTS, "headers.json"), (JSON, JSON, BLIND)),
        _send_request,
        parts=(*REQUESTS, "headers.json"),
    ),
    "hub": FuzzedReader(_make_hub, {"answer.json": (JSON,), "body": (BLIND,)}, _read_hub),
}
