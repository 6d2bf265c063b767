"""The filters of the sampler choose the same tokens as transformers' processors of logits, in the same order."""

import math

import pytest
import torch
from torch import Tensor
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from gpt_pretrain.errors import UserError
from gpt_pretrain.generation import sampling
from gpt_pretrain.generation.config import SamplerConfig
from gpt_pretrain.generation.sampling import generate, sample_next, tokens_seen
from tests.conftest import tiny_model

SAMPLERS = {
    "min_p": SamplerConfig(1, 1.0, min_p=0.2),
    "min_p of 0": SamplerConfig(1, 1.0, min_p=0.0),
    "min_p of 1": SamplerConfig(1, 1.0, min_p=1.0),
    "penalty": SamplerConfig(1, 0.8, repetition_penalty=1.7),
    "reward": SamplerConfig(1, 0.8, repetition_penalty=0.6),
    "all": SamplerConfig(1, 0.7, top_k=30, top_p=0.8, min_p=0.05, repetition_penalty=1.3),
    "high temperature": SamplerConfig(1, 3.0, top_k=50, top_p=0.95, min_p=0.3, repetition_penalty=1.1),
}


def transformers_probabilities(logits: Tensor, token_ids: Tensor, sampler: SamplerConfig) -> Tensor:
    steps = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(sampler.repetition_penalty)])
    steps.append(TemperatureLogitsWarper(sampler.temperature))
    if sampler.top_k is not None:
        steps.append(TopKLogitsWarper(sampler.top_k))
    if sampler.top_p is not None:
        steps.append(TopPLogitsWarper(sampler.top_p))
    if sampler.min_p is not None:
        steps.append(MinPLogitsWarper(sampler.min_p))
    return steps(token_ids, logits.clone()).softmax(-1)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", list(SAMPLERS))
def test_the_probabilities_are_those_of_transformers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = SAMPLERS[name]
    logits = 3 * torch.randn(5, 200, generator=torch.Generator().manual_seed(1))
    token_ids = torch.randint(0, 200, (5, 40), generator=torch.Generator().manual_seed(2))
    chosen: list[Tensor] = []

    def multinomial(probabilities: Tensor, **_: object) -> Tensor:
        chosen.append(probabilities)
        return torch.zeros(5, 1, dtype=torch.int64)

    monkeypatch.setattr(sampling.torch, "multinomial", multinomial)
    sample_next(logits, sampler, seen=tokens_seen(token_ids, 200))
    expected = transformers_probabilities(logits, token_ids, sampler)
    ours = chosen[0] / chosen[0].sum(-1, keepdim=True)
    if sampler.top_k is None and sampler.top_p is None:
        torch.testing.assert_close(ours, expected)
    else:  # ours are in descending order
        most = expected.sort(descending=True).values
        torch.testing.assert_close(ours, most[:, : ours.shape[1]])
        assert torch.count_nonzero(most[:, ours.shape[1] :]) == 0


@pytest.mark.parametrize("top_p", [1e-20, 1e-60, 5e-324])
def test_a_tiny_top_p_keeps_the_most_likely_token(top_p: float) -> None:
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(1))
    assert torch.equal(sample_next(logits, SamplerConfig(1, 1.0, top_p=top_p)), logits.argmax(-1))


def test_the_penalty_acts_on_greedy_decoding_and_on_new_tokens_too() -> None:
    model = tiny_model()
    prompt = torch.randint(0, 97, (2, 4), generator=torch.Generator().manual_seed(3))
    made = generate(model, prompt, 10, repetition_penalty=100.0)
    expected = prompt
    for _ in range(10):
        with torch.no_grad():
            logits = model(expected)[:, -1]
        logits = RepetitionPenaltyLogitsProcessor(100.0)(expected, logits)  # type: ignore[arg-type]
        expected = torch.cat([expected, logits.argmax(-1, keepdim=True)], dim=1)
    assert torch.equal(made, expected)
    assert not torch.equal(made, generate(model, prompt, 10))


@pytest.mark.parametrize(
    "bad", [{"min_p": -0.1}, {"min_p": 1.1}, {"min_p": math.nan}, {"repetition_penalty": 0.0}, {"repetition_penalty": math.inf}]
)
def test_filters_outside_their_range_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(UserError, match=next(iter(bad))):
        SamplerConfig(1, **bad)  # type: ignore[arg-type]


def test_filters_without_effect_on_greedy_decoding_are_said() -> None:
    said = SamplerConfig(1, top_k=3, top_p=0.5, min_p=0.1, repetition_penalty=1.2).unused_settings()
    assert said is not None
    assert said.startswith("sampler.top_k=3, sampler.top_p=0.5 and sampler.min_p=0.1 have no effect at sampler.temperature=0")
    assert SamplerConfig(1, repetition_penalty=1.2).unused_settings() is None


@pytest.mark.parametrize("spread", [0.01, 1.0, 4.0])  # nearly all tokens, most of them, a few
def test_top_p_of_a_large_vocabulary_draws_the_same_tokens_as_with_all_tokens_sorted(
    spread: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits, sampler = spread * torch.randn(3, 5000), SamplerConfig(1, 1.0, top_p=0.9, min_p=0.0001)
    drawn = []
    for n_sorted in (sampling.SORTED_FIRST, 5000):
        monkeypatch.setattr(sampling, "SORTED_FIRST", n_sorted)
        generator = torch.Generator().manual_seed(1)
        drawn.append(torch.stack([sample_next(logits, sampler, generator=generator) for _ in range(30)]))
    assert torch.equal(*drawn)
    assert len(drawn[0].unique()) > 10
