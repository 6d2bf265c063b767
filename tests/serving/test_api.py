"""The HTTP interface, used by the openai package and by plain sockets."""

from __future__ import annotations

import json
import math
import select
import socket
import time
from contextlib import suppress
from typing import Any

import openai
import pytest
import requests
from pydantic import ValidationError

from gpt_pretrain.generation.config import SamplerConfig
from gpt_pretrain.serving.bodies import FIELD_RULES, CompletionBody, ContinueBody, TokensBody, describe_error
from gpt_pretrain.serving.requests import ServingLimits
from gpt_pretrain.serving.server import Address
from tests.helpers.waiting import wait_until
from tests.serving.conftest import Served
from tests.serving.test_engine import CompletionRequest, alone

PROMPT = "Every effort moves"


@pytest.fixture
def client(served: Served) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)


def expected(served: Served, *, max_tokens: int, temperature: float = 0.0, seed: int = 1, stop: tuple[str, ...] = ()) -> str:
    request = CompletionRequest("m", tuple(PROMPT.encode()), SamplerConfig(max_tokens, temperature), seed, stop)
    return alone(served.model, request)


def test_the_openai_package_completes_whole_and_in_a_stream(served: Served, client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["m"]
    assert client.models.retrieve("m").owned_by == "gpt-pretrain"
    made = client.completions.create(model="m", prompt=PROMPT, max_tokens=12, temperature=0)
    assert made.choices[0].text == expected(served, max_tokens=12)
    assert made.choices[0].finish_reason == "length"
    assert made.usage is not None
    assert (made.usage.prompt_tokens, made.usage.completion_tokens) == (len(PROMPT), 12)
    stream = client.completions.create(
        model="m", prompt=PROMPT, max_tokens=12, temperature=1.1, seed=5, n=2, stream=True, stream_options={"include_usage": True}
    )
    texts, usage = ["", ""], None
    for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == [expected(served, max_tokens=12, temperature=1.1, seed=seed) for seed in (5, 6)]
    assert usage is not None
    assert usage.completion_tokens == 24


def test_echo_and_logprobs_are_those_of_the_tokens(served: Served, client: openai.OpenAI) -> None:
    made = client.completions.create(model="m", prompt=PROMPT, max_tokens=3, temperature=0, echo=True, logprobs=2).choices[0]
    assert made.text == PROMPT + expected(served, max_tokens=3)
    found = made.logprobs
    assert found is not None
    assert found.tokens is not None and found.token_logprobs is not None and found.text_offset is not None
    assert len(found.tokens) == len(found.token_logprobs) == len(found.text_offset) == len(PROMPT) + 3
    assert found.token_logprobs[0] is None
    assert found.tokens[: len(PROMPT)] == list(PROMPT)
    assert found.text_offset[: len(PROMPT)] == list(range(len(PROMPT)))
    assert found.top_logprobs is not None
    assert all(own == max(top.values()) for own, top in zip(found.token_logprobs[-3:], found.top_logprobs[-3:], strict=True))
    scored = client.completions.create(model="m", prompt=list(PROMPT.encode()), max_tokens=0, echo=True, logprobs=1).choices[0]
    assert scored.text == PROMPT
    assert scored.logprobs is not None
    assert scored.logprobs.token_logprobs == found.token_logprobs[: len(PROMPT)]
    alone = client.completions.create(model="m", prompt=PROMPT, max_tokens=3, temperature=0, logprobs=2).choices[0].logprobs
    assert alone is not None
    assert alone.text_offset == found.text_offset[-3:], "OpenAI counts from the beginning of the prompt, also without echo"


def test_stop_strings_and_lists_of_prompts(served: Served, client: openai.OpenAI) -> None:
    whole = expected(served, max_tokens=20)
    stop = whole[6:8]
    made = client.completions.create(model="m", prompt=[PROMPT, PROMPT], max_tokens=20, temperature=0, stop=[stop])
    assert [(one.index, one.text, one.finish_reason) for one in made.choices] == [
        (index, whole[: whole.index(stop)], "stop") for index in (0, 1)
    ]


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"model": "other"}, 404, "There is no model 'other'."),
        ({"max_tokens": 1000}, 400, "Shorten the prompt, or lower max_tokens."),
        ({"prompt": [1] * 65, "max_tokens": 0}, 400, "The prompt has 65 tokens."),
        ({"prompt": [300]}, 400, "The model has no token 300: its ids are 0 to"),
        ({"prompt": []}, 400, "There is no prompt."),
        ({"temperature": -1}, 400, "temperature"),
        ({"best_of": 3}, 400, "best_of must equal n"),
        ({"presence_penalty": 0.5}, 400, "presence_penalty: must be 0: this server has repetition_penalty instead"),
        ({"logit_bias": {"5": 3}}, 400, "logit_bias: must be empty: this server has none"),
        ({"checkpoint": "/etc/passwd"}, 400, "checkpoint"),
        ({"n": 16, "prompt": ["a"] * 10}, 400, "at most 64 texts at a time"),
        ({"prompt": "\ud800"}, 400, "surrogate"),
        ({"no-such field": 1}, 400, "no-such field"),
        ({"stop": ""}, 400, "stop: must be a text of 1 to 1,000 characters, or a list of at most 16 of them"),
        (
            {"prompt": {"a": 1}},
            400,
            "prompt: must be a text or a list of token ids, or a list of at most 10,000 texts or of such",
        ),
        ({"prompt": ["a", 5]}, 400, "prompt: must be a text or a list of token ids, or a list of"),
        ({"temperature": "warm"}, 400, "temperature: must be a number"),
        ({"max_tokens": 1.5}, 400, "max_tokens: must be a whole number"),
        ({"top_p": 0, "n": 17}, 400, "top_p: must be above 0.0; n: must be at most 16"),
        ({"echo": "perhaps"}, 400, "echo: must be true or false"),
        ({"suffix": "a"}, 400, "suffix: must be ''"),
        ({"stream_options": {"include": 1}}, 400, "stream_options.include: there is no such field"),
        ({"model": None}, 400, "model: must be a text"),
    ],
)
def test_what_cannot_be_answered_is_explained(served: Served, body: dict[str, Any], status: int, message: str) -> None:
    content = json.dumps({"model": "m", "prompt": PROMPT} | body)
    answer = requests.post(f"{served.url}/v1/completions", data=content, headers={"content-type": "application/json"}, timeout=60)
    assert answer.status_code == status, answer.text
    assert message in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "content",
    ['{"model": "m", "prompt": "a", "prompt": "b"}', '{"model": "m", "prompt": "a", "stream_options": {"b": 1, "b": 1}}'],
    ids=["field", "nested"],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_a_name_that_is_given_twice_is_refused(served: Served, content: str, encoding: str) -> None:
    headers = {"content-type": "application/json"}
    for route in ("/v1/completions", "/api/continue", "/api/tokens"):
        answer = requests.post(served.url + route, data=content.encode(encoding), headers=headers, timeout=60)
        assert answer.status_code == 400, answer.text
        assert "is given twice." in answer.json()["error"]["message"]


