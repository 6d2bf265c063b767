"""Requests to the engine, and the updates that clients get while their texts grow."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gpt_pretrain.generation.config import SamplerConfig
from gpt_pretrain.generation.prompts import TextModel
from gpt_pretrain.generation.token_scores import TokenScore
from gpt_pretrain.model.kv_cache import KVCache

OUT_OF_TIME, STOPPED = "The request took longer than the server allows.", "The server is stopping."


class QueueFullError(Exception):
    """There are too many requests already. A later attempt may succeed."""


@dataclass(frozen=True)
class ServingLimits:
    """Limits on the work that the server accepts at a time.

    Args:
        rows: Texts that are decoded together.
        queue: Texts that may wait for a row.
        seconds: Time for a text, including its time in the queue.
    """

    rows: int = 16
    queue: int = 64
    seconds: float = 300.0


@dataclass(frozen=True)
class CompletionRequest:
    """A text to continue.

    Args:
        model: Name of the model.
        prompt_ids: At least one token id. Together with the new tokens, at most context_length + 1.
        sampler: How the tokens are chosen.
        seed: Seed of the choices.
        stop: Texts that end the continuation.
        logprobs: Number of alternatives to report for each token, with log-probabilities. None reports no log-probabilities.
        scores_prompt: Whether to report the prompt's tokens too, which needs logprobs.
    """

    model: str
    prompt_ids: tuple[int, ...]
    sampler: SamplerConfig
    seed: int
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    scores_prompt: bool = False


@dataclass(frozen=True)
class Update:
    """News of a text since the last update.

    Args:
        text: The next part of the text.
        scores: The next tokens of the text, if they were requested.
        offsets: The offset of each of these tokens in the continuation, in characters.
        prompt_scores: The prompt's tokens, in the first update, if they were requested.
        finish_reason: "stop" or "length" in the last update.
        n_tokens: New tokens so far.
        error: A message if the text has failed. No further update follows.
    """

    text: str = ""
    scores: tuple[TokenScore, ...] = ()
    offsets: tuple[int, ...] = ()
    prompt_scores: tuple[TokenScore, ...] = ()
    finish_reason: str | None = None
    n_tokens: int = 0
    error: str | None = None


@dataclass
class SharedPrompt:
    """The prompt of one or more texts, which is computed once.

    Args:
        uses: Number of texts that still need it.
        cache: Its keys and values, once they are computed.
        logits: The logits after it, (1, V).
        scores: The scores of its tokens, if they were requested.
    """

    uses: int
    cache: KVCache | None = None
    logits: Tensor | None = None
    scores: tuple[TokenScore, ...] = ()


class QueuedText:
    """A request in the engine.

    Args:
        request: The request.
        model: Its model.
        prompt: Its prompt, shared with the other texts of the same request.
        listener: Gets each update in the thread of the engine. It must return at once.
        seconds: Time for the text from now on.
    """

    def __init__(
        self,
        request: CompletionRequest,
        model: TextModel,
        prompt: SharedPrompt,
        listener: Callable[[Update], None],
        *,
        seconds: float,
    ) -> None:
        self.request, self.model, self.prompt, self.listener = request, model, prompt, listener
        self.deadline = time.monotonic() + seconds
        self.generator = torch.Generator(device=model.device).manual_seed(request.seed)
        self.is_cancelled = self.has_failed = False

    def cancel(self) -> None:
        """Let the engine drop this text before its next step. Any thread may call this."""
        self.is_cancelled = True
