"""Check the host, origin, key and size of every request before the application sees it."""

from __future__ import annotations

import asyncio
import hmac
import json
import re
from collections.abc import Callable, Sequence
from functools import partial

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_BODY_BYTES, MAX_HELD_BYTES = 4_000_000, 64_000_000  # of one body, and of all whose requests are under way
TOO_LARGE = f"The request has more than {MAX_BODY_BYTES:,} bytes, the most that this server accepts."
TOO_MANY = "The requests that the server is working on are too large together. Try again later."
BODY_SECONDS = 30.0  # time for a body to arrive
LOOPBACK = ("127.0.0.1", "localhost", "::1")
OPEN_PATHS = ("/", "/health")  # paths that need no key; the page itself asks for the key
HOST = re.compile(r"(?:\[([0-9a-f:.]+)\]|([^\[\]:@/]+?)\.?)(?::[0-9]*)?")  # a Host header in lower case


class Guards:
    """An ASGI application that checks requests before it passes them on to another application.

    Args:
        app: The other application.
        hosts: Allowed names in the Host header; None allows all. A page elsewhere could lead a browser here under another name.
        api_key: The secret that a client must send; None admits everybody who can reach the server.
        origins: Other origins whose pages may send requests.
    """

    def __init__(self, app: ASGIApp, *, hosts: Sequence[str] | None, api_key: str | None, origins: Sequence[str] = ()) -> None:
        self.app, self.hosts, self.api_key, self.origins = app, hosts, api_key, set(origins)
        self._held = 0  # bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        if (refused := self._refusal(scope)) is not None:
            await send_error(send, *refused)
            return
        sizes: list[int] = []
        try:
            await self.app(scope, _limited(receive, partial(self._hold, sizes)), send)
        finally:
            self._held -= sum(sizes)

    def _hold(self, sizes: list[int], size: int) -> None:
        """Count a part of a body.

        Args:
            sizes: Those of the body's parts so far.
            size: In bytes.
        """
        sizes.append(size)
        self._held += size
        if self._held > MAX_HELD_BYTES:
            raise HTTPException(429, TOO_MANY, headers={"connection": "close"})

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        """Return the status and the message for a request that is refused, or None."""
        headers: dict[str, list[str]] = {}
        for name, value in scope["headers"]:
            headers.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1"))
        hosts = headers.get("host", [])
        if len(hosts) != 1:
            return 400, "A request must have exactly one Host header."
        if self.hosts is not None and host_name(hosts[0]) not in self.hosts:
            return 403, f"This server is not {hosts[0][:100]!r}. Use the address that it printed, or name a proxy's: cors=[...]."
        for origin in headers.get("origin", []):
            if origin not in self.origins and origin.partition("://")[2] != hosts[0]:
                return 403, "Pages of other origins may not use this server. Start it with 'cors=[ORIGIN]' to allow one."
        allowed = scope["path"] in OPEN_PATHS or scope["method"] == "OPTIONS" or self._has_key(headers.get("authorization", []))
        if not allowed:
            return 401, "This server needs its API key in the header Authorization: Bearer KEY."
        length = headers.get("content-length", ["0"])[0]
        if length.isascii() and length.isdecimal() and int(length[:20]) > MAX_BODY_BYTES:
            return 413, TOO_LARGE
        return None

    def _has_key(self, values: Sequence[str]) -> bool:
        if self.api_key is None:
            return True
        given = [value.partition(" ") for value in values]
        return any(
            kind.lower() == "bearer" and hmac.compare_digest(key.strip().encode("latin-1"), self.api_key.encode())
            for kind, _, key in given
        )


async def send_error(send: Send, status: int, message: str) -> None:
    """Send an error in OpenAI's form, and close the connection, since a body may still be on its way."""
    content = json.dumps(error_body(status, message)).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode()), (b"connection", b"close")]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": content})


def error_body(status: int, message: str, *, param: str | None = None) -> dict[str, object]:
    """Return the JSON of an error in OpenAI's form."""
    kinds = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
    kind = kinds.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": None}}


def _limited(receive: Receive, hold: Callable[[int], None]) -> Receive:
    """Wrap the source of a request's body with limits on its size and its time.

    Args:
        hold: Called with the size of each part.
    """
    size, is_complete = 0, False
    end = asyncio.get_running_loop().time() + BODY_SECONDS

    async def limited() -> Message:
        nonlocal size, is_complete
        if is_complete:  # Only the end of the connection can follow.
            return await receive()
        try:
            async with asyncio.timeout_at(end):
                message = await receive()
        except TimeoutError as error:
            late = f"The request did not arrive within {BODY_SECONDS:g} seconds."
            raise HTTPException(408, late, headers={"connection": "close"}) from error
        part = len(message.get("body", b""))
        size += part
        hold(part)
        if size > MAX_BODY_BYTES:
            raise HTTPException(413, TOO_LARGE, headers={"connection": "close"})
        is_complete = not message.get("more_body", False)
        return message

    return limited


def host_name(header: str) -> str | None:
    """Return the name in a Host header, without the port and the brackets of IPv6. Return None if the header is not valid."""
    found = HOST.fullmatch(header.lower())
    return found and (found[1] or found[2])
