"""Limit the answers that a thread receives from the Hugging Face hub while it reads shards.

huggingface_hub has one HTTP client for the whole process, so the limit is set for each thread. Threads that download whole files
count the bytes themselves.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

from huggingface_hub import set_client_factory
from huggingface_hub.utils._http import default_client_factory

from gpt_pretrain.data.remote.web import MAX_ANSWER_BYTES, AnswerLimit
from gpt_pretrain.errors import UserError
from gpt_pretrain.system.hub_telemetry import disable_telemetry
from gpt_pretrain.system.urls import without_secrets

MAX_LIST_BYTES = 2 * MAX_ANSWER_BYTES  # bytes of a job's answers whose requests name no range, such as the pages of a list

Result = TypeVar("Result")

_this_thread = threading.local()


def receive_bounded(job: Callable[[], Result]) -> Result:
    """Run a job in which no answer of the hub may be longer than its request asked for, and return the result.

    Raises:
        UserError: If an answer is longer, or there are answers without end.
    """
    _install()
    _this_thread.is_bounded, _this_thread.listed = True, 0
    try:
        return job()
    finally:
        _this_thread.is_bounded = False


@cache
def _install() -> None:
    set_client_factory(_client)
    disable_telemetry()


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
        _this_thread.listed += 0 if limit.has_range else sum(map(len, pieces))
        if _this_thread.listed > MAX_LIST_BYTES:
            raise UserError(
                f"{without_secrets(str(answer.url))}: the hub's list of files has more than {MAX_LIST_BYTES:,} bytes."
            )
        answer._content = b"".join(pieces)  # The library's own `read` keeps the body here (httpx2 2.16).
