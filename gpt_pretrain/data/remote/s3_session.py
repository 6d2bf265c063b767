"""The HTTP client for shards in S3, or in a store with the same protocol. It reads no more than it has asked for.

Only this file imports aiobotocore, which is an optional package.
"""

from __future__ import annotations

import io
from typing import Any

from aiobotocore.httpsession import AIOHTTPSession  # type: ignore[import-untyped]

from gpt_pretrain.data.remote.http_session import read_bounded


class BoundedS3Session(AIOHTTPSession):  # type: ignore[misc]
    """A client that receives an answer only up to the number of bytes that its request asked for."""

    async def send(self, request: Any) -> Any:
        """Send a request, and return the answer with its body.

        Raises:
            UserError: If the body is longer than it should be.
        """
        request.stream_output = True  # Otherwise the whole body would be received at once, however long it is.
        answer = await super().send(request)
        asked = request.headers.get("Range", b"")
        async with answer.raw as raw:
            body = await read_bounded(raw, asked.decode() if isinstance(asked, bytes) else asked)
        answer.raw = _Received(body, url=raw.url)
        return answer


class _Received:
    """Stands for an answer, and for the stream of its body, once the body has been received."""

    def __init__(self, body: bytes, *, url: Any) -> None:
        self._stream = io.BytesIO(body)
        self.content = self
        self.url = url

    async def read(self, amount: int = -1) -> bytes:
        return self._stream.read(amount)

    def at_eof(self) -> bool:
        return self._stream.tell() == len(self._stream.getbuffer())

    def close(self) -> None:
        """Do nothing: the connection has been given back."""
