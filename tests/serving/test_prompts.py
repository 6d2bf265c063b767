"""A prompt that a model cannot read as it is typed is refused, or answered with a warning."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import requests

from gpt_pretrain.generation.decoding import DecodingModel
from gpt_pretrain.generation.prompts import TextModel
from gpt_pretrain.serving.requests import ServingLimits
from gpt_pretrain.serving.server import Address
from gpt_pretrain.tokenizers.build import build_tokenizer
from tests.conftest import tiny_model
from tests.helpers.vocabularies import words
from tests.serving.conftest import Served


@pytest.fixture(scope="module")
def lacking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Serve models whose vocabularies lack letters: one cannot read them, the other one reads [UNK] instead."""
    folder = tmp_path_factory.mktemp("words")
    words(folder / "words")
    tokenizers = {"letters": build_tokenizer("characters:abcdefg%20"), "words": build_tokenizer(str(folder / "words"))}
    models = {
        name: TextModel(DecodingModel(tiny_model(vocab_size=tokenizer.vocab_size, context_length=64, emb_dim=48)), tokenizer)
        for name, tokenizer in tokenizers.items()
    }
    server = Served(ServingLimits(rows=4), Address(port=0), models=models)
    yield server
    server.close()


def post(served: Served, path: str, **body: Any) -> requests.Response:
    return requests.post(f"{served.url}{path}", json=body, timeout=60)


@pytest.mark.parametrize(("path", "field"), [("/v1/completions", "prompt"), ("/api/continue", "prompt"), ("/api/tokens", "text")])
def test_a_letter_without_a_token_is_refused_by_name(lacking: Served, path: str, field: str) -> None:
    answer = post(lacking, path, model="letters", **{field: "cafe\u0301"})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == field
    assert "is not among the 8 characters of the model's alphabet" in answer.json()["error"]["message"]
    assert post(lacking, path, model="letters", **{field: "a cafe".replace("f", "b")}).status_code == 200


def test_a_word_that_is_read_as_another_token_is_named(lacking: Served) -> None:
    sentence = "The vocabulary lacks 'zyzzyva': the model reads [UNK] instead."
    assert post(lacking, "/api/tokens", model="words", text="zyzzyva").json()["warning"] == sentence
    made = post(lacking, "/v1/completions", model="words", prompt=["zyzzyva", "zyzzyva"], max_tokens=1).json()
    assert made["warnings"] == [sentence]
    known = post(lacking, "/v1/completions", model="letters", prompt="a", max_tokens=1).json()
    assert "warnings" not in known
    assert post(lacking, "/api/tokens", model="letters", text="a").json()["warning"] is None
