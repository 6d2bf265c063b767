"""Answers that are sent while they are made, and that end with their client."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable
from contextlib import suppress
from typing import Any

from fastapi.responses import Response
from starlette.types import Receive, Scope, Send


class EventStream(Response):
    """Server-sent events. When the client goes away, or takes too long, their source is closed at once.

    Args:
        events: The events as JSON.
        seconds: Time for all of them.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[Any, None], *, seconds: float, done: bool) -> None:
        super().__init__(headers={"cache-control": "no-store", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self.events, self.seconds, self.done = events, seconds, done

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def pump() -> None:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            async for event in self.events:
                content = f"data: {json.dumps(event)}\n\n".encode()
                await send({"type": "http.response.body", "body": content, "more_body": True})
            end = b"data: [DONE]\n\n" if self.done else b""
            await send({"type": "http.response.body", "body": end, "more_body": False})

        try:
            await unless_gone(receive, pump(), seconds=self.seconds)
        finally:
            await self.events.aclose()


async def unless_gone(receive: Receive, work: Awaitable[Any], *, seconds: float) -> Any:
    """Do some work unless the client goes away or the time is over, and return its result; None if it was given up."""

    async def gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    task, watch = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    await asyncio.wait({task, watch}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    watch.cancel()
    if not task.done():
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        return None
    return task.result()


async def begun(events: AsyncGenerator[Any, None]) -> AsyncGenerator[Any, None]:
    """Return events after their first one has come, so that a refusal still has a status of its own."""
    first = asyncio.ensure_future(anext(events))
    started = asyncio.Event()
    first.add_done_callback(lambda _: started.set())
    with suppress(TimeoutError):
        await asyncio.wait_for(started.wait(), 0.02)
    if first.done() and (error := first.exception()) is not None and not isinstance(error, StopAsyncIteration):
        raise error

    async def rest() -> AsyncGenerator[Any, None]:
        try:
            yield await first
            async for event in events:
                yield event
        finally:
            first.cancel()
            with suppress(asyncio.CancelledError, StopAsyncIteration, Exception):
                await first
            await events.aclose()

    return rest()
