"""Receive a file of the Hugging Face hub, up to the size that the hub states, and with resumption."""

from __future__ import annotations

import time
from contextlib import closing
from pathlib import Path
from typing import IO, Any

from huggingface_hub import get_session
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import hf_raise_for_status
from tqdm import tqdm

from gpt_pretrain.errors import UserError
from gpt_pretrain.system.deadlines import run_with_timeout
from gpt_pretrain.system.urls import without_secrets

PARTIAL_CONTENT = 206
MAX_ERROR_BYTES = 10_000  # bytes of an answer that is an error
MAX_REDIRECTS = 20
MAX_TRIES = 5  # attempts in a row that receive no new bytes
PAUSE_SECONDS = 1.0
READ_TIMEOUT_SECONDS = 30.0  # time without new bytes; huggingface_hub sets no limit
ANSWER_SECONDS = 120.0  # time for the headers of an answer, including all redirects


def receive_file(url: str, part: Path, *, size: int, headers: dict[str, str], label: str) -> None:
    """Append the missing bytes of a URL to a file, and try again if the connection breaks.

    huggingface_hub's own download keeps nothing of an incomplete piece of 10 MB, and nothing of a killed process.

    Raises:
        UserError: If the server sends more than the size. The file is deleted.
    """
    if part.is_symlink():
        part.unlink()
    tries, farthest = MAX_TRIES, 0
    with open(part, "ab") as stream, tqdm(total=size, desc=label, unit="B", unit_scale=True) as bar:
        while (start := stream.tell()) < size:
            bar.n, failure = start, None
            try:
                _append(url, stream, bar, headers=headers | ({"Range": f"bytes={start}-"} if start else {}), size=size)
            except UserError:
                part.unlink()
                raise
            except (HfHubHTTPError, OSError):
                raise
            # A broken connection raises one of many errors of the HTTP library.
            except Exception as error:
                failure = error
            stream.flush()
            tries = MAX_TRIES if stream.tell() > farthest else tries - 1
            farthest = max(farthest, stream.tell())
            if tries == 0:
                raise failure or UserError(
                    f"{label}: the server sends less than the {size:,} bytes that it states. Try again later."
                )
            if failure is not None:
                time.sleep(PAUSE_SECONDS)


def _append(url: str, stream: IO[bytes], bar: tqdm[Any], *, headers: dict[str, str], size: int) -> None:
    with closing(run_with_timeout(lambda: _open_answer(url, headers), seconds=ANSWER_SECONDS)) as answer:
        # A server that ignores the range sends the whole file.
        if answer.status_code != PARTIAL_CONTENT:
            stream.seek(0)
            stream.truncate(0)
            bar.reset(size)
        for piece in answer.iter_raw():  # Nothing is decompressed: a few bytes could become gigabytes.
            if stream.tell() + len(piece) > size:
                raise UserError(
                    f"{bar.desc}: the server sends more than the {size:,} bytes that it states. The file was discarded."
                )
            stream.write(piece)
            bar.update(len(piece))


def _open_answer(url: str, headers: dict[str, str]) -> Any:
    """Follow the redirects of a request, and return the last answer before its body is read.

    The HTTP library itself would read the whole body of each redirect, which may have no end. Other hosts do not get the token.

    Raises:
        HfHubHTTPError: If the answer is an error.
        UserError: If there are too many redirects.
    """
    session = get_session()
    request = session.build_request("GET", url, headers=headers, timeout=READ_TIMEOUT_SECONDS)
    for _ in range(MAX_REDIRECTS):
        answer = session.send(request, stream=True, follow_redirects=False)
        if answer.next_request is None:
            _check_status(answer)
            return answer
        answer.close()
        request = answer.next_request
    raise UserError(f"{without_secrets(url)} leads to more than {MAX_REDIRECTS} redirects. Nothing was downloaded.")


def _check_status(answer: Any) -> None:
    """Raise huggingface_hub's exception if an answer is an error. The library itself would read its whole body.

    Raises:
        HfHubHTTPError: If it is an error.
    """
    if not answer.is_error:
        return
    beginning = next(answer.iter_raw(MAX_ERROR_BYTES), b"")
    headers = {name: value for name, value in answer.headers.items() if not name.startswith(("content-", "transfer-"))}
    hf_raise_for_status(type(answer)(answer.status_code, headers=headers, content=beginning, request=answer.request))
