"""Tokenized text on disk: made once per text, tokenizer and split, then read window by window.

A token file consists of little-endian token ids, two bytes each if the vocabulary allows it, else four. Its length and checksum
are in split.json, which is signed: what another user, or the author of an archive, has put into the cache is made again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from gpt_pretrain.data.files import LocalFiles
from gpt_pretrain.data.private_cache import (
    CacheNotWritableError,
    create_private,
    not_writable,
    open_cache,
    open_own,
    temporary_cache,
)
from gpt_pretrain.data.token_stream import Shard, TokenSplit, TokenStream
from gpt_pretrain.errors import UserError
from gpt_pretrain.system.files import replacing, sync_file
from gpt_pretrain.system.json_files import parse_json
from gpt_pretrain.system.signing import has_signature, signature
from gpt_pretrain.texts.inputs import FileStamp
from gpt_pretrain.texts.text import Text, TextCounts, check_text_unchanged, sha256_without_blanks
from gpt_pretrain.tokenizers.base import END_OF_TEXT, Tokenizer, token_itemsize
from gpt_pretrain.tokenizers.fast_encoding.fast_encoder import WORTHWHILE, DifferentIdsError, FastEncoder
from gpt_pretrain.tokenizers.splitting import adds_blank, encode_pieces
from gpt_pretrain.tokenizers.unknown import UnknownText

SPLIT, SIGNATURE = "split.json", "signature"
WITHOUT_BLANKS = "without_blanks"  # A key of split.json: markers with only white space between them enclose no document.
PURPOSE = "token cache"
MAX_SPLIT_BYTES = 10_000
CACHE_VERSION = 1  # increase it when a change makes old token files invalid

log = logging.getLogger(__name__)


def tokenize_text(text: Text, tokenizer: Tokenizer, *, train_ratio: float, cache_dir: Path) -> TokenSplit:
    """Split a text by characters and tokenize both parts, or load them from the cache.

    Args:
        train_ratio: Share of the characters, from the start of the text, to train on.
        cache_dir: Folder of the cache. Each split has a subfolder named after a hash of its inputs.

    Raises:
        CacheNotWritableError: If cache_dir cannot be written.
        UserError: If the text is empty, unreadable or not UTF-8.
    """
    stamps, text_sha256 = text.stamps(), text.sha256()
    inputs = [CACHE_VERSION, text_sha256, tokenizer.name, tokenizer.vocab_size, train_ratio]
    if tokenizer.unknown_id is not None:
        inputs.append("unknown text is counted")  # Files of earlier versions lack the count.
    if adds_blank(tokenizer):
        inputs.append("one blank before a text")  # Earlier versions put one before each part of a text.
    if tokenizer.eos_id is None:
        inputs.append("no token between documents")  # Earlier versions took the marker there as text.
    folder = open_cache(cache_dir, "tokens") / hashlib.sha256(json.dumps(inputs).encode()).hexdigest()[:32]
    if (cached := _load(folder)) is not None:
        return cached
    if folder.exists():
        log.warning("The token cache %s %s and will be rebuilt.", folder, _problem(folder))
    build = partial(_build, folder, text, tokenizer, text_sha256, stamps, train_ratio=train_ratio)
    try:
        try:
            return build()
        except DifferentIdsError as error:
            log.warning("%s. The text is encoded again without gigatoken, which takes longer.", error)
            return build(use_library=False)
    except UserError:
        check_text_unchanged(stamps)  # Whatever is wrong with a file that is still being written, this is the cause.
        raise
    except OSError as error:
        raise not_writable(folder.parent, error) from error


def tokenize_anyway(text: Text, tokenizer: Tokenizer, *, train_ratio: float, cache_dir: Path) -> TokenSplit:
    """Tokenize a text as `tokenize_text` does, in a temporary folder if cache_dir cannot be written.

    Raises:
        UserError: If the text is empty, unreadable or not UTF-8, or no folder can be written.
    """
    try:
        return tokenize_text(text, tokenizer, train_ratio=train_ratio, cache_dir=cache_dir)
    except CacheNotWritableError as error:
        # Each process has a folder of its own: without a key on disk, none would trust another one's tokens.
        folder = temporary_cache()
        log.warning("%s Until then, the tokens are kept in %s, and the next start makes them again.", error, folder)
        return tokenize_text(text, tokenizer, train_ratio=train_ratio, cache_dir=folder)


def training_pieces(text: Text, *, train_ratio: float) -> Iterator[str]:
    """Yield the training set of a text, piece by piece.

    Raises:
        UserError: If the text is empty, unreadable or not UTF-8.
    """
    yield from _divide(text, int(train_ratio * _count_text(text).characters))[0]


def sample_split(text: Text, *, train_ratio: float, train: int, held_out: int, parts: int) -> tuple[str, str, int]:
    """Read parts of the training and the validation set of a text, evenly spread over each.

    Args:
        train: The most characters to read of the training set.
        held_out: The most characters to read of the validation set.
        parts: Number of parts of each.

    Returns:
        The parts of the training set, those of the validation set, and the bytes of the whole training set.

    Raises:
        UserError: If the text is empty, unreadable or not UTF-8.
    """
    characters = _count_text(text).characters
    cut = _split_position(text, int(train_ratio * characters))
    n_bytes, samples = 0, (list[str](), list[str]())
    spans = [_spread(0, cut, train, parts), _spread(cut, characters, held_out, parts)]
    start = 0
    for piece in text.pieces():
        for sample, chosen in zip(samples, spans, strict=True):
            sample += [piece[max(begin - start, 0) : max(end - start, 0)] for begin, end in chosen]
        n_bytes += len(piece[: max(cut - start, 0)].encode())
        start += len(piece)
    return "".join(samples[0]), "".join(samples[1]), n_bytes


def _spread(begin: int, end: int, most: int, parts: int) -> list[tuple[int, int]]:
    """Return evenly spread spans that have at most `most` characters together, or the whole range if it is no longer."""
    if end - begin <= most:
        return [(begin, end)]
    starts = (begin + n * (end - begin) // parts for n in range(parts))
    return [(start, start + most // parts) for start in starts]


def _load(folder: Path) -> TokenSplit | None:
    """Return the token files in a folder, or None if they are missing, damaged or not written by this user."""
    try:
        fields, is_signed = _read_fields(folder)
        if not is_signed:
            return None
        if fields.get("markers") != 0 and not fields.get(WITHOUT_BLANKS):
            return None  # An earlier version kept blank documents between two markers.
        split = _describe(folder, fields)
        intact = _is_intact(folder, split.train) and _is_intact(folder, split.val)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    return split if intact else None


def _problem(folder: Path) -> str:
    """Return why `_load` does not use a folder, as a part of a sentence."""
    with suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
        if not _read_fields(folder)[1]:
            return "was changed, or made with another home folder or by another user,"
    return "is damaged or outdated"


def _read_fields(folder: Path) -> tuple[dict[str, Any], bool]:
    """Return the fields of a folder's split.json, and whether the user's key has signed them."""
    with open_own(folder / SPLIT) as stream:
        fields = parse_json(stream.read(MAX_SPLIT_BYTES))
    signed = bytes.fromhex(str(fields.pop(SIGNATURE)))
    return fields, has_signature(_signed_text(folder.name, fields), signed, purpose=PURPOSE)


def _describe(folder: Path, fields: dict[str, Any]) -> TokenSplit:
    """Return the token files in a folder as its split.json describes them."""
    files, fields = LocalFiles(folder), {name: value for name, value in fields.items() if name != WITHOUT_BLANKS}
    train, val = (Shard(files, f"{part}.bin", **fields.pop(part)) for part in ("train", "val"))
    return TokenSplit(train=train, val=val, **fields)


def _signed_text(name: str, fields: dict[str, Any]) -> bytes:
    """Return the bytes that are signed for a split.json in the folder of this name."""
    return json.dumps([name, fields], sort_keys=True).encode()


def _count_text(text: Text) -> TextCounts:
    """Return the amounts of a text.

    Raises:
        UserError: If the text is empty.
    """
    counts = TextCounts()
    for _ in text.pieces(counts):
        pass
    if counts.characters == 0:
        names = ", ".join(map(str, text.files[:3])) + (", ..." if len(text.files) > 3 else "")
        raise UserError(f"The text is empty: {names}. Give some text with data.path=FILE, DIRECTORY or GLOB.")
    return counts


def _describe_text(counts: TextCounts, text_sha256: str) -> dict[str, Any]:
    """Return the fields of split.json that describe a text with these amounts."""
    sha256 = sha256_without_blanks(text_sha256) if counts.blanks else text_sha256
    amounts = {"characters": counts.own_characters, "markers": counts.markers, "without_text": counts.without_text}
    return {"text_sha256": sha256} | amounts


def _build(
    folder: Path,
    text: Text,
    tokenizer: Tokenizer,
    text_sha256: str,
    stamps: list[FileStamp],
    *,
    train_ratio: float,
    use_library: bool = True,
) -> TokenSplit:
    """Tokenize a text into a folder, which appears complete or not at all.

    Args:
        stamps: Stamps of the text's files, taken before they were first read.
        use_library: Whether to encode a large text with the fast library.

    Raises:
        DifferentIdsError: If the fast library gives other ids than the tokenizer.
        UserError: If the text is empty, unreadable or not UTF-8, or changes while it is read.
    """
    counts = _count_text(text)
    fields = _describe_text(counts, text_sha256) | {WITHOUT_BLANKS: True}
    parts = _divide(text, int(train_ratio * counts.characters))
    encoder = FastEncoder(tokenizer, use_library=use_library and counts.characters >= WORTHWHILE)
    try:
        with replacing(folder, keep_existing=lambda: _load(folder) is not None) as scratch:
            scratch.mkdir(mode=0o700)
            fields |= _write_parts(scratch, parts, tokenizer, encoder)
            check_text_unchanged(stamps)
            signed = signature(_signed_text(folder.name, fields), purpose=PURPOSE).hex()
            with create_private(scratch / SPLIT) as stream:
                stream.write(json.dumps(fields | {SIGNATURE: signed}, indent=1).encode())
    except OSError:
        # Another process may have replaced a damaged folder at the same time.
        if (built := _load(folder)) is None:
            raise
        return built
    return _describe(folder, fields)


def _write_parts(
    folder: Path, parts: tuple[Iterator[str], Iterator[str]], tokenizer: Tokenizer, encoder: FastEncoder
) -> dict[str, Any]:
    """Write the tokens of the training set and of the validation set, and return the fields of split.json about them."""
    itemsize, unknown = token_itemsize(tokenizer.vocab_size), UnknownText(tokenizer)
    encoder.compare_next()
    fields: dict[str, Any] = {}
    for name, pieces in zip(("train", "val"), parts, strict=True):
        token_ids = encode_pieces(pieces, tokenizer, unknown=unknown, encode=encoder.encode)
        fields[name] = _write_tokens(folder / f"{name}.bin", token_ids, itemsize)
    if tokenizer.unknown_id is not None:
        fields |= {"unknown_tokens": unknown.tokens, "unknown_example": unknown.example}
    return fields


def _divide(text: Text, cut: int) -> tuple[Iterator[str], Iterator[str]]:
    """Return the pieces of a text before and after a position. The text is read once, so they must be used in this order.

    If an `<|endoftext|>` contains the position, the first part ends before it.
    """
    pieces, rest = text.pieces(), list[str]()

    def before() -> Iterator[str]:
        held, start, reach = "", 0, len(END_OF_TEXT) - 1
        for piece in pieces:
            held += piece
            if start + len(held) >= cut + reach:
                break
            yield held[: -2 * reach]
            start, held = start + len(held[: -2 * reach]), held[-2 * reach :]
        first = max(cut - start - reach, 0)
        found = held.find(END_OF_TEXT, first, cut - start + reach)
        end = found if first <= found < cut - start else cut - start
        yield held[:end]
        rest.append(held[end:])

    return before(), (piece for source in (rest, pieces) for piece in source)


def _split_position(text: Text, cut: int) -> int:
    """Return the position to split at: `cut`, or the start of an `<|endoftext|>` that contains it."""
    before = max(cut - len(END_OF_TEXT) + 1, 0)
    around = "".join(_characters_between(text, before, cut + len(END_OF_TEXT) - 1))
    found = around.find(END_OF_TEXT)
    return before + found if 0 <= found < cut - before else cut


def _characters_between(text: Text, begin: int, end: int) -> Iterator[str]:
    """Yield the characters of a text from begin to end, excluding end."""
    start = 0
    for piece in text.pieces():
        if start + len(piece) > begin:
            yield piece[max(begin - start, 0) : end - start]
        start += len(piece)
        if start >= end:
            return


def _write_tokens(path: Path, batches: Iterable[np.ndarray], itemsize: int) -> dict[str, object]:
    digest, count = hashlib.sha256(), 0
    with create_private(path) as stream:
        for batch in batches:
            data = batch.astype(f"<u{itemsize}").tobytes()
            digest.update(data)
            stream.write(data)
            count += len(batch)
        sync_file(stream)
    return {"count": count, "itemsize": itemsize, "sha256": digest.hexdigest()}


def _is_intact(folder: Path, file: TokenStream) -> bool:
    """Return whether a token file exists with the expected size and checksum."""
    assert isinstance(file, Shard)
    with open_own(folder / file.name) as stream:
        same_length = os.fstat(stream.fileno()).st_size == file.n_bytes
        return same_length and hashlib.file_digest(stream, "sha256").hexdigest() == file.sha256
