"""The numbers in answers: where tokens begin, and what JSON cannot write."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import pytest
import requests
import torch

from gpt_pretrain.errors import UserError
from gpt_pretrain.generation.config import SamplerConfig
from gpt_pretrain.generation.decoding import DecodingModel
from gpt_pretrain.generation.prompts import TextModel
from gpt_pretrain.generation.sampling import sample_next
from gpt_pretrain.generation.token_scores import LEAST_LOGPROB, score_tokens
from gpt_pretrain.serving.requests import ServingLimits
from gpt_pretrain.serving.server import Address
from gpt_pretrain.tokenizers.build import build_tokenizer
from gpt_pretrain.tokenizers.byte import ByteTokenizer
from tests.conftest import tiny_model
from tests.serving.conftest import Served

DIVERGED = "The model's logits are not finite, because its training diverged."


@pytest.fixture(scope="module")
def odd() -> Iterator[Served]:
    """Serve a model with more rows than its alphabet has letters, and one whose training diverged."""
    letters = build_tokenizer("characters:abc%20")
    padded = TextModel(DecodingModel(tiny_model(vocab_size=40, context_length=64, emb_dim=48)), letters)
    diverged = tiny_model(vocab_size=257, context_length=64, emb_dim=48)
    with torch.no_grad():
        diverged.tok_emb.weight.fill_(math.nan)
    models = {"padded": padded, "diverged": TextModel(DecodingModel(diverged), ByteTokenizer())}
    server = Served(ServingLimits(rows=4), Address(port=0), models=models)
    yield server
    server.close()


def post(served: Served, path: str, **body: Any) -> requests.Response:
    return requests.post(f"{served.url}{path}", json=body, timeout=60)


@pytest.mark.parametrize("path", ["/v1/completions", "/api/continue"])
@pytest.mark.parametrize("stream", [True, False])
def test_impossible_alternatives_are_left_out(odd: Served, path: str, stream: bool) -> None:
    fields = {"alternatives": 10} if path == "/api/continue" else {"logprobs": 10, "stream": stream, "echo": True}
    answer = post(odd, path, model="padded", prompt="abc", max_tokens=3, **fields)
    assert answer.status_code == 200
    assert "Infinity" not in answer.text and "NaN" not in answer.text
    assert len(odd.models["padded"].banned_ids) > 30


def test_scores_are_numbers_that_json_can_write() -> None:
    logits = torch.tensor([[0.0, -math.inf, 1.0, -math.inf], [0.0, 1.0, 2.0, 3.0]])
    impossible, possible = score_tokens(logits, [1, 1], count=4)
    assert (impossible.logprob, impossible.likely_ids) == (LEAST_LOGPROB, (2, 0))
    assert possible.likely_ids == (3, 2, 1, 0)
    json.dumps([impossible.likely_logprobs, possible.likely_logprobs], allow_nan=False)
    with pytest.raises(UserError, match=DIVERGED):
        score_tokens(torch.tensor([[0.0, math.nan]]), [0], count=1)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_model_that_diverged_writes_no_text(temperature: float) -> None:
    with pytest.raises(UserError, match=DIVERGED):
        sample_next(torch.tensor([[0.0, math.nan]]), SamplerConfig(1, temperature))


@pytest.mark.parametrize(
    "fields",
    [{"temperature": 0}, {"temperature": 1}, {"max_tokens": 0, "echo": True, "logprobs": 1}],
    ids=["greedy", "sampled", "scored"],
)
def test_a_model_that_diverged_is_named(odd: Served, fields: dict[str, Any]) -> None:
    answer = post(odd, "/v1/completions", **{"model": "diverged", "prompt": "abc", "max_tokens": 3} | fields)
    assert answer.status_code == 500
    assert answer.json()["error"]["message"].startswith(DIVERGED)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("prompt", ["a\u00e9\U0001f600", [97, 256, 98], "<|endoftext|>ab"], ids=["text", "ids", "end of text"])
def test_offsets_say_where_tokens_begin(served: Served, prompt: str | list[int], stream: bool) -> None:
    body = {"model": "m", "prompt": prompt, "max_tokens": 8, "temperature": 1.5, "seed": 3, "logprobs": 0}
    answers = [post(served, "/v1/completions", **body, stream=stream, echo=echo).text for echo in (True, False)]
    echoed, alone = (_choice(text) for text in answers)
    tokens, offsets = echoed["logprobs"]["tokens"], echoed["logprobs"]["text_offset"]
    whole = [(start, token) for start, token in zip(offsets, tokens, strict=True) if token.isascii() and "bytes:" not in token]
    texts = [(echoed["text"][start:].lstrip("\ufffd"), token) for start, token in whole]  # after what is no character
    assert all(text.startswith(token) for text, token in texts if text)
    assert len(whole) >= 2
    assert alone["logprobs"]["text_offset"] == offsets[-len(alone["logprobs"]["tokens"]) :]


def _choice(content: str) -> dict[str, Any]:
    """Return the choice of an answer, whose pieces are put together if it is a stream."""
    if not content.startswith("data: "):
        choice: dict[str, Any] = json.loads(content)["choices"][0]
        return choice
    pieces = [json.loads(line[6:])["choices"][0] for line in content.split("\n\n") if line.startswith("data: {")]
    logprobs = {name: [one for piece in pieces for one in piece["logprobs"][name]] for name in pieces[0]["logprobs"]}
    return {"text": "".join(piece["text"] for piece in pieces), "logprobs": logprobs}
