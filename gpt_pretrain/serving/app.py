"""The HTTP interface: OpenAI's completions and models, the routes of the page, health and metrics."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from starlette.exceptions import HTTPException

from gpt_pretrain.generation.prompts import TextModel
from gpt_pretrain.serving.bodies import CompletionBody, ContinueBody, TokensBody, describe_error
from gpt_pretrain.serving.completions import (
    Choice,
    ReadPrompt,
    RefusedError,
    StartedTexts,
    completion_requests,
    concatenate_pieces,
    continue_request,
    describe_scores,
    describe_tokens,
    encode_text,
    find_model,
    read_choices,
    read_prompt,
)
from gpt_pretrain.serving.engine import Engine
from gpt_pretrain.serving.guards import error_body
from gpt_pretrain.serving.json_route import JsonRoute
from gpt_pretrain.serving.metrics import metrics_text
from gpt_pretrain.serving.page import ModelFacts, add_page
from gpt_pretrain.serving.requests import OUT_OF_TIME, QueueFullError
from gpt_pretrain.serving.streams import EventStream, unless_gone
from gpt_pretrain.tokenizers.base import Tokenizer

RETRY_SECONDS = 2  # time after which a client may try again
SENDING_SECONDS = 60.0  # time for a slow client to receive an answer, beyond the time limit of a text
QUICK_SIZE = 2000  # characters or tokens that are encoded right away, since starting a thread takes longer
MAX_DESCRIBED = 10_000  # tokens of a text that are described, or the model's context length if that is larger
NO_SUCH_PATH = "There is no such path. Texts are continued at /v1/completions; there is no chat, and there are no embeddings."
BUSY = "The server has too many requests. Try again later."
T = TypeVar("T")

ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"description": reason}
    for status, reason in {
        400: "a field is wrong",
        404: "no such model",
        413: "too large",
        429: "too many requests",
        500: "the text failed",
        504: "out of time",
    }.items()
}


def build_app(engine: Engine, facts: Mapping[str, ModelFacts]) -> FastAPI:
    """Return the application that answers with an engine's models.

    Args:
        facts: Facts about the models, by name.
    """
    app = FastAPI(title="gpt-pretrain", docs_url=None, redoc_url=None)
    app.router.route_class = JsonRoute
    _add_errors(app)
    add_page(app, engine.models, facts)
    _add_state(app, engine)
    _add_models(app, engine.models)
    _add_completions(app, engine)
    _add_page_routes(app, engine)
    return app


def _add_state(app: FastAPI, engine: Engine) -> None:
    """Add the routes that describe the state of the server."""

    @app.get("/health")
    async def health() -> JSONResponse:
        """Report whether the engine is running."""
        return JSONResponse({"status": "ok"} if engine.is_alive else {"status": "ended"}, 200 if engine.is_alive else 503)

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> PlainTextResponse:
        """Return counters in Prometheus' text format."""
        return PlainTextResponse(metrics_text(engine), media_type="text/plain; version=0.0.4")


