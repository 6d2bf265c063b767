"""Programs that speak OpenAI's interface, and requests that are made from its description."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import schemathesis
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from gpt_pretrain.serving.requests import ServingLimits
from gpt_pretrain.serving.server import Address
from gpt_pretrain.tokenizers.byte_letters import LETTERS
from tests.conftest import tiny_model
from tests.serving.conftest import Served
from tests.serving.test_api import PROMPT, expected


def save_byte_tokenizer(folder: Path) -> None:
    """Save a tokenizer for transformers whose ids are those of the bytes."""
    fast = Tokenizer(models.BPE(vocab={letter: number for number, letter in enumerate(LETTERS)}, merges=[]))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=fast, eos_token="\u0120").save_pretrained(folder)


def test_the_evaluation_harness_scores(served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["lm_eval"])
    from lm_eval.api.instance import Instance
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    save_byte_tokenizer(tmp_path)
    harness = LocalCompletionsAPI(
        base_url=f"{served.url}/v1/completions", model="m", tokenizer=str(tmp_path), max_length=64, max_retries=1
    )
    pairs = [("Every effort", " moves"), ("Every effort", " you")]
    scored = harness.loglikelihood([Instance("loglikelihood", {}, pair, index) for index, pair in enumerate(pairs)])
    model = tiny_model(vocab_size=257, context_length=64, emb_dim=48)
    for (context, more), (loglikelihood, is_greedy) in zip(pairs, scored, strict=True):
        ids = torch.tensor([list((context + more).encode())])
        with torch.no_grad():
            logprobs = model(ids[:, :-1])[0, len(context) - 1 :].log_softmax(-1)
        own = logprobs.gather(1, ids[0, len(context) :, None]).sum()
        assert loglikelihood == pytest.approx(float(own), abs=1e-3)
        assert is_greedy == bool((logprobs.argmax(-1) == ids[0, len(context) :]).all())


def test_the_evaluation_harness_generates_and_scores_whole_texts(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["lm_eval"])
    from lm_eval.api.instance import Instance
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    save_byte_tokenizer(tmp_path)
    harness = LocalCompletionsAPI(
        base_url=f"{served.url}/v1/completions", model="m", tokenizer=str(tmp_path), max_length=64, max_retries=1, batch_size=2
    )
    whole = expected(served, max_tokens=20)
    settings = [{"until": [whole[5:7]], "max_gen_toks": 20}, {"until": ["\n\n\n"], "max_gen_toks": 12}]
    asked = [Instance("generate_until", {}, (PROMPT, one), index) for index, one in enumerate(settings)]
    assert harness.generate_until(asked) == [whole[: whole.index(whole[5:7])], expected(served, max_tokens=12)]
    (scored,) = harness.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, (PROMPT,), 0)])
    ids = torch.tensor([[32, *PROMPT.encode()]])  # the harness begins with the end of text of its tokenizer
    with torch.no_grad():
        logprobs = tiny_model(vocab_size=257, context_length=64, emb_dim=48)(ids[:, :-1])[0].log_softmax(-1)
    assert scored == pytest.approx(float(logprobs.gather(1, ids[0, 1:, None]).sum()), abs=1e-3)


OPERATIONS = ["POST /v1/completions", "POST /api/continue", "POST /api/tokens", "GET /v1/models/{name}"]


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=["valid", "invalid"])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_requests_made_from_the_description_get_no_failure(served: Served, operation: str, mode: GenerationMode) -> None:
    if operation.startswith("GET") and mode == GenerationMode.NEGATIVE:
        return  # any text is a name
    method, path = operation.split()
    schema = schemathesis.openapi.from_url(f"{served.url}/openapi.json")
    requests = schema[path][method].as_strategy(generation_mode=mode)

    @settings(max_examples=12, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(requests, st.integers(0, 9))
    def check(case: schemathesis.Case, max_tokens: int) -> None:
        if mode == GenerationMode.POSITIVE and isinstance(case.body, dict):  # so that some reach the model
            case.body["model"] = "m"
            if path != "/api/tokens":
                case.body["max_tokens"] = max_tokens
        assert case.call(base_url=served.url, timeout=60).status_code < 500

    check()


def test_the_description_names_what_is_served() -> None:
    server = Served(ServingLimits(), Address(port=0))
    paths = set(schemathesis.openapi.from_url(f"{server.url}/openapi.json").raw_schema["paths"])
    server.close()
    assert {operation.split()[1] for operation in OPERATIONS} <= paths
