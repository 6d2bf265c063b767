"""The HTTP client for shards in S3 or a store with its protocol: it reads no more than it has asked for.

aiobotocore is imported here alone: it comes with the packages for remote data.
"""

from __future__ import annotations

import io
from typing import Any

from aiobotocore.httpsession import AIOHTTPSession  # type: ignore[import-untyped]

from gpt_pretrain.data.http_session import read_bounded


class BoundedS3Session(AIOHTTPSession):  # type: ignore[misc]
    """A client that receives an answer only up to the number of bytes that its request asked for."""

    async def send(self, request: Any) -> Any:
        """Send a request, and return the answer with its body.

        Raises:
            UserError: If the body is longer than it should be.
        """
        request.stream_output = True  # otherwise the body would be received at once, however long it is
        answer = await super().send(request)
        asked = request.headers.get("Range", b"")
        async with answer.raw as raw:
            body = await read_bounded(raw, asked.decode() if isinstance(asked, bytes) else asked)
        answer.raw = _Received(body, url=raw.url)
        return answer


class _Received:
    """Stands for an answer, and for the stream of its body, after all of it has been received."""

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