def _add_models(app: FastAPI, models: Mapping[str, TextModel]) -> None:
    """Add OpenAI's list of models."""
    created = int(time.time())

    def model_entry(name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": created, "owned_by": "gpt-pretrain"}

    @app.get("/v1/models")
    async def list_models() -> dict[str, Any]:
        """List the models."""
        return {"object": "list", "data": [model_entry(name) for name in models]}

    @app.get("/v1/models/{name:path}", responses=ERRORS)
    async def one_model(name: str) -> dict[str, Any]:
        """Describe a model."""
        find_model(models, name)
        return model_entry(name)


def _add_completions(app: FastAPI, engine: Engine) -> None:
    """Add OpenAI's completions."""
    seconds = engine.limits.seconds + SENDING_SECONDS
    limit = engine.limits.rows + engine.limits.queue

    @app.post("/v1/completions", responses=ERRORS)
    async def completions(body: CompletionBody, request: Request) -> Response:
        """Continue prompts, as OpenAI's interface does."""
        model, (n, echo) = find_model(engine.models, body.model), read_choices(body)
        if len(body.prompts()) * n > limit:
            raise RefusedError(400, f"This server takes at most {limit} texts at a time.", param="prompt")
        max_tokens = body.sampler().max_new_tokens
        given = body.prompts()
        prompts = await _in_thread_if_long(
            lambda: [read_prompt(model, one, max_tokens) for one in given], size=sum(map(len, given))
        )
        if not prompts:
            raise RefusedError(400, "There is no prompt. Give a text, or a list of texts or token ids.", param="prompt")
        answer = _Answer(engine, body, prompts, n=n, echo=echo)
        if body.stream:
            return EventStream(answer.chunks(), seconds=seconds, done=True, close=answer.texts.cancel)
        try:
            made = await unless_gone(request.receive, answer.whole(), seconds=seconds)
        finally:
            answer.texts.cancel()
        return JSONResponse(made) if made is not None else JSONResponse(error_body(504, OUT_OF_TIME), 504)


def _add_page_routes(app: FastAPI, engine: Engine) -> None:
    """Add the routes of the page: the tokens of a text, and a continuation with the alternatives of each token."""
    seconds = engine.limits.seconds + SENDING_SECONDS

    @app.post("/api/tokens", responses=ERRORS)
    async def tokens(body: TokensBody) -> dict[str, Any]:
        """Return the tokens of a text: ids, texts and bytes."""
        model = find_model(engine.models, body.model)
        token_ids, warning = await _in_thread_if_long(
            lambda: encode_text(body.text, model.tokenizer, param="text"), size=len(body.text)
        )
        limit = max(MAX_DESCRIBED, model.decoder.config.context_length)
        if len(token_ids) > limit:
            message = f"The text has {len(token_ids):,} tokens. At most {limit:,} are described at a time."
            raise RefusedError(400, message, param="text")
        return {"tokens": describe_tokens(token_ids, model.tokenizer), "warning": warning}

    @app.post("/api/continue", responses=ERRORS)
    async def go_on(body: ContinueBody) -> Response:
        """Continue a prompt with the alternatives of each token, as events."""
        model = find_model(engine.models, body.model)
        max_tokens = body.sampler().max_new_tokens
        prompt = await _in_thread_if_long(lambda: read_prompt(model, body.prompt, max_tokens), size=len(body.prompt))
        asked = continue_request(body, prompt)
        texts = StartedTexts(engine, [asked])
        events = _page_events(texts, model.tokenizer, seed=asked.seed)
        return EventStream(events, seconds=seconds, done=False, close=texts.cancel)


async def _in_thread_if_long(work: Callable[[], T], *, size: int) -> T:
    """Return the result of some work on a text. If the text is long, the work is done in a thread.

    Args:
        size: The text's number of characters or tokens.
    """
    return work() if size <= QUICK_SIZE else await asyncio.to_thread(work)


async def _page_events(texts: StartedTexts, tokenizer: Tokenizer, *, seed: int) -> AsyncGenerator[dict[str, Any], None]:
    """Yield the news of a text for the page while the text grows."""
    async for _, update in texts:
        if update.error is not None:
            yield error_body(500, update.error)
            return
        event: dict[str, Any] = {"text": update.text, "tokens": describe_scores(update.scores, tokenizer)}
        if update.prompt_scores:
            event["prompt"] = describe_scores(update.prompt_scores, tokenizer)
        if update.finish_reason is not None:
            event |= {"finish_reason": update.finish_reason, "seed": seed}
        yield event


class _Answer:
    """The answer to a request for completions, whole or in chunks."""

    def __init__(self, engine: Engine, body: CompletionBody, prompts: list[ReadPrompt], *, n: int, echo: bool) -> None:
        self.body, self.prompts = body, prompts
        tokenizer = engine.models[body.model].tokenizer
        requests = [
            one for prompt in prompts for one in completion_requests(body, prompt, n=n, logprobs=body.logprobs, echo=echo)
        ]
        self.choices = [
            Choice(index, prompts[index // n], tokenizer, echo=echo, has_logprobs=body.logprobs is not None)
            for index in range(len(requests))
        ]
        self.head = {
            "id": f"cmpl-{uuid.uuid4().hex}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": body.model,
        }
        if warnings := list(dict.fromkeys(prompt.warning for prompt in prompts if prompt.warning is not None)):
            self.head["warnings"] = warnings
        self.texts = StartedTexts(engine, requests)

    async def whole(self) -> dict[str, Any]:
        pieces: list[list[dict[str, Any]]] = [[] for _ in self.choices]
        async for index, update in self.texts:
            if update.error is not None:
                raise RefusedError(500, update.error)
            pieces[index].append(self.choices[index].piece(update))
        return self.head | {"choices": [concatenate_pieces(one) for one in pieces], "usage": self._usage()}

    async def chunks(self) -> AsyncGenerator[dict[str, Any], None]:
        counts = self.body.stream_options is not None and self.body.stream_options.include_usage
        usage: dict[str, Any] = {"usage": None} if counts else {}
        async for index, update in self.texts:
            if update.error is not None:
                yield error_body(500, update.error)
                return
            yield self.head | {"choices": [self.choices[index].piece(update)]} | usage
        if counts:
            yield self.head | {"choices": [], "usage": self._usage()}

    def _usage(self) -> dict[str, int]:
        read, made = sum(len(prompt.ids) for prompt in self.prompts), sum(choice.n_tokens for choice in self.choices)
        return {"prompt_tokens": read, "completion_tokens": made, "total_tokens": read + made}


def _field_name(error: Mapping[str, Any]) -> str:
    """Return the path to the field of a body that has an error, or an empty text if the whole body has it."""
    return "" if error["type"] == "json_invalid" else ".".join(map(str, error["loc"][1:]))


def _add_errors(app: FastAPI) -> None:
    """Answer all errors in OpenAI's form. Only the names of fields are repeated from what a client sent."""

    def refused(_: Request, error: RefusedError) -> JSONResponse:
        return JSONResponse(error_body(error.status, error.message, param=error.param), error.status)

    def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        found = [(_field_name(one), describe_error(one)) for one in error.errors()[:5]]
        text = "; ".join(f"{name or 'the body'}: {message}" for name, message in found)
        shown = text.encode("utf-8", "replace").decode()[:2000]
        return JSONResponse(error_body(400, shown, param=found[0][0][:100].encode("utf-8", "replace").decode() or None), 400)

    def other(_: Request, error: HTTPException) -> JSONResponse:
        message = NO_SUCH_PATH if error.status_code == 404 else str(error.detail)
        return JSONResponse(error_body(error.status_code, message), error.status_code, headers=error.headers)

    def busy(_: Request, __: QueueFullError) -> JSONResponse:
        return JSONResponse(error_body(429, BUSY), 429, headers={"Retry-After": str(RETRY_SECONDS)})

    handlers: list[tuple[type[Exception], Callable[..., JSONResponse]]] = [
        (RefusedError, refused),
        (RequestValidationError, invalid),
        (HTTPException, other),
        (QueueFullError, busy),
    ]
    for kind, handler in handlers:
        app.add_exception_handler(kind, handler)
