"""The HTTP client for shards behind a URL: it reads no more than it has asked for, and checks redirects.

aiohttp is imported here alone: it comes with the packages for remote data.
"""

from __future__ import annotations

import asyncio
import re
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote, urljoin

import aiohttp

from gpt_pretrain.data.web import check_redirect, describe_excess
from gpt_pretrain.errors import UserError

LINK = re.compile(r"""\bhref=["']([^"'<>\s]{1,300})["']""", re.IGNORECASE)
MAX_ANSWER_BYTES = 1 << 24  # of an answer to a request that does not name a length, such as one for the list of a folder's files


async def open_session(**options: Any) -> aiohttp.ClientSession:
    """Return a client for fsspec's file system of web servers that checks redirects and the length of answers."""
    redirects = aiohttp.TraceConfig()
    redirects.on_request_redirect.append(_check_redirect)
    # A compressed answer could be a thousand times as long as what has been asked for.
    plain: dict[str, Any] = {"auto_decompress": False, "headers": {"Accept-Encoding": "identity"}}
    return aiohttp.ClientSession(response_class=BoundedResponse, trace_configs=[redirects], **(plain | options))


def names_in_page(page: bytes, *, url: str) -> list[str]:
    """Return the names of the files beside a page that lists them, as web servers make it for a folder.

    fsspec has a function for this too. Its regular expression takes half a minute for 1,600 spaces (fsspec 2026.9).

    Args:
        url: The folder's URL.
    """
    folder, names = f"{url}/", set()
    for link in LINK.findall(page.decode(errors="replace")):
        target = urljoin(folder, link)
        if target.startswith(folder):
            names.add(unquote(target[len(folder) :]))
    return sorted(names)


class BoundedResponse(aiohttp.ClientResponse):
    """A response that is read only up to the number of bytes that its request asked for."""

    async def read(self) -> bytes:
        """Return the body.

        Raises:
            UserError: If it is longer than it should be.
        """
        if self._body is None:
            span = re.fullmatch(r"bytes=(\d+)-(\d+)", self.request_info.headers.get("Range", ""))
            limit = MAX_ANSWER_BYTES if span is None else int(span[2]) - int(span[1]) + 1
            pieces, length = [], 0
            async for piece in self.content.iter_any():
                length += len(piece)
                if length > limit:
                    self.close()
                    raise UserError(describe_excess(str(self.url), span is not None, limit))
                pieces.append(piece)
            self._body = b"".join(pieces)
        return self._body


async def _check_redirect(
    _session: aiohttp.ClientSession, _context: SimpleNamespace, request: aiohttp.TraceRequestRedirectParams
) -> None:
    headers, origin = request.response.headers, str(request.url)
    target = urljoin(origin, headers.get("Location") or headers.get("URI") or "")
    await asyncio.get_running_loop().run_in_executor(None, check_redirect, origin, target)