def test_every_kind_of_error_of_a_field_has_a_rule_of_this_program() -> None:
    values: list[Any] = [None, True, 1.5, -1, 10**30, math.inf, "", "\ud800", [], [""], [None], {}, {"a": 1}, ["a"] * 20_000]
    for kind in (CompletionBody, ContinueBody, TokensBody):
        for field in (*kind.model_fields, "other"):
            for value in values:
                with pytest.raises(ValidationError) as caught:  # fields are missing, whatever the value
                    kind.model_validate({field: value})
                found = caught.value.errors()
                assert {error["type"] for error in found} <= FIELD_RULES.keys()
                assert not any("Input should" in describe_error(error) for error in found)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[" * 100_000, b"null", b'{"model": 1e999}', b"\xff\xfe", b'{"max_tokens": ' + b"9" * 5000 + b"}"]
)
def test_bodies_that_are_no_json_are_refused(served: Served, content: bytes) -> None:
    answer = requests.post(f"{served.url}/v1/completions", data=content, headers={"content-type": "application/json"}, timeout=60)
    assert answer.status_code == 400, answer.text


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 403),
        ({"Host": "127.0.0.1.evil.example"}, 403),
        ({"Host": "localhost:1"}, 200),
        ({"Host": "[::1]:1"}, 200),
        ({"Host": "LOCALHOST.:1"}, 200),
        ({"Host": "[::1]evil.example"}, 403),
        ({"Host": "[::1].evil.example:1"}, 403),
        ({"Host": "localhost:evil.example"}, 403),
        ({"Host": "127.0.0.1:1.evil.example"}, 403),
        ({"Host": "evil.example@localhost"}, 403),
        ({"Host": "localhost:\xb2"}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://["}, 403),
        ({"Origin": "http://[::1"}, 403),
        ({"Host": "[", "Origin": "http://["}, 403),
        ({"Host": "localhost:1", "Origin": "http://localhost:1"}, 200),
    ],
)
def test_other_hosts_and_origins_are_refused(served: Served, headers: dict[str, str], status: int) -> None:
    assert requests.get(f"{served.url}/v1/models", headers=headers, timeout=60).status_code == status


