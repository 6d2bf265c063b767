"""Time limits for work that may wait for somebody else."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

Result = TypeVar("Result")


def run_with_timeout(job: Callable[[], Result], *, seconds: float, setting: str = "") -> Result:
    """Return the result of a job, but stop waiting for it after some seconds.

    Time limits of network libraries start anew with each byte, so a server could send one byte per minute forever.

    Args:
        setting: The setting by which users change the limit, for the message.

    Raises:
        TimeoutError: If the job takes longer. It continues in a daemon thread, and its result is dropped.
    """
    done: Future[Result] = Future()

    def run() -> None:
        try:
            done.set_result(job())
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    try:
        return done.result(seconds)
    except TimeoutError:
        if done.done():  # the job itself has raised this error
            raise
        raise TimeoutError(f"no answer within {seconds:g} seconds{f' ({setting})' if setting else ''}") from None
