"""The process that trains a byte-pair encoding: texts come in, tokens go out. `bpe_training` starts it.

The training needs its own process: the library cannot be stopped in another way, and returns its memory only when a process ends.
This file is run as a script and imports nothing of this package, so it starts quickly wherever the package lies. Texts and tokens
are written as their length, in four bytes, followed by their bytes. The arguments are the number of tokens, the pattern, and the
id of the parent process.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Iterator
from typing import IO

TEXTS_AT_A_TIME = 64  # the library copies this many, then counts their words


def read_frames(stream: IO[bytes]) -> Iterator[bytes]:
    """Yield the data that `write_frame` has written."""
    while header := stream.read(4):
        yield stream.read(int.from_bytes(header, "little"))


def write_frame(stream: IO[bytes], data: bytes) -> None:
    """Write bytes with their length before them."""
    stream.write(len(data).to_bytes(4, "little") + data)


def _end_with_parent(parent: int) -> None:
    """Make the kernel end this process when its parent is killed. Otherwise it would train on the texts received so far.

    Source: prctl(2), PR_SET_PDEATHSIG.
    """
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
        if os.getppid() != parent and _has_ended(parent):  # The parent may have started this process through another one.
            sys.exit(128 + signal.SIGTERM)


def _has_ended(process: int) -> bool:
    try:
        with open(f"/proc/{process}/stat", "rb") as stream:
            return stream.read().rpartition(b")")[2].split()[0] in (b"Z", b"X")
    except OSError:
        return True


def learn_tokens_of_stdin() -> None:
    """Train on the texts of standard input, and write the tokens to standard output in the order of their ids."""
    _end_with_parent(int(sys.argv[3]))
    import rustbpe

    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Python would handle it only after the training
    trainer = rustbpe.Tokenizer()
    texts = (data.decode() for data in read_frames(sys.stdin.buffer))
    trainer.train_from_iterator(texts, int(sys.argv[1]), buffer_size=TEXTS_AT_A_TIME, pattern=sys.argv[2])
    for token, _ in trainer.get_mergeable_ranks():
        write_frame(sys.stdout.buffer, bytes(token))


if __name__ == "__main__":
    learn_tokens_of_stdin()
