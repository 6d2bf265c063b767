"""The HTTP client for shards on the Hugging Face hub: a thread that reads them receives no more than it has asked for.

huggingface_hub has one client for the whole process. Other threads, which download whole files, count the bytes themselves.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

from huggingface_hub import set_client_factory
from huggingface_hub.utils._http import default_client_factory

from gpt_pretrain.data.web import AnswerLimit

Result = TypeVar("Result")

_this_thread = threading.local()


def receive_bounded(job: Callable[[], Result]) -> Result:
    """Return the result of a job, in which each answer of the hub is received only up to the length that was asked for.

    Raises:
        UserError: If one is longer.
    """
    _install()
    _this_thread.is_bounded = True
    try:
        return job()
    finally:
        _this_thread.is_bounded = False


@cache
def _install() -> None:
    set_client_factory(_client)


def _client() -> Any:
    client = default_client_factory()
    client.event_hooks["response"].append(_limit)
    return client


def _limit(answer: Any) -> None:
    """Receive the body of an answer within its limit, before the HTTP library receives all of it."""
    if getattr(_this_thread, "is_bounded", False):
        limit, pieces = AnswerLimit(str(answer.url), answer.request.headers.get("Range", "")), list[bytes]()
        for piece in answer.iter_bytes():
            limit.add(piece)
            pieces.append(piece)
        answer._content = b"".join(pieces)  # as `read` of the library keeps it (httpx2 2.16)
