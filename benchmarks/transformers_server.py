"""transformers' `generate` behind FastAPI and uvicorn, one text at a time: python -m benchmarks.transformers_server."""

from __future__ import annotations

import json
import queue
import socket
import threading
from collections.abc import Iterator
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from pydantic import BaseModel
from transformers import GPT2LMHeadModel
from transformers.generation.streamers import BaseStreamer

from benchmarks.decoding import GPT2
from benchmarks.training import transformers_config
from gpt_pretrain.tokenizers.build import build_tokenizer


class Body(BaseModel):
    """The fields of OpenAI's completions that the clients send."""

    model: str
    prompt: str
    max_tokens: int
    temperature: float
    stream: bool


class TokenQueue(BaseStreamer):  # type: ignore[misc]
    """Pass on tokens to another thread. None means the end."""

    def __init__(self) -> None:
        self.tokens: queue.Queue[int | None] = queue.Queue()
        self._is_prompt = True

    def put(self, value: torch.Tensor) -> None:
        """Accept the prompt first, and then each token."""
        if not self._is_prompt:
            self.tokens.put(int(value))
        self._is_prompt = False

    def end(self) -> None:
        """Accept the end."""
        self.tokens.put(None)


def build_app() -> FastAPI:
    """Return the application."""
    app, lock, tokenizer = FastAPI(), threading.Lock(), build_tokenizer("gpt2")
    model: Any = GPT2LMHeadModel(transformers_config(GPT2)).eval()

    def generate(body: Body, streamer: TokenQueue) -> None:
        prompt = torch.tensor([tokenizer.encode(body.prompt)])
        fixed = {"max_new_tokens": body.max_tokens, "min_new_tokens": body.max_tokens}
        with lock, torch.inference_mode():
            model.generate(prompt, **fixed, do_sample=False, pad_token_id=0, streamer=streamer)

    def events(body: Body) -> Iterator[str]:
        streamer = TokenQueue()
        threading.Thread(target=generate, args=(body, streamer), daemon=True).start()
        for number, token in enumerate(iter(streamer.tokens.get, None), start=1):
            text = tokenizer.token_bytes(token).decode(errors="replace")
            choice = {"index": 0, "text": text, "finish_reason": "length" if number == body.max_tokens else None}
            yield f"data: {json.dumps({'choices': [choice]})}\n\n"

    @app.get("/v1/models")
    def models() -> dict[str, Any]:
        return {"data": [{"id": "gpt2"}]}

    @app.post("/v1/completions")
    def completions(body: Body) -> StreamingResponse:
        return StreamingResponse(events(body), media_type="text/event-stream")

    return app


def main() -> None:
    """Serve on any free port until interrupted."""
    config = uvicorn.Config(build_app(), log_level="warning")
    opened = socket.socket()
    opened.bind(("127.0.0.1", 0))
    opened.listen()  # requests wait from now on
    print(f"http://127.0.0.1:{opened.getsockname()[1]}/", flush=True)
    uvicorn.Server(config).run(sockets=[opened])


if __name__ == "__main__":
    main()
