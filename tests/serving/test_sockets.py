"""Clients that are slow, that send half a request, that do not read, or that go away: the others are served, and nothing is held."""

from __future__ import annotations

import json
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
import requests

from gpt_pretrain.serving import app, guards, server
from gpt_pretrain.serving.completions import encode_text
from gpt_pretrain.serving.requests import ServingLimits
from gpt_pretrain.serving.server import Address
from tests.helpers.waiting import wait_until
from tests.serving.conftest import Served
from tests.serving.test_api import PROMPT, expected, raw_request, send_raw

BIG = {"model": "m", "prompt": "a", "max_tokens": 60, "temperature": 1.5, "logprobs": 20, "n": 8, "seed": 1}
HEALTH = b"GET /health HTTP/1.1\r\nHost: localhost\r\n"


@pytest.fixture(scope="module")
def impatient() -> Iterator[Served]:
    """Serve with limits of time that a test can wait for."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server, "HEADER_SECONDS", 0.4)
        patch.setattr(server, "READING_SECONDS", 0.4)
        patch.setattr(guards, "BODY_SECONDS", 0.4)
        served = Served(ServingLimits(rows=8), Address(port=0), send_buffer=4096)
        yield served
        served.close()


def rest_of(connection: socket.socket) -> bytes:
    """Return what comes until the server ends the connection."""
    received = b""
    with suppress(ConnectionResetError):
        while more := connection.recv(65536):
            received += more
    return received


def drip(connection: socket.socket, content: bytes) -> bytes:
    """Send a byte at a time until the server ends the connection, and return what it sent."""
    connection.settimeout(0.02)
    received = b""
    for number in range(len(content)):
        try:
            connection.sendall(content[number : number + 1])
            if not (more := connection.recv(65536)):
                return received
            received += more
        except TimeoutError:
            continue
        except (BrokenPipeError, ConnectionResetError):
            return received
    raise AssertionError("the server waits for all of it")


def test_half_of_the_headers_is_not_waited_for(impatient: Served) -> None:
    with send_raw(impatient, HEALTH) as connection:
        assert rest_of(connection) == b""


def test_a_client_that_sends_nothing_is_not_waited_for(impatient: Served) -> None:
    with send_raw(impatient, b"") as connection:
        assert rest_of(connection) == b""


def test_an_answer_may_take_longer_than_the_headers(impatient: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    def slowly(*args: Any, **kwargs: Any) -> Any:
        time.sleep(3 * server.HEADER_SECONDS)
        return encode_text(*args, **kwargs)

    monkeypatch.setattr(app, "encode_text", slowly)
    answer = requests.post(f"{impatient.url}/api/tokens", json={"model": "m", "text": "ab"}, timeout=60)
    assert [token["id"] for token in answer.json()["tokens"]] == [97, 98]


def test_half_of_a_second_request_is_not_waited_for_either(impatient: Served) -> None:
    with send_raw(impatient, HEALTH + b"\r\n") as connection:
        received = b""
        while not received.endswith(b'{"status":"ok"}'):
            received += connection.recv(4096)
        connection.sendall(HEALTH)
        assert rest_of(connection) == b""


def test_headers_and_bodies_that_drip_have_the_same_time(impatient: Served) -> None:
    with send_raw(impatient, HEALTH + b"X-Long: ") as connection:
        assert drip(connection, b"a" * 1000) == b""
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n"
    with send_raw(impatient, head) as connection:
        assert b" 408 " in drip(connection, b" " * 1000)


def test_a_body_of_unknown_length_has_the_same_limit(served: Served) -> None:
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    with send_raw(served, head) as connection:
        with suppress(BrokenPipeError, ConnectionResetError):
            for _ in range(50):
                connection.sendall(b"186a0\r\n" + b" " * 100_000 + b"\r\n")
        assert connection.recv(1000).startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_does_not_read_holds_neither_rows_nor_its_connection(impatient: Served, stream: bool) -> None:
    before = impatient.engine.counts["steps"]
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", impatient.port))
        connection.sendall(raw_request(BIG | {"stream": stream}))
        wait_until(lambda: impatient.engine.counts["steps"] > before and impatient.engine.load == (0, 0))
        wait_until(lambda: not impatient.server.server_state.connections)
        connection.settimeout(60)
        assert b"[DONE]" not in rest_of(connection)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_reads_slowly_gets_everything(served: Served, stream: bool) -> None:
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", served.port))
        connection.settimeout(60)
        connection.sendall(raw_request(BIG | {"stream": stream}).replace(b"Host:", b"Connection: close\r\nHost:"))
        received = b""
        while more := connection.recv(5000):
            received += more
            time.sleep(0.001)
    whole = requests.post(f"{served.url}/v1/completions", json=BIG, timeout=60).json()["choices"]
    texts = dict.fromkeys(range(BIG["n"]), "")  # type: ignore[call-overload]
    if stream:
        assert b"data: [DONE]" in received
        lines = [line[6:] for line in received.split(b"\n") if line.startswith(b"data: {")]
        for choice in (json.loads(line)["choices"][0] for line in lines):
            texts[choice["index"]] += choice["text"]
    else:
        texts = {choice["index"]: choice["text"] for choice in json.loads(received.partition(b"\r\n\r\n")[2])["choices"]}
    assert texts == {choice["index"]: choice["text"] for choice in whole}


PHASES = ["headers", "body", "request", "answer", "end"]


@pytest.mark.parametrize("resets", [True, False], ids=["reset", "close"])
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("phase", PHASES)
def test_a_client_may_go_away_at_any_time(served: Served, phase: str, stream: bool, resets: bool) -> None:
    request = raw_request({"model": "m", "prompt": "a", "max_tokens": 60, "temperature": 1.5, "n": 4, "stream": stream})
    sent = {"headers": request[:30], "body": request[:-5]}.get(phase, request)
    for _ in range(3):
        with send_raw(served, sent) as connection:
            if resets:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            if phase == "answer":
                connection.recv(10)
            elif phase == "end":
                received = b""
                while b"[DONE]" not in received and not (not stream and received.endswith(b"}")):
                    received += connection.recv(65536)
    wait_until(lambda: served.engine.load == (0, 0))
    body = {"model": "m", "prompt": PROMPT, "max_tokens": 12, "temperature": 0}
    answer = requests.post(f"{served.url}/v1/completions", json=body, timeout=60).json()
    assert answer["choices"][0]["text"] == expected(served, max_tokens=12)
