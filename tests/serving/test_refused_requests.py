"""Requests that are refused before a model sees them: each message says what is missing."""

from __future__ import annotations

import socket
from types import SimpleNamespace
from urllib.parse import urlsplit

import pytest
import requests

from gpt_pretrain.serving.completions import RefusedError, read_prompt
from gpt_pretrain.tokenizers.characters import CharacterTokenizer
from tests.conftest import tiny_model
from tests.serving.conftest import Served


def test_a_request_of_an_old_client_without_a_host_is_refused(served: Served) -> None:
    address = urlsplit(served.url)
    with socket.create_connection((address.hostname, address.port), timeout=60) as connection:
        connection.sendall(b"GET /health HTTP/1.0\r\n\r\n")
        answer = b"".join(iter(lambda: connection.recv(4096), b""))
    assert b" 400 " in answer.partition(b"\r\n")[0]
    assert b"A request must have exactly one Host header." in answer


def test_a_body_of_countless_fields_is_refused_as_a_whole(served: Served) -> None:
    body = {"model": "m", "prompt": "a"} | {f"f{number}": 1 for number in range(200)}
    answer = requests.post(f"{served.url}/v1/completions", json=body, timeout=60)
    assert answer.status_code == 400
    assert "it has 202 fields, more than the limit of 100" in answer.json()["error"]["message"]


@pytest.mark.parametrize("prompt", [[True], [[1], [False]], [1.5]])
def test_token_ids_are_whole_numbers(served: Served, prompt: list[object]) -> None:
    answer = requests.post(f"{served.url}/v1/completions", json={"model": "m", "prompt": prompt}, timeout=60)
    assert answer.status_code == 400
    assert "prompt: must be a text or a list of token ids" in answer.json()["error"]["message"]


def test_an_empty_prompt_of_a_vocabulary_without_an_end_is_refused() -> None:
    model = SimpleNamespace(
        decoder=SimpleNamespace(config=tiny_model().config), tokenizer=CharacterTokenizer("ab", end_of_text=False)
    )
    with pytest.raises(RefusedError, match=r"The prompt is empty\. Give at least one token\."):
        read_prompt(model, "", 5)  # type: ignore[arg-type]
