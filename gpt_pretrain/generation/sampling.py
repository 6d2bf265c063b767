"""Sample the next token from logits, and continue token ids with a model.

Shapes: B batch, T time (prompt), N new tokens, V vocab_size.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from numbers import Integral
from types import NoneType

import torch
from torch import Tensor
from torch.nn import functional as F

from gpt_pretrain.errors import UserError
from gpt_pretrain.generation.config import SamplerConfig
from gpt_pretrain.generation.decoding import GRAPH_MIN_TOKENS, DecodingModel, capture_step, decoding_model
from gpt_pretrain.model.language_model import TOKEN_IDS, LanguageModel, unknown_ids
from gpt_pretrain.system.argument_types import check_type

SORTED_FIRST = 2048  # likeliest tokens that top_p tries before it sorts all
LEAST_TEMPERATURE = 1e-30  # A smaller one is nearly 0 in float32, so the most likely token is certain.

log = logging.getLogger(__name__)

MODEL = "a model, such as a GPTModel or what load_pretrained returns"


def generate(
    model: LanguageModel | DecodingModel,
    token_ids: Tensor,
    max_new_tokens: int,
    *,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float = 1.0,
    eos_id: int | None = None,
    banned_ids: Sequence[int] = (),
    generator: torch.Generator | None = None,
    use_cache: bool = True,
) -> Tensor:
    """Continue each row of token_ids without dropout, in any mode of the model.

    Args:
        model: The model. It stays unchanged. A `DecodingModel` saves packing the weights in each call.
        token_ids: int64, (B, T), T at least 1.
        max_new_tokens: As in `SamplerConfig`.
        temperature: As in `SamplerConfig`.
        top_k: As in `SamplerConfig`.
        top_p: As in `SamplerConfig`.
        min_p: As in `SamplerConfig`.
        repetition_penalty: As in `SamplerConfig`.
        eos_id: A row ends with this token and is then padded with it. Generation stops when all rows have ended.
        banned_ids: Ids that are never generated, such as rows of the model without a token.
        generator: Source of randomness, on the model's device.
        use_cache: Cache keys and values. False computes the whole window for each token and gives the same result.

    Returns:
        int64, (B, T + N), N at most max_new_tokens.

    Raises:
        UserError: If an argument has the wrong type or is outside its range, or token_ids is empty or outside the vocabulary.
    """
    check_type("eos_id", eos_id, (Integral, NoneType), "a token id, such as tokenizer.eos_id, or None")
    check_type("generator", generator, (torch.Generator, NoneType), "a torch.Generator, such as torch.Generator().manual_seed(1)")
    sampler = SamplerConfig(max_new_tokens, temperature, top_k, top_p, min_p, repetition_penalty)
    new = generate_stream(
        model, token_ids, sampler, eos_id=eos_id, banned_ids=banned_ids, generator=generator, use_cache=use_cache
    )
    return torch.cat([token_ids, *(column[:, None] for column in new)], dim=1)


def generate_stream(
    model: LanguageModel | DecodingModel,
    token_ids: Tensor,
    sampler: SamplerConfig,
    *,
    eos_id: int | None = None,
    banned_ids: Sequence[int] = (),
    generator: torch.Generator | None = None,
    use_cache: bool = True,
) -> Iterator[Tensor]:
    """Yield the tokens that `generate` adds, int64, (B,), one position at a time."""
    steps = generate_steps(
        model, token_ids, sampler, eos_id=eos_id, banned_ids=banned_ids, generator=generator, use_cache=use_cache
    )
    return (new for new, _ in steps)


def generate_steps(
    model: LanguageModel | DecodingModel,
    token_ids: Tensor,
    sampler: SamplerConfig,
    *,
    eos_id: int | None = None,
    banned_ids: Sequence[int] = (),
    generator: torch.Generator | None = None,
    use_cache: bool = True,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the next token of each row, int64, (B,), with the model's logits for it, (B, V), one position at a time.

    The model sees the last context_length tokens, and keys and values are cached. Once the text is longer, old tokens are
    dropped. A dropped token shifts all others by one position, so the window is computed again. By default this happens for each
    token. With the sampler's window_step, that share of the window is dropped at once. The model then sees fewer tokens until the
    window is full again.

    Raises:
        UserError: If the model or token_ids cannot be used. It is raised at the first token.
    """
    _check_prompt(model, token_ids)
    batch_size, context_length = token_ids.shape[0], model.config.context_length
    decoder = model if isinstance(model, DecodingModel) else decoding_model(model, batch_size=batch_size)
    next_logits = _next_logits_function(decoder, token_ids, n_tokens=sampler.max_new_tokens, use_cache=use_cache)
    window = token_ids  # (B, up to context_length)
    banned = torch.tensor(banned_ids, dtype=torch.int64, device=token_ids.device) if banned_ids else None
    ended = torch.zeros(batch_size, dtype=torch.bool, device=token_ids.device)
    seen = None if sampler.repetition_penalty == 1 else tokens_seen(token_ids, model.config.vocab_size)
    window = window[:, -context_length:]
    for _ in range(sampler.max_new_tokens):
        if window.shape[1] > context_length:
            window = window[:, -sampler.kept_tokens(context_length) :]
        logits = next_logits(window)
        allowed = logits if banned is None else logits.index_fill(-1, banned, -math.inf)
        new = sample_next(allowed, sampler, seen=seen, generator=generator)
        if eos_id is not None:
            new = new.masked_fill(ended, eos_id)
            ended = ended | (new == eos_id)
        yield new, logits
        if eos_id is not None and bool(ended.all()):
            return
        window = torch.cat([window, new[:, None]], dim=1)
        if seen is not None:
            seen.scatter_(1, new[:, None], True)


