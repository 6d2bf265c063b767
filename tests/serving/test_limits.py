"""Bodies, connections and clients that would hold up others: each has a limit, and others are served all the same."""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
from contextlib import ExitStack, suppress
from typing import Any

import openai
import pytest
import requests
from starlette.exceptions import HTTPException

from gpt_pretrain.errors import UserError
from gpt_pretrain.serving import guards, server, streams
from gpt_pretrain.serving.json_route import MAX_PARTS, parse_body
from gpt_pretrain.serving.requests import ServingLimits
from gpt_pretrain.serving.server import Address, open_socket
from tests.helpers.waiting import wait_until
from tests.serving.conftest import Served
from tests.serving.test_api import PROMPT, expected, raw_request, send_raw

LONG = {"model": "m", "prompt": "a", "max_tokens": 60, "temperature": 1.5, "logprobs": 20, "n": 8, "stream": True}


@pytest.mark.parametrize("part", [b"[]", b"{}", b'{"a": [1]}', b"[[[]]]"])
def test_a_body_of_very_many_parts_is_not_parsed(part: bytes) -> None:
    content = b'{"prompt": [' + b", ".join([part] * (MAX_PARTS + 1)) + b"]}"
    for encoded in (content, content.decode().encode("utf-16")):
        with pytest.raises(HTTPException, match="it has more than 20,000 lists, objects and names"):
            parse_body(encoded)


def test_a_body_of_very_many_names_is_not_parsed() -> None:
    with pytest.raises(HTTPException, match="it has more than 20,000 lists, objects and names"):
        parse_body(json.dumps({str(number): 0 for number in range(MAX_PARTS)}).encode())


def test_brackets_in_a_text_are_no_lists() -> None:
    prompt = '[{:"\\' * MAX_PARTS
    assert parse_body(json.dumps({"prompt": prompt}).encode()) == {"prompt": prompt}


def test_prompts_of_token_ids_fit_into_a_body() -> None:
    body = {"prompt": [[1, 2, 3]] * 10_000}
    assert parse_body(json.dumps(body).encode()) == body


def test_connections_that_wait_for_their_clients_make_room_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "MAX_CONNECTIONS", 10)
    served = Served(ServingLimits(), Address(port=0))
    gate, advance = threading.Event(), served.engine._advance

    def held(rows: Any) -> None:
        gate.wait(60)
        advance(rows)

    monkeypatch.setattr(served.engine, "_advance", held)
    body = {"model": "m", "prompt": PROMPT, "max_tokens": 12, "temperature": 0, "stream": True}
    try:
        with ExitStack() as stack:
            streaming = stack.enter_context(send_raw(served, raw_request(body)))
            received = streaming.recv(65536)
            waiting = [stack.enter_context(send_raw(served, part)) for part in (b"", b"POST /v1/", raw_request(body)[:-3]) * 8]
            assert requests.get(f"{served.url}/health", timeout=60).status_code == 200
            with suppress(ConnectionResetError):
                assert waiting[0].recv(10) == b"", "the oldest one is closed"
            gate.set()
            while b"[DONE]" not in received:
                more = streaming.recv(65536)
                assert more, "a client that is being answered stays"
                received += more
    finally:
        gate.set()
        served.close()


def test_a_quiet_stream_has_comments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "QUIET_SECONDS", 0.05)
    served = Served(ServingLimits(), Address(port=0))
    try:
        advance = served.engine._advance

        def slowly(rows: Any) -> None:
            time.sleep(0.3)
            advance(rows)

        monkeypatch.setattr(served.engine, "_advance", slowly)
        body = {"model": "m", "prompt": PROMPT, "max_tokens": 3, "temperature": 0, "stream": True}
        content = requests.post(f"{served.url}/v1/completions", json=body, timeout=60).text
        assert streams.COMMENT.decode() in content
        client = openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)
        chunks = client.completions.create(model="m", prompt=PROMPT, max_tokens=3, temperature=0, stream=True)
        assert "".join(chunk.choices[0].text for chunk in chunks) == expected(served, max_tokens=3)
    finally:
        served.close()


def test_a_server_ends_although_a_client_does_not_read(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(server, "CLOSING_SECONDS", 0.2)
    served = Served(ServingLimits(rows=8), Address(port=0), send_buffer=4096)
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", served.port))
        connection.sendall(raw_request(LONG))
        wait_until(lambda: served.engine.counts["steps"] > 20)
        with caplog.at_level(logging.DEBUG):
            served.close()
    assert not served.thread.is_alive()
    assert not any(record.exc_info for record in caplog.records), "it ends without a traceback"


def test_a_port_is_taken_from_the_beginning() -> None:
    with open_socket(Address(port=0)) as first:
        port = first.getsockname()[1]
        with pytest.raises(UserError, match=f"host=127.0.0.1 port={port}: the server cannot listen there"):
            open_socket(Address(port=port))


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/embeddings", "/nothing"])
def test_a_path_that_does_not_exist_is_explained(served: Served, path: str) -> None:
    answer = requests.post(served.url + path, json={"model": "m"}, timeout=60)
    assert answer.status_code == 404
    assert answer.json()["error"]["message"].startswith("There is no such path. Texts are continued at /v1/completions;")


@pytest.mark.parametrize(("host", "status"), [("gpu.example", 200), ("gpu.example:443", 200), ("other.example", 403)])
def test_a_proxy_may_pass_on_the_name_in_the_browser(host: str, status: int) -> None:
    served = Served(ServingLimits(), Address(port=0, cors=("https://gpu.example",)))
    try:
        headers = {"Host": host, "Origin": "https://gpu.example"}
        assert requests.get(f"{served.url}/v1/models", headers=headers, timeout=60).status_code == status
    finally:
        served.close()


def test_pages_of_allowed_origins_may_send_any_header_and_read_refusals() -> None:
    served = Served(ServingLimits(), Address(port=0, api_key="secret-key", cors=("https://a.example",)))
    url = f"{served.url}/v1/completions"
    try:
        asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,x-stainless-os"}
        for origin, status in (("https://a.example", 200), ("https://b.example", 400)):
            answer = requests.options(url, headers=asked | {"Origin": origin}, timeout=60)
            assert answer.status_code == status
        refused = requests.post(url, json={}, headers={"Origin": "https://a.example"}, timeout=60)
        assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, "https://a.example")
        assert requests.post(url, json={}, headers={"Origin": "https://b.example"}, timeout=60).status_code == 403
    finally:
        served.close()


def test_bodies_are_limited_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guards, "MAX_HELD_BYTES", 10_000)
    served = Served(ServingLimits(), Address(port=0))
    request = {"model": "m", "prompt": "a" * 6000}
    waiting, address = raw_request(request), f"{served.url}/v1/completions"
    try:
        with socket.create_connection(("127.0.0.1", served.port), timeout=60) as first:
            first.sendall(waiting[:-1])
            wait_until(lambda: requests.post(address, json=request, timeout=60).status_code == 429)
            assert "too large together" in requests.post(address, json=request, timeout=60).json()["error"]["message"]
            assert requests.get(f"{served.url}/v1/models", timeout=60).ok
            first.sendall(waiting[-1:])
            assert first.recv(1000).startswith(b"HTTP/1.1 400 ")  # it is longer than the context
        wait_until(lambda: requests.post(address, json=request, timeout=60).status_code == 400)
    finally:
        served.close()
