"""Routes that parse the JSON of a body with limits, and without holding up other requests."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.responses import Response

from gpt_pretrain.system.json_files import check_pairs, count_outer_marks
from gpt_pretrain.system.reading import DamagedFileError

QUICK_BYTES = 20_000  # bytes that are parsed right away, since starting a thread takes longer
MAX_PARTS = 20_000  # lists, objects and names in a body; one with 10,000 prompts of token ids has 10,001 lists


class JsonRoute(APIRoute):
    """A route whose body is parsed by `parse_body`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def checked(request: Request) -> Response:
            return await handle(_JsonRequest(request.scope, request.receive))

        return checked


class _JsonRequest(Request):
    async def json(self) -> Any:
        content = await self.body()
        return parse_body(content) if len(content) <= QUICK_BYTES else await asyncio.to_thread(parse_body, content)


def parse_body(content: bytes) -> Any:
    """Parse the JSON of a body.

    Raises:
        HTTPException: If it is not JSON, if an object has a name twice, or if there are far more lists, objects or names than any
            request needs.
    """
    try:
        text = content.decode(json.detect_encoding(content), "surrogatepass")
        if len(text) > MAX_PARTS:
            _check_parts(text.encode("utf-8", "surrogatepass"))
        return json.loads(text, object_pairs_hook=_as_object)
    except DamagedFileError as error:
        raise HTTPException(400, f"The body cannot be used: {error}.") from error
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, "The body must be JSON.") from error


def _check_parts(data: bytes) -> None:
    if sum(map(data.count, (b"[", b"{", b":"))) > MAX_PARTS and count_outer_marks(data, b"[{:") > MAX_PARTS:
        raise DamagedFileError(f"it has more than {MAX_PARTS:,} lists, objects and names")


def _as_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    check_pairs(pairs)
    return dict(pairs)
