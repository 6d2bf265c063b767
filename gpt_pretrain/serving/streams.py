"""Send answers while they are made, and stop when the client goes away."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import suppress
from typing import Any

from fastapi.responses import Response
from starlette.types import Receive, Scope, Send

QUIET_SECONDS = 15.0  # After this time, a comment is sent, since proxies close quiet connections (nginx after 60 s).
COMMENT = b": the text goes on\n\n"


class EventStream(Response):
    """Server-sent events. If the client goes away, or takes too long, the source of the events is closed at once.

    Args:
        events: The events as JSON.
        seconds: Time for all events.
        done: Whether "[DONE]" follows the last event, as in OpenAI's interface.
        close: Called at the end, also if sending was stopped.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[Any, None], *, seconds: float, done: bool, close: Callable[[], None]) -> None:
        super().__init__(headers={"cache-control": "no-store", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self.events, self.seconds, self.done, self.close = events, seconds, done, close
        self._is_quiet = True

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def pump() -> None:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            comments = asyncio.ensure_future(self._send_comments(send))
            try:
                async for event in self.events:
                    self._is_quiet = False
                    content = f"data: {json.dumps(event)}\n\n".encode()
                    await send({"type": "http.response.body", "body": content, "more_body": True})
            finally:
                comments.cancel()
            end = b"data: [DONE]\n\n" if self.done else b""
            await send({"type": "http.response.body", "body": end, "more_body": False})

        try:
            await unless_gone(receive, pump(), seconds=self.seconds)
        finally:
            self.close()
            await self.events.aclose()

    async def _send_comments(self, send: Send) -> None:
        """Send a comment whenever nothing has been sent for a while. Clients skip comments."""
        while True:
            self._is_quiet = True
            await asyncio.sleep(QUIET_SECONDS)
            if self._is_quiet:
                await send({"type": "http.response.body", "body": COMMENT, "more_body": True})


async def unless_gone(receive: Receive, work: Awaitable[Any], *, seconds: float) -> Any:
    """Do some work, and return its result. If the client goes away or the time is over, stop and return None."""

    async def gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    task, watch = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait({task, watch}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:  # The server may end while this waits.
        watch.cancel()
        is_given_up = not task.done()
        task.cancel()
    if is_given_up:
        with suppress(asyncio.CancelledError):
            await task
        return None
    return task.result()
