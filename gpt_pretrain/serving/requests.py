"""The requests of clients to the engine, and the updates that they get while their text grows."""

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
    """There are too many requests already; a later try may succeed."""


@dataclass(frozen=True)
class ServingLimits:
    """The amounts that the server takes on at a time.

    Args:
        rows: Texts that are decoded together.
        queue: Texts that may wait for a row.
        seconds: Time for a text, with its time in the queue.
    """

    rows: int = 16
    queue: int = 64
    seconds: float = 300.0


@dataclass(frozen=True)
class CompletionRequest:
    """A text to continue.

    Args:
        model: Name of the model.
        prompt_ids: Token ids, at least one; with the new tokens at most one more than the model's context_length.
        sampler: How the tokens are chosen.
        seed: Seed of the choices.
        stop: Texts that end the continuation.
        logprobs: Alternatives of each token to report with its log-probability; None reports neither.
        scores_prompt: Report the prompt's tokens too; needs logprobs.
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
        text: More of the text.
        scores: Further tokens that belong to the text, if they were asked for.
        offsets: Where the text of each of these tokens begins in the continuation, in characters.
        prompt_scores: The prompt's tokens, in the first update, if they were asked for.
        finish_reason: "stop" or "length" in the last update.
        n_tokens: New tokens so far.
        error: What went wrong; there is no further update.
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
        uses: Texts that still need it.
        cache: Its keys and values, once they are computed.
        logits: The logits after it, (1, V).
        scores: The scores of its tokens, if they were asked for.
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
        listener: Called with each update, in the thread of the engine; it must return at once.
        seconds: Time for the job from now on.
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
        """Have the engine give up this text before its next step; it may be called from any thread."""
        self.is_cancelled = True
