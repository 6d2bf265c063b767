"""Turn the bodies of requests into work for the engine, and its updates into answers in OpenAI's form or the page's."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate
from typing import Any

from gpt_pretrain.errors import UserError
from gpt_pretrain.generation.prompts import TextModel
from gpt_pretrain.generation.token_scores import TokenScore, scores_as_json
from gpt_pretrain.serving.bodies import CompletionBody, ContinueBody, SampledBody
from gpt_pretrain.serving.engine import Engine
from gpt_pretrain.serving.requests import CompletionRequest, Update
from gpt_pretrain.system.formatting import format_count
from gpt_pretrain.tokenizers.base import Tokenizer, decode_stream
from gpt_pretrain.tokenizers.splitting import encode_prompt
from gpt_pretrain.tokenizers.unknown import unknown_prompt


class RefusedError(Exception):
    """A request that cannot be answered.

    Args:
        status: HTTP status.
        message: The reason.
        param: The field that causes the error.
    """

    def __init__(self, status: int, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.param = status, message, param


@dataclass(frozen=True)
class ReadPrompt:
    """A prompt as text and as token ids, with a sentence about parts that the vocabulary lacks, if there are any."""

    text: str
    ids: tuple[int, ...]
    warning: str | None = None


def find_model(models: Mapping[str, TextModel], name: str) -> TextModel:
    """Return a model by its name.

    Raises:
        RefusedError: If no model has this name.
    """
    if name not in models:
        raise RefusedError(404, f"There is no model {name[:100]!r}. Choose from: {', '.join(models)}.", param="model")
    return models[name]


def read_prompt(model: TextModel, prompt: str | list[int], max_tokens: int) -> ReadPrompt:
    """Return a prompt with its token ids.

    Raises:
        RefusedError: If it has no tokens, has unknown tokens, or is too long.
    """
    context, warning = model.decoder.config.context_length, None
    if isinstance(prompt, str):
        ids, warning = encode_text(prompt, model.tokenizer, param="prompt")
        if not ids and model.tokenizer.eos_id is not None:  # OpenAI does the same.
            ids = [model.tokenizer.eos_id]
    else:
        ids = prompt
        unknown = [one for one in ids if one >= model.decoder.config.vocab_size]
        if unknown:
            last = model.decoder.config.vocab_size - 1
            raise RefusedError(400, f"The model has no token {unknown[0]}: its ids are 0 to {last}.", param="prompt")
    if not ids:
        raise RefusedError(400, "The prompt is empty. Give at least one token.", param="prompt")
    if len(ids) > context or len(ids) + max_tokens > context + 1:
        raise RefusedError(
            400,
            f"The prompt has {format_count(len(ids), 'token')}. With max_tokens={max_tokens}, that exceeds this model's limit of "
            f"{context + 1} tokens. Shorten the prompt, or lower max_tokens.",
            param="max_tokens",
        )
    text = prompt if isinstance(prompt, str) else "".join(decode_stream(model.tokenizer, ids))
    return ReadPrompt(text, tuple(ids), warning)


def encode_text(text: str, tokenizer: Tokenizer, *, param: str) -> tuple[list[int], str | None]:
    """Return the token ids of a text, and a sentence about parts that the vocabulary lacks, or None.

    Args:
        param: The field with the text.

    Raises:
        RefusedError: If the text cannot be encoded.
    """
    try:
        return encode_prompt(text, tokenizer), unknown_prompt(text, tokenizer)
    except UserError as error:
        raise RefusedError(400, " ".join(error.problems), param=param) from error


def completion_requests(
    body: SampledBody, prompt: ReadPrompt, *, n: int, logprobs: int | None, echo: bool
) -> list[CompletionRequest]:
    """Return the requests for n continuations of a prompt. Each has a seed of its own."""
    seed = secrets.randbits(62) if body.seed is None else body.seed
    first = CompletionRequest(body.model, prompt.ids, body.sampler(), seed, body.stops(), logprobs, echo and logprobs is not None)
    return [replace(first, seed=(seed + number) % 2**63) for number in range(n)]


class StartedTexts:
    """Texts that the engine has begun to continue. Iterating yields their updates, each with the index of its text.

    Args:
        engine: The engine.
        requests: A request for each text.

    Raises:
        QueueFullError: If the engine has too much to do.
    """

    def __init__(self, engine: Engine, requests: Sequence[CompletionRequest]) -> None:
        self._loop, self._news = asyncio.get_running_loop(), asyncio.Queue[tuple[int, Update]]()
        self._left = len(requests)
        self._texts = engine.submit(requests, [partial(self._listen, index) for index in range(len(requests))])

    def __aiter__(self) -> StartedTexts:
        return self

    async def __anext__(self) -> tuple[int, Update]:
        if not self._left:
            raise StopAsyncIteration
        index, update = await self._news.get()
        self._left -= update.finish_reason is not None or update.error is not None
        return index, update

    def cancel(self) -> None:
        """Cancel the texts that have not ended."""
        for text in self._texts:
            text.cancel()

    def _listen(self, index: int, update: Update) -> None:
        with suppress(RuntimeError):  # The event loop has ended, so there is no client any more.
            self._loop.call_soon_threadsafe(self._news.put_nowait, (index, update))


class Choice:
    """One continuation in OpenAI's form, as it grows.

    Args:
        index: Its number in the answer.
        prompt: Its prompt.
        tokenizer: The tokenizer of its model.
        echo: Whether its text begins with the prompt.
        has_logprobs: Whether its tokens are reported.
    """

    def __init__(self, index: int, prompt: ReadPrompt, tokenizer: Tokenizer, *, echo: bool, has_logprobs: bool) -> None:
        self.index, self.prompt, self.tokenizer, self.has_logprobs = index, prompt, tokenizer, has_logprobs
        self.n_tokens = 0
        self._echoed = prompt.text if echo else ""
        self._is_first = True

    def piece(self, update: Update) -> dict[str, Any]:
        """Return an update as one of the choices in a chunk."""
        text, scores = update.text, list(update.scores)
        offsets = [len(self.prompt.text) + one for one in update.offsets]  # OpenAI counts from the prompt, even without echo.
        if self._is_first and self._echoed:
            text = self._echoed + text
            scores, offsets = [*update.prompt_scores, *scores], [*token_offsets(self.prompt.ids, self.tokenizer), *offsets]
            offsets = offsets[-len(scores) :] if scores else []
        self._is_first = False
        self.n_tokens = update.n_tokens
        logprobs = scores_as_json(scores, offsets, self.tokenizer) if self.has_logprobs else None
        return {"index": self.index, "text": text, "logprobs": logprobs, "finish_reason": update.finish_reason}


def token_offsets(token_ids: Sequence[int], tokenizer: Tokenizer) -> list[int]:
    """Return the offset of each token's text, in characters."""
    pieces = [len(piece) for piece in decode_stream(tokenizer, token_ids)]  # The last piece belongs to no complete token.
    return [0, *accumulate(pieces[:-2])] if token_ids else []


