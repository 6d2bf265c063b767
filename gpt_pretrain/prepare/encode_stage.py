"""From files to pieces: the long part of a preparation, on all cores, which goes on where it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from gpt_pretrain.prepare.encoding import encode
from gpt_pretrain.prepare.items import Encoded, Item, ReadPosition
from gpt_pretrain.prepare.pieces import REJECTS, Pieces
from gpt_pretrain.prepare.pool import Workers
from gpt_pretrain.prepare.progress import Progress
from gpt_pretrain.prepare.reading import batches
from gpt_pretrain.prepare.rejects import collect, refusal, too_many
from gpt_pretrain.prepare.stopping import Stop

Reader = Callable[[ReadPosition], Iterator[Item]]  # all items from a place on


@dataclass(frozen=True)
class Encoding:
    """How documents become tokens.

    Args:
        tokenizer: its name.
        itemsize: bytes a token.
        text_field: where a record has its text.
        max_rejected: share of the records.
        rejected: the file for rejected records.
    """

    tokenizer: str
    itemsize: int
    text_field: str
    max_rejected: float
    rejected: Path


def encode_all(reader: Reader, encoding: Encoding, folder: Path, *, workers: Workers, progress: Progress, stop: Stop) -> None:
    """Encode all that a reader gives and that the pieces in a folder do not hold already.

    Raises:
        UserError: when too many records are bad, or the files changed.
        SystemExit: when a signal asked for that.
    """
    pieces = Pieces(folder, itemsize=encoding.itemsize)
    try:
        if pieces.state.complete:
            return
        progress.encoding(pieces.state.counts)
        work: Callable[[list[Item]], Encoded] = partial(encode, tokenizer_name=encoding.tokenizer, text_field=encoding.text_field)
        jobs = batches(reader(pieces.state.after))
        for items, encoded in workers.map(work, jobs, size=lambda items: sum(item.size for item in items)):
            pieces.add(encoded, items[-1].after)
            progress.encoded(pieces.state.counts, read=items[-1].read)
            if stop.signal:
                pieces.close_piece()
                stop.check()
            if too_many(pieces.state.counts, encoding.max_rejected, at_end=False):
                pieces.close_piece()
                collect([folder / REJECTS], encoding.rejected)
                raise refusal(pieces.state.counts, encoding.rejected, max_rejected=encoding.max_rejected)
        pieces.close_piece(complete=True)
    finally:
        pieces.close()