def test_the_key_is_needed_where_there_is_one() -> None:
    server = Served(ServingLimits(), Address(port=0, api_key="secret-key", cors=("https://a.example",)))
    url = f"{server.url}/v1/models"
    try:
        assert requests.get(url, timeout=60).status_code == 401
        assert requests.get(url, headers={"Authorization": "Bearer wrong"}, timeout=60).status_code == 401
        allowed = {"Authorization": "Bearer secret-key", "Origin": "https://a.example"}
        answer = requests.get(url, headers=allowed, timeout=60)
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, "https://a.example")
        assert requests.get(f"{server.url}/health", timeout=60).json() == {"status": "ok"}
    finally:
        server.close()
    assert not server.engine.is_alive


def send_raw(served: Served, content: bytes) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", served.port), timeout=60)
    connection.sendall(content)
    return connection


def raw_request(body: dict[str, Any]) -> bytes:
    content = json.dumps(body).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    return head.encode() + content


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_hangs_up_frees_its_rows(served: Served, stream: bool) -> None:
    before = served.engine.counts["cancelled"]
    for _ in range(8):  # More than fit into the rows, so that some wait.
        body = {"model": "m", "prompt": "a", "max_tokens": 63, "stream": stream, "n": 4, "temperature": 1.5}
        send_raw(served, raw_request(body)).close()
    wait_until(lambda: served.engine.load == (0, 0))
    answer = requests.post(f"{served.url}/v1/completions", json={"model": "m", "prompt": "a"}, timeout=60)
    assert answer.status_code == 200
    assert served.engine.counts["cancelled"] >= before


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"GET /health HTTP/1.1\r\n\r\n", b"400"),
        (b"GET /health HTTP/1.1\r\nHost: a\r\nHost: localhost\r\n\r\n", b"400"),
        (b"nonsense\r\n\r\n", b"400"),
        (b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999\r\n\r\n", b"413"),
        (b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", b"4"),
        (b"GET /../../etc/passwd HTTP/1.1\r\nHost: localhost\r\n\r\n", b"404"),
    ],
)
def test_odd_requests_get_an_answer_of_their_own(served: Served, content: bytes, status: bytes) -> None:
    with send_raw(served, content) as connection:
        assert connection.recv(100).startswith(b"HTTP/1.1 " + status)
    assert requests.get(f"{served.url}/health", timeout=60).status_code == 200


def test_half_a_request_holds_nobody_up(served: Served) -> None:
    half = [send_raw(served, raw_request({"model": "m", "prompt": "a"})[:-3]) for _ in range(20)]
    assert requests.post(f"{served.url}/v1/completions", json={"model": "m", "prompt": "a"}, timeout=60).status_code == 200
    for connection in half:
        connection.close()


