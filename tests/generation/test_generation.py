"""Sampling follows its settings, with and without a cache."""

from typing import Any

import pytest
import torch
from torch import Tensor

from gpt_pretrain.errors import UserError
from gpt_pretrain.generation.config import SamplerConfig
from gpt_pretrain.generation.decoding import DecodingModel
from gpt_pretrain.generation.sampling import generate, generate_stream, sample_next
from gpt_pretrain.model.gpt2 import GPTModel
from tests.conftest import tiny_model


def naive(model: GPTModel, token_ids: Tensor, n: int) -> Tensor:
    """Decode greedily, reading the whole window for each token."""
    for _ in range(n):
        with torch.no_grad():
            logits = model(token_ids[:, -model.config.context_length :])[:, -1]
        token_ids = torch.cat([token_ids, logits.argmax(-1, keepdim=True)], dim=1)
    return token_ids


@pytest.mark.parametrize("prompt_length", [1, 7, 15, 16, 30])
@pytest.mark.parametrize("batch", [1, 3])
def test_generation_with_and_without_a_cache_equals_naive_decoding_also_beyond_the_context(
    prompt_length: int, batch: int
) -> None:
    model = tiny_model()
    token_ids = torch.randint(0, 97, (batch, prompt_length))
    expected = naive(model, token_ids, 25)
    assert len(expected[0, prompt_length:].unique()) > 3, "the model repeats itself, which would hide differences"
    assert torch.equal(generate(model, token_ids, 25), expected)
    assert torch.equal(generate(model, token_ids, 25, use_cache=False), expected)


def test_sampling_is_the_same_with_and_without_a_cache() -> None:
    model = tiny_model()
    token_ids = torch.randint(0, 97, (4, 5))
    texts = [
        generate(
            model,
            token_ids,
            30,
            temperature=1.3,
            top_k=20,
            top_p=0.9,
            generator=torch.Generator().manual_seed(7),
            use_cache=use_cache,
        )
        for use_cache in (True, False)
    ]
    assert torch.equal(*texts)
    other = generate(model, token_ids, 30, temperature=1.3, top_k=20, top_p=0.9, generator=torch.Generator().manual_seed(8))
    assert not torch.equal(texts[0], other)


def test_rows_end_independently() -> None:
    model = tiny_model()
    token_ids = torch.randint(0, 97, (6, 4))
    free = generate(model, token_ids, 20)
    eos_id = int(free[2, 9])  # The third row reaches this token.
    ended = generate(model, token_ids, 20, eos_id=eos_id)
    ends = []
    for row, whole in zip(ended.tolist(), free.tolist(), strict=True):
        new = whole[4:]
        stop = new.index(eos_id) + 1 if eos_id in new else len(new)
        ends.append(stop)
        assert row[4:] == (new[:stop] + [eos_id] * 20)[: ended.shape[1] - 4]
    assert len(set(ends)) > 1
    assert ended.shape[1] - 4 == max(ends)


def test_generation_disables_dropout_and_keeps_the_mode() -> None:
    model = tiny_model(drop_rate=0.5)
    token_ids = torch.randint(0, 97, (1, 4))
    expected = generate(model, token_ids, 10)
    model.train()
    assert torch.equal(generate(model, token_ids, 10), expected)
    assert model.training
    assert all(module.training for module in model.modules())


def test_generation_leaves_the_global_random_state_alone() -> None:
    model = tiny_model()
    state = torch.random.get_rng_state()
    generate(model, torch.zeros(1, 1, dtype=torch.long), 5, temperature=1.0, generator=torch.Generator().manual_seed(1))
    assert torch.equal(state, torch.random.get_rng_state())


def frequencies(sampler: SamplerConfig, logits: Tensor, n: int = 40_000) -> Tensor:
    ids = sample_next(logits.expand(n, -1), sampler, generator=torch.Generator().manual_seed(0))
    return torch.bincount(ids, minlength=len(logits)) / n


LOGITS = torch.tensor([1.0, 3.0, 0.0, 2.5, -1.0, 2.0])


