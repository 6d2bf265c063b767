"""Download files from web servers, within limits. A redirect must not lead to a weaker protocol or further into a network.

Without this rule, a server could make the program ask for pages of this machine or of the network around it. Such pages are often
not protected, because nobody outside of the network can reach them.
"""

from __future__ import annotations

import errno
import ipaddress
import re
import socket
import time
from typing import TYPE_CHECKING
from urllib.parse import urljoin, urlsplit

from tqdm import tqdm

from gpt_pretrain.errors import UserError
from gpt_pretrain.system.deadlines import run_with_timeout
from gpt_pretrain.system.urls import without_secrets

if TYPE_CHECKING:
    import requests

MAX_DOWNLOAD_BYTES = 10_000_000_000
MAX_DOWNLOAD_SECONDS = 6 * 3600.0
READ_TIMEOUT_SECONDS = 30
CHUNK_BYTES = 1 << 16

# Other names are refused, since programs disagree on the host that they mean, for example with a backslash, a percent sign or a
# letter beyond ASCII.
PLAIN_HOST = re.compile(r"[a-z0-9._-]{1,253}|[0-9a-f:.]{2,45}")
LENGTH = re.compile("[0-9]{1,18}")
RANGE = re.compile("bytes=([0-9]+)-([0-9]+)")
MAX_ANSWER_BYTES = 1 << 24  # bytes of an answer whose request names no length, such as a list of files
LOCAL, THIS_MACHINE, THIS_LINK = 1, 2, 3  # how far inside a network an address is; 0 is the internet
NO_NETWORK = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN)
MAX_CAUSES = 10


def why_unreachable(error: BaseException | None) -> str | None:
    """Return why a server could not be reached at all; None for an error of another kind.

    Each HTTP library wraps the error of the operating system in others of its own.
    """
    for _ in range(MAX_CAUSES):
        if error is None:
            break
        if isinstance(error, socket.gaierror):
            return f"the name of the server has no address here ({error.strerror})"
        if isinstance(error, OSError) and error.errno == errno.ECONNREFUSED:
            return "nothing answers at this address (connection refused)"
        if isinstance(error, OSError) and error.errno in NO_NETWORK:
            return f"the network is not connected ({error.strerror})"
        error = error.__cause__ or error.__context__
    return None


def check_redirect(origin: str, target: str) -> None:
    """Check that a server may send a request on to another URL.

    Raises:
        UserError: If the target is less protected than the origin, or further inside a network.
    """
    if (problem := _redirect_problem(origin, target)) is not None:
        raise UserError(
            f"{without_secrets(origin)} redirects to {without_secrets(target)}, {problem}. It was not followed. "
            "If that address is the right one, give it yourself."
        )


def _redirect_problem(origin: str, target: str) -> str | None:
    """Return what is wrong with the target of a redirect, or None if it may be followed."""
    try:
        here, there = urlsplit(origin), urlsplit(target)
    except ValueError:  # such as a bracket that is not closed
        return "an address that is not valid"
    if "\\" in target:  # some programs take it for a slash
        return "an address with a backslash"
    if there.scheme not in ("http", "https") or (here.scheme, there.scheme) == ("https", "http"):
        return f"an address with {there.scheme}://, which {here.scheme}:// must not lead to"
    if here.hostname == there.hostname:
        return None
    if PLAIN_HOST.fullmatch(there.hostname or "") is None:
        return "an address whose host is no plain name"
    if max(_depths(there.hostname)) > min(_depths(here.hostname)):
        return "an address of this machine or of a network that the server itself is not in"
    return None


class AnswerLimit:
    """Counts the bytes of an answer, which must not be longer than its request asked for.

    Args:
        url: The URL of the request.
        asked: The request's header Range; empty if it names no range.

    Attributes:
        has_range: Whether the request names a range.
    """

    def __init__(self, url: str, asked: str) -> None:
        span = RANGE.fullmatch(asked)
        self._url, self.has_range = url, span is not None
        self._limit = MAX_ANSWER_BYTES if span is None else int(span[2]) - int(span[1]) + 1
        self._length = 0

    def add(self, piece: bytes) -> None:
        """Count a piece of the body.

        Raises:
            UserError: If the body is longer than it should be.
        """
        self._length += len(piece)
        if self._length <= self._limit:
            return
        if self.has_range:
            raise UserError(
                f"{without_secrets(self._url)}: the server ignores the Range header and sends whole files, so shards cannot be "
                "read from it. Copy them to a local disk, or use another server."
            )
        raise UserError(
            f"{without_secrets(self._url)}: the server sends more than {self._limit:,} bytes where a short answer was expected."
        )


def download_file(url: str, output_file: str, _pooch: object) -> None:
    """Download a URL to a file, as pooch calls its downloaders.

    Raises:
        OSError: If the server refuses, or the connection breaks.
        UserError: If the file is larger than MAX_DOWNLOAD_BYTES or takes longer than MAX_DOWNLOAD_SECONDS, or a redirect leads
            where it must not.
    """
    end = time.monotonic() + MAX_DOWNLOAD_SECONDS
    try:
        run_with_timeout(lambda: _receive(url, output_file, end=end), seconds=MAX_DOWNLOAD_SECONDS)
    except TimeoutError:
        raise _exceeded(url) from None


def _receive(url: str, output_file: str, *, end: float) -> None:
    import requests  # 12 MB and 0.1 s, for downloads only

    hooks = {"response": _check_response}
    with requests.get(url, stream=True, timeout=READ_TIMEOUT_SECONDS, hooks=hooks) as answer, open(output_file, "wb") as stream:
        answer.raise_for_status()
        stated = answer.headers.get("Content-Length", "")
        total = int(stated) or None if LENGTH.fullmatch(stated) else None  # whatever else a server may say
        with tqdm(total=total, unit="B", unit_scale=True) as bar:
            for piece in answer.iter_content(CHUNK_BYTES):
                stream.write(piece)
                bar.update(len(piece))
                if stream.tell() > MAX_DOWNLOAD_BYTES or time.monotonic() > end:
                    raise _exceeded(url)


def _exceeded(url: str) -> UserError:
    return UserError(
        f"{without_secrets(url)}: the download exceeded {MAX_DOWNLOAD_BYTES // 10**9} GB or "
        f"{MAX_DOWNLOAD_SECONDS / 3600:g} hours. Nothing was kept. Download it by other means, and give it with data.path=FILE."
    )


def _check_response(answer: requests.Response, **_options: object) -> None:
    if answer.is_redirect:
        check_redirect(answer.url, urljoin(answer.url, answer.headers["Location"]))
        answer.close()  # requests would read the whole body, which may have no end, before it follows the redirect


def _depths(host: str | None) -> list[int]:
    """Return how far inside a network each address of a host is. A host without an address counts as outside."""
    try:
        found = socket.getaddrinfo(host, None, proto=socket.IPPROTO_TCP)
    except (OSError, UnicodeError):  # the latter for a name that no host can have
        return [0]
    return [_depth(ipaddress.ip_address(str(address[0]).partition("%")[0])) for *_, address in found] or [0]


def _depth(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> int:
    address = getattr(address, "ipv4_mapped", None) or address
    if address.is_link_local:
        return THIS_LINK
    if address.is_loopback or address.is_unspecified:
        return THIS_MACHINE
    return 0 if address.is_global else LOCAL