def _check_prompt(model: LanguageModel | DecodingModel, token_ids: Tensor) -> None:
    check_type("model", model, (LanguageModel, DecodingModel), MODEL)
    check_type("token_ids", token_ids, Tensor, TOKEN_IDS)
    if token_ids.ndim != 2 or token_ids.shape[1] == 0:
        raise UserError(f"token_ids has shape {tuple(token_ids.shape)}: it must be (B, T) with at least one token.")
    if token_ids.dtype != torch.int64:
        raise UserError(f"token_ids has the type {token_ids.dtype}: it must be {TOKEN_IDS}.")
    if token_ids.shape[0] == 0:
        return
    lowest, highest, vocab_size = int(token_ids.min()), int(token_ids.max()), model.config.vocab_size
    if lowest < 0 or highest >= vocab_size:
        raise UserError(unknown_ids(token_ids, vocab_size=vocab_size))


def check_logits(values: Tensor) -> None:
    """Check that the highest logits, or values computed from them, are finite.

    Raises:
        UserError: If one is not finite.
    """
    if not bool(values.isfinite().all()):
        raise UserError(
            "The model's logits are not finite, because its training diverged. Train again with a lower optimizer.lr."
        )


def tokens_seen(token_ids: Tensor, vocab_size: int) -> Tensor:
    """Return whether each token of the vocabulary is in each row of token_ids, (B, T): bool, (B, V)."""
    seen = torch.zeros(token_ids.shape[0], vocab_size, dtype=torch.bool, device=token_ids.device)
    return seen.scatter_(1, token_ids, True)