@pytest.mark.parametrize(
    ("sampler", "kept"),
    [
        (SamplerConfig(1, temperature=1.0), [0, 1, 2, 3, 4, 5]),
        (SamplerConfig(1, temperature=0.5), [0, 1, 2, 3, 4, 5]),
        (SamplerConfig(1, temperature=2.0, top_k=3), [1, 3, 5]),
        (SamplerConfig(1, temperature=1.0, top_k=1), [1]),
        (SamplerConfig(1, temperature=1.0, top_k=600), [0, 1, 2, 3, 4, 5]),
        (SamplerConfig(1, temperature=1.0, top_p=0.7), [1, 3]),  # Probabilities 0.45 and 0.27 reach 0.7.
        (SamplerConfig(1, temperature=1.0, top_p=0.01), [1]),
        (SamplerConfig(1, temperature=1.0, top_p=1.0), [0, 1, 2, 3, 4, 5]),
        (
            SamplerConfig(1, temperature=1.0, top_k=3, top_p=0.8),
            [1, 3],
        ),  # Probabilities 0.50 and 0.31 among the three kept reach 0.8.
    ],
)
def test_token_frequencies_follow_the_expected_distribution(sampler: SamplerConfig, kept: list[int]) -> None:
    weights = torch.zeros(6)
    weights[kept] = torch.exp(LOGITS[kept] / sampler.temperature)
    assert torch.allclose(frequencies(sampler, LOGITS), weights / weights.sum(), atol=0.012)


def test_a_tiny_temperature_and_zero_are_greedy() -> None:
    for temperature in (0.0, 1e-6):
        assert frequencies(SamplerConfig(1, temperature=temperature), LOGITS, n=100)[1] == 1


def test_zero_new_tokens_return_the_prompt() -> None:
    token_ids = torch.tensor([[1, 2, 3]])
    assert torch.equal(generate(tiny_model(), token_ids, 0), token_ids)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": -1.0}, "temperature=-1.0"),
        ({"top_k": 0}, "top_k=0"),
        ({"top_p": 0.0}, "top_p=0.0"),
        ({"max_new_tokens": -1}, "max_new_tokens=-1"),
        ({"token_ids": torch.zeros(1, 0, dtype=torch.long)}, "at least one token"),
        ({"token_ids": torch.zeros(3, dtype=torch.long)}, r"must be \(B, T\)"),
    ],
)
def test_arguments_outside_their_range_are_refused(arguments: dict[str, object], message: str) -> None:
    call: dict[str, object] = {"token_ids": torch.zeros(1, 1, dtype=torch.long), "max_new_tokens": 3} | arguments
    with pytest.raises(UserError, match=message):
        generate(tiny_model(), **call)  # type: ignore[arg-type]


@pytest.mark.parametrize("window_step", [0.01, 0.25, 0.5, 0.99])
@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("n_prompt", [1, 15, 16, 17, 40])
def test_dropping_a_share_of_the_window_gives_the_models_tokens_for_what_is_in_view(
    window_step: float, use_cache: bool, n_prompt: int
) -> None:
    model, prompt = tiny_model(), torch.randint(0, 97, (2, n_prompt), generator=torch.Generator().manual_seed(1))
    context = model.config.context_length
    text, window = prompt, prompt[:, -context:]
    for _ in range(40):
        if window.shape[1] > context:
            window = window[:, -max(1, context - max(1, round(window_step * context))) :]
        with torch.no_grad():
            new = model(window)[:, -1].argmax(-1, keepdim=True)
        text, window = torch.cat([text, new], dim=1), torch.cat([window, new], dim=1)
    made = generate_stream(model, prompt, SamplerConfig(40, window_step=window_step), use_cache=use_cache)
    assert torch.equal(torch.stack([*made], dim=1), text[:, n_prompt:])


def test_a_window_step_reads_the_window_once_per_step(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = DecodingModel(tiny_model())
    read: list[int] = []
    real = DecodingModel.next_logits

    def counted(self: DecodingModel, token_ids: torch.Tensor, **more: Any) -> torch.Tensor:
        read.append(token_ids.shape[1])
        return real(self, token_ids, **more)

    monkeypatch.setattr(DecodingModel, "next_logits", counted)
    prompt = torch.zeros(1, 16, dtype=torch.int64)
    assert len([*generate_stream(decoder, prompt, SamplerConfig(9, window_step=0.25))]) == 9
    assert read == [16, 12, 1, 1, 1, 1, 12, 1, 1]
    read.clear()
    assert len([*generate_stream(decoder, prompt, SamplerConfig(4))]) == 4
    assert read == [16, 16, 16, 16]


@pytest.mark.parametrize("share", [0.0, 1.0, -0.5, 2.0, float("nan")])
def test_shares_of_the_window_outside_their_range_are_refused(share: float) -> None:
    with pytest.raises(UserError, match="window_step"):
        SamplerConfig(1, window_step=share)