@pytest.mark.parametrize(
    "begin",
    [b"G", b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n", raw_request({"model": "m", "prompt": "a"})[:-3]],
    ids=["headers", "second headers", "body"],
)
def test_a_request_that_arrives_too_slowly_is_given_up(begin: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpt_pretrain.serving.server.HEADER_SECONDS", 0.5)
    monkeypatch.setattr("gpt_pretrain.serving.guards.BODY_SECONDS", 0.5)
    server = Served(ServingLimits(), Address(port=0))
    try:
        with send_raw(server, begin) as connection, suppress(ConnectionError):
            for _ in range(600):  # one byte again and again, so that no pause is long
                connection.sendall(b" ")
                time.sleep(0.1)
                if select.select([connection], [], [], 0)[0] and not connection.recv(1 << 16):
                    break
            else:
                pytest.fail("The connection is still open.")
    finally:
        server.close()


def test_a_client_that_takes_no_answer_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpt_pretrain.serving.server.READING_SECONDS", 0.5)
    server = Served(ServingLimits(), Address(port=0))
    try:
        text = json.dumps({"model": "m", "text": "a" * 9_000}).encode()
        head = f"POST /api/tokens HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(text)}\r\n\r\n"
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect(("127.0.0.1", server.port))
            connection.settimeout(60)
            connection.sendall((head.encode() + text) * 40)  # more than the buffers of the system hold
            wait_until(lambda: len(server.server.server_state.connections) == 0)
    finally:
        server.close()


@pytest.mark.parametrize(
    "body",
    [
        '"prompt": [' + ",".join(["{}"] * 100_000) + "]",
        '"prompt": [' + ",".join(["[{}]"] * 100_000) + "]",
        '"prompt": [[' + ",".join(["{}"] * 100_000) + "]]",
        '"prompt": "a", ' + ", ".join(f'"f{number}": 0' for number in range(50_000)),
        '"prompt": "a", "stream_options": {' + ", ".join(f'"f{number}": 0' for number in range(50_000)) + "}",
    ],
    ids=["objects", "lists of objects", "a list of objects", "fields", "fields of an object"],
)
def test_a_body_with_many_mistakes_is_refused_after_the_first_ones(body: str) -> None:
    with pytest.raises(ValidationError) as refused:
        CompletionBody.model_validate_json(f'{{"model": "m", {body}}}')
    assert refused.value.error_count() < 20


def test_a_text_of_very_many_tokens_is_not_described(served: Served) -> None:
    answer = requests.post(f"{served.url}/api/tokens", json={"model": "m", "text": "a" * 10_001}, timeout=60)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"] == "The text has 10,001 tokens. At most 10,000 are described at a time."


def test_a_full_queue_says_when_to_try_again() -> None:
    server = Served(ServingLimits(rows=1, queue=1), Address(port=0))
    server.engine._waiting.extend([None, None])  # type: ignore[list-item]
    try:
        for stream in (True, False):
            body = {"model": "m", "prompt": "a", "stream": stream}
            answer = requests.post(f"{server.url}/v1/completions", json=body, timeout=60)
            assert (answer.status_code, answer.headers["retry-after"]) == (429, "2")
    finally:
        server.engine._waiting.clear()
        server.close()


def test_the_page_gets_tokens_with_their_alternatives_and_goes_on_with_another(served: Served) -> None:
    tokens = requests.post(f"{served.url}/api/tokens", json={"model": "m", "text": "aé"}, timeout=60).json()["tokens"]
    assert [token["bytes"] for token in tokens] == [[97], [195], [169]]
    body = {"model": "m", "prompt": PROMPT, "max_tokens": 4, "temperature": 0}
    with requests.post(f"{served.url}/api/continue", json=body, stream=True, timeout=60) as answer:
        events = [json.loads(line[6:]) for line in answer.iter_lines() if line]
    new = [token for event in events for token in event["tokens"]]
    assert [token["id"] for token in events[0]["prompt"]] == list(PROMPT.encode())
    assert all(len(token["alternatives"]) == 10 for token in new)
    assert [token["id"] for token in new] == [token["alternatives"][0]["id"] for token in new]
    assert events[-1]["finish_reason"] == "length"
    other = new[1]["alternatives"][3]["id"]
    branch = body | {"prompt": [*PROMPT.encode(), new[0]["id"], other]}
    with requests.post(f"{served.url}/api/continue", json=branch, stream=True, timeout=60) as answer:
        first = json.loads(next(line for line in answer.iter_lines() if line)[6:])
    assert first["prompt"][-1]["id"] == other


def test_metrics_are_in_the_format_of_prometheus(served: Served) -> None:
    text = requests.get(f"{served.url}/metrics", timeout=60).text
    assert "# TYPE gpt_pretrain_new_tokens_total counter\n" in text
    assert "\ngpt_pretrain_waiting_texts 0\n" in text
