"""From logits to the next token, and from tokens to more tokens.

Shapes: B rows, T tokens given, n tokens new, V vocab_size.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from gpt_pretrain.errors import UserError
from gpt_pretrain.generation.config import SamplerConfig
from gpt_pretrain.generation.decoding import GRAPH_MIN_TOKENS, DecodingModel, graphed_step
from gpt_pretrain.model.gpt2 import GPTModel

log = logging.getLogger(__name__)


def generate(
    model: GPTModel | DecodingModel,
    token_ids: Tensor,
    max_new_tokens: int,
    *,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    eos_id: int | None = None,
    generator: torch.Generator | None = None,
    use_cache: bool = True,
) -> Tensor:
    """Continue each row of token_ids, with dropout off, and leave the model in the mode it was in.

    Args:
        model: the model; nothing in it changes. A `DecodingModel` of it spares the packing of its weights in each call.
        token_ids: int64, (B, T), T at least 1.
        max_new_tokens, temperature, top_k, top_p: as in `SamplerConfig`.
        eos_id: a row ends after this token and is filled up with it; generation ends when all rows have.
        generator: source of the random choices, on the model's device.
        use_cache: False computes the whole window for each token, to the same result.

    Returns:
        int64, (B, T + n), n at most max_new_tokens.

    Raises:
        UserError: when an argument is outside its range, or there is no token to continue.
    """
    sampler = SamplerConfig(max_new_tokens, temperature, top_k, top_p)
    new = generate_stream(model, token_ids, sampler, eos_id=eos_id, generator=generator, use_cache=use_cache)
    return torch.cat([token_ids, *(column[:, None] for column in new)], dim=1)


def generate_stream(
    model: GPTModel | DecodingModel,
    token_ids: Tensor,
    sampler: SamplerConfig,
    *,
    eos_id: int | None = None,
    generator: torch.Generator | None = None,
    use_cache: bool = True,
) -> Iterator[Tensor]:
    """What `generate` adds, as it is made: int64, (B,), one position at a time.

    The model sees the last context_length tokens. Positions are absolute, so once a text is longer than that, every token
    has moved by one and is computed anew; until then keys and values are kept.

    Raises:
        UserError: at the first token, when there is none to continue.
    """
    if token_ids.ndim != 2 or token_ids.shape[1] == 0:
        raise UserError(f"token_ids has shape {tuple(token_ids.shape)}: it must be (B, T) with at least one token to continue.")
    batch_size, context_length = token_ids.shape[0], model.config.context_length
    decoder = model if isinstance(model, DecodingModel) else DecodingModel(model, batch_size=batch_size)
    next_logits = _logits(decoder, token_ids, n_tokens=sampler.max_new_tokens, use_cache=use_cache)
    window = token_ids  # what the model sees, (B, up to context_length)
    ended = torch.zeros(batch_size, dtype=torch.bool, device=token_ids.device)
    for _ in range(sampler.max_new_tokens):
        window = window[:, -context_length:]
        new = sample_next(next_logits(window), sampler, generator=generator)
        if eos_id is not None:
            new = new.masked_fill(ended, eos_id)
            ended = ended | (new == eos_id)
        yield new
        if eos_id is not None and bool(ended.all()):
            return
        window = torch.cat([window, new[:, None]], dim=1)


def sample_next(logits: Tensor, sampler: SamplerConfig, *, generator: torch.Generator | None = None) -> Tensor:
    """Choose the next token of each row: top_k, then temperature, then top_p.

    Args:
        logits: (B, V).
        generator: source of the random choices, on the logits' device.

    Returns:
        int64, (B,).

    Source: top_p is the nucleus sampling of Holtzman et al. 2019 (arXiv:1904.09751).
    """
    if sampler.temperature == 0:
        return logits.argmax(dim=-1)
    scores, ids = logits.float(), None
    if sampler.top_k is not None or sampler.top_p is not None:
        n_kept = scores.shape[-1] if sampler.top_k is None else min(sampler.top_k, scores.shape[-1])
        scores, ids = scores.topk(n_kept, dim=-1)  # (B, n_kept), in falling order
    highest = scores.max(dim=-1, keepdim=True).values  # taken away first, so that a small temperature does not overflow
    if not bool(highest.isfinite().all()):
        raise UserError("The model's logits are not finite: its training has diverged. Train again with a lower optimizer.lr.")
    probabilities = torch.softmax((scores - highest) / sampler.temperature, dim=-1)
    if sampler.top_p is not None:
        before = probabilities.cumsum(dim=-1) - probabilities
        probabilities = probabilities.masked_fill(before >= sampler.top_p, 0.0)
    choice = torch.multinomial(probabilities, num_samples=1, generator=generator)  # (B, 1)
    return (choice if ids is None else ids.gather(-1, choice)).squeeze(-1)


def _logits(model: DecodingModel, prompt: Tensor, *, n_tokens: int, use_cache: bool) -> Callable[[Tensor], Tensor]:
    """A function from a window, (B, T), to the logits after its last token, (B, V).

    With a cache it reads what is new since the last call, until the window is full; from then on, all of it each time.
    """
    cache = model.new_cache(prompt.shape[0], capacity=prompt.shape[1] + n_tokens if use_cache else 0)
    graphs = model.device.type == "cuda" and n_tokens >= GRAPH_MIN_TOKENS
    graph: Callable[[Tensor], Tensor] | None = None

    @torch.inference_mode()
    def logits(window: Tensor) -> Tensor:
        nonlocal graph, graphs
        if not use_cache or cache.length == model.config.context_length:
            return model.next_logits(window)
        if graphs and cache.length > 0 and graph is None:
            try:
                graph = graphed_step(model, cache)
            except RuntimeError as error:
                log.warning("No CUDA graph could be recorded, so each token is computed step by step (%s).", error)
                graphs = False
        return graph(window[:, -1:]) if graph is not None else model.next_logits(window[:, cache.length :], cache)

    return logits