def concatenate_pieces(pieces: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the pieces of a choice as one piece."""
    whole = dict(pieces[-1])
    whole["text"] = "".join(piece["text"] for piece in pieces)
    if whole["logprobs"] is not None:
        whole["logprobs"] = {name: [one for piece in pieces for one in piece["logprobs"][name]] for name in whole["logprobs"]}
    return whole


def read_choices(body: CompletionBody) -> tuple[int, bool]:
    """Return the number of choices for each prompt, and whether each choice begins with the prompt.

    Raises:
        RefusedError: If best_of differs from n.
    """
    n = 1 if body.n is None else body.n
    if body.best_of not in (None, n):
        raise RefusedError(400, "best_of must equal n, since this server returns every text that it makes.", param="best_of")
    return n, bool(body.echo)


def describe_tokens(token_ids: Sequence[int], tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """Return tokens for the page, each with its id, its text and its bytes."""
    return [
        {"id": one, "text": (content := tokenizer.token_bytes(one)).decode(errors="replace"), "bytes": list(content)}
        for one in token_ids
    ]


def describe_scores(scores: Sequence[TokenScore], tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """Return tokens for the page, each with its log-probability, and with the likeliest alternatives and theirs."""
    described = []
    for score, token in zip(scores, describe_tokens([score.token_id for score in scores], tokenizer), strict=True):
        likely = describe_tokens(score.likely_ids, tokenizer)
        others = [one | {"logprob": value} for one, value in zip(likely, score.likely_logprobs, strict=True)]
        described.append(token | {"logprob": score.logprob, "alternatives": others})
    return described


def continue_request(body: ContinueBody, prompt: ReadPrompt) -> CompletionRequest:
    """Return the request for a body from the page."""
    return completion_requests(body, prompt, n=1, logprobs=body.alternatives, echo=body.echo)[0]