def sample_next(
    logits: Tensor, sampler: SamplerConfig, *, seen: Tensor | None = None, generator: torch.Generator | None = None
) -> Tensor:
    """Sample the next token of each row: repetition_penalty first, then temperature, top_k, top_p and min_p.

    Args:
        logits: (B, V).
        seen: The tokens for repetition_penalty to act on, bool, (B, V). None means none.
        generator: Source of randomness, on the logits' device.

    Returns:
        int64, (B,).

    Raises:
        UserError: If logits are not finite.

    Source: Holtzman et al. 2019 (arXiv:1904.09751) for top_p, nucleus sampling; Nguyen et al. 2024 (arXiv:2407.01082) for min_p;
    Keskar et al. 2019 (arXiv:1909.05858) for repetition_penalty. The order is the same as in transformers.
    """
    if seen is not None and sampler.repetition_penalty != 1:
        logits = _penalize_repetitions(logits, seen, sampler.repetition_penalty)
    if sampler.temperature < LEAST_TEMPERATURE:
        likeliest = logits.argmax(dim=-1, keepdim=True)  # (B, 1); NaN counts as the highest
        check_logits(logits.gather(-1, likeliest))
        return likeliest.squeeze(-1)
    scores, ids = logits.float(), None
    if sampler.top_k is not None:
        scores, ids = scores.topk(min(sampler.top_k, scores.shape[-1]), dim=-1)  # (B, top_k), in descending order
    # Subtracting the highest score first keeps a small temperature from overflowing.
    highest = scores.max(dim=-1, keepdim=True).values  # (B, 1)
    check_logits(highest)
    probabilities = torch.softmax((scores - highest) / sampler.temperature, dim=-1)
    if sampler.top_p is not None:
        if ids is None:
            probabilities, ids = _sort_likeliest(probabilities, sampler.top_p)
        probabilities = _keep_top_p(probabilities, sampler.top_p)
    if sampler.min_p is not None:
        least = sampler.min_p * probabilities.max(dim=-1, keepdim=True).values
        probabilities = probabilities.masked_fill(probabilities < least, 0.0)
    choice = torch.multinomial(probabilities, num_samples=1, generator=generator)  # (B, 1)
    return (choice if ids is None else ids.gather(-1, choice)).squeeze(-1)


def _penalize_repetitions(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Lower the logits of tokens that are in the text, (B, V): divide positive ones by the penalty, multiply negative ones."""
    return torch.where(seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits)


def _sort_likeliest(probabilities: Tensor, top_p: float) -> tuple[Tensor, Tensor]:
    """Sort the highest probabilities in descending order until their sum reaches top_p. Usually these are only a few.

    Returns:
        The probabilities, (B, V), with zeros for unsorted ones, and the ids of the sorted ones.
    """
    vocab_size = probabilities.shape[-1]
    values, ids = probabilities.topk(min(SORTED_FIRST, vocab_size), dim=-1)
    if not bool((values.sum(dim=-1) > top_p).all()):
        return probabilities.topk(vocab_size, dim=-1)
    return F.pad(values, (0, vocab_size - values.shape[-1])), ids


def _keep_top_p(probabilities: Tensor, top_p: float) -> Tensor:
    """Set the probabilities behind the first ones whose sum reaches top_p to zero. They are in descending order, (B, V)."""
    before = probabilities.cumsum(dim=-1) - probabilities
    dropped = before >= top_p
    dropped[..., 0] = False  # Even if top_p is 0 in float32, the most likely token stays.
    return probabilities.masked_fill(dropped, 0.0)


def _next_logits_function(model: DecodingModel, prompt: Tensor, *, n_tokens: int, use_cache: bool) -> Callable[[Tensor], Tensor]:
    """Return a function from a window, (B, T), to the logits after its last token, (B, V).

    With a cache, each call reads only the new tokens. It reads the whole window after the oldest tokens have been dropped.
    """
    if not (use_cache and model.has_cache):
        return torch.inference_mode()(model.next_logits)
    cache = model.new_cache(prompt.shape[0], capacity=prompt.shape[1] + n_tokens)
    use_graph = model.device.type == "cuda" and n_tokens >= GRAPH_MIN_TOKENS
    graph: Callable[[Tensor], Tensor] | None = None

    @torch.inference_mode()
    def next_logits(window: Tensor) -> Tensor:
        nonlocal graph, use_graph
        if window.shape[1] <= cache.length:
            if window.shape[1] == model.config.context_length:
                return model.next_logits(window)  # The next token drops another one, so a cache would not help.
            cache.length, graph = 0, None
        if use_graph and cache.length > 0 and graph is None:
            try:
                graph = capture_step(model, cache)
            except RuntimeError as error:
                log.warning("No CUDA graph can be captured, so Python launches the kernels of each token (%s).", error)
                use_graph = False
        return graph(window[:, -1:]) if graph is not None else model.next_logits(window[:, cache.length :], cache=cache)

    return next_logits
