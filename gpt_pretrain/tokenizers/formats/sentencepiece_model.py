"""Convert SentencePiece's `.model` files to the fields of a tokenizer.json, so that no other library reads a stranger's file.

Source: sentencepiece_model.proto of google/sentencepiece, and transformers' convert_slow_tokenizer.py for the merges.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from gpt_pretrain.system.reading import DamagedFileError
from gpt_pretrain.system.shown_values import short_repr
from gpt_pretrain.tokenizers.formats.definition import MAX_VOCABULARY, added_token
from gpt_pretrain.tokenizers.formats.user_pieces import SPACE, check_always_chosen, check_normalized, splits_at

UNIGRAM, BPE = 1, 2  # values of model_type
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED = 1, 2, 3, 4, 5  # types of pieces
MAX_FIELD = 1000  # Number of a field. The numbers used here have at most two digits.
MAX_PIECE, MAX_CHARACTERS = 1000, 20_000_000  # characters of one piece, and of all
# The largest sum of the squares of the pieces' lengths: each piece may be cut anywhere into a merge. 256,000 pieces of 14
# characters reach it.
MAX_SQUARES = 50_000_000
MAX_MERGED = 16_000_000  # Bytes of all merges. They take fifteen times as much memory. Gemma's 514,906 merges have four million.


@dataclass(frozen=True)
class Piece:
    """A token with its type and its score. A likelier token has a higher score."""

    text: str
    score: float = 0.0
    kind: int = 1


def sentencepiece_fields(content: bytes) -> tuple[dict[str, Any], str | None]:
    """Return the fields of a tokenizer.json for the content of a SentencePiece model, and its end of text.

    Raises:
        DamagedFileError: If it is damaged, or if the tokenizers library cannot run it with the same ids.
    """
    pieces, trainer, rules = _parse_model(content)
    unk_id, eos_id = int(trainer.get(40, 0)), int(trainer.get(42, 2))
    if not 0 <= unk_id < len(pieces) or pieces[unk_id].kind != UNKNOWN:
        raise DamagedFileError("it has no token for unknown text")
    kind, byte_fallback = int(trainer.get(3, UNIGRAM)), bool(trainer.get(35, 0))
    prefix, squeeze = bool(rules.get(3, 1)), bool(rules.get(4, 1))
    _check_supported(pieces, kind, rules, is_suffix=bool(trainer.get(24, 0)))
    user = [piece.text for piece in pieces if piece.kind == USER_DEFINED]
    # If no spaces are added or removed, the user-defined tokens are found in the unchanged text.
    divides = bool(user) and (prefix or squeeze or any(SPACE in piece for piece in user))
    if divides:
        check_normalized(user, has_table=bool(rules.get(2)), squeeze=squeeze)
    if kind == UNIGRAM:
        vocab: Any = [[piece.text, piece.score] for piece in pieces]
        if divides:
            check_always_chosen(user, {piece.text: piece.score for piece in pieces if piece.kind == NORMAL})
        model = {"type": "Unigram", "vocab": vocab, "unk_id": unk_id, "byte_fallback": byte_fallback}
    else:
        vocab = {piece.text: token_id for token_id, piece in enumerate(pieces)}
        model = {"type": "BPE", "vocab": vocab, "merges": _merges(pieces, vocab), "unk_token": pieces[unk_id].text}
        model |= {"fuse_unk": True, "byte_fallback": byte_fallback} | ({"ignore_merges": True} if divides else {})
    fields: dict[str, Any] = {
        "model": model,
        "normalizer": _normalizer(rules.get(2, b""), prefix=prefix, squeeze=squeeze),
        "decoder": DECODER,
    }
    kinds = (UNKNOWN, CONTROL) if divides else (UNKNOWN, CONTROL, USER_DEFINED)
    added = [added_token(piece.text, token_id) for token_id, piece in enumerate(pieces) if piece.kind in kinds]
    if divides:
        fields["pre_tokenizer"] = splits_at(user)
    end = pieces[eos_id].text if 0 <= eos_id < len(pieces) and pieces[eos_id].kind == CONTROL else None
    return fields | {"added_tokens": added}, end


DECODER = {
    "type": "Sequence",
    "decoders": [{"type": "Replace", "pattern": {"String": SPACE}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}],
}


def _check_supported(pieces: list[Piece], kind: int, rules: dict[int, Any], *, is_suffix: bool) -> None:
    """Check that the tokenizers library gives the same ids as SentencePiece.

    Raises:
        DamagedFileError: If it may give other ids.
    """
    if kind not in (UNIGRAM, BPE):
        raise DamagedFileError("it is neither a unigram model nor a byte-pair encoding")
    if is_suffix or not rules.get(5, 1):
        raise DamagedFileError("it marks spaces in a way that this program does not support")
    if any(piece.kind == UNUSED for piece in pieces):
        raise DamagedFileError("it has unused tokens, which would get other ids here; give the model's tokenizer.json instead")


def _normalizer(charsmap: Any, *, prefix: bool, squeeze: bool) -> dict[str, Any]:
    steps: list[dict[str, Any]] = []
    if charsmap:
        steps.append({"type": "Precompiled", "precompiled_charsmap": base64.b64encode(charsmap).decode()})
    if squeeze:
        # SentencePiece removes spaces, and the signs for them at the end. The library's Strip would also remove line feeds, which
        # may be tokens. The pattern tries each run of spaces once, so it takes linear time.
        steps.append({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "})
        edges = rf"\A |(?<![ {SPACE}])[ {SPACE}]+\z"
        steps.append({"type": "Replace", "pattern": {"Regex": edges}, "content": ""})
    if prefix:
        steps.append({"type": "Prepend", "prepend": SPACE})
    steps.append({"type": "Replace", "pattern": {"String": " "}, "content": SPACE})
    return {"type": "Sequence", "normalizers": steps}


def _merges(pieces: list[Piece], vocab: dict[str, int]) -> list[list[str]]:
    """Return the merges that lead to the pieces of a byte-pair encoding. The merges of the likeliest piece come first.

    Raises:
        DamagedFileError: If there could be far too many.
    """
    if sum(len(piece.text) ** 2 for piece in pieces) > MAX_SQUARES:
        raise DamagedFileError("its tokens are far too long")
    merges, bytes_left = [], MAX_MERGED
    for piece in pieces:
        cuts = ((piece.text[:cut], piece.text[cut:]) for cut in range(1, len(piece.text)))
        found = [(left, right) for left, right in cuts if left in vocab and right in vocab]
        bytes_left -= len(found) * len(piece.text.encode())
        if bytes_left < 0:
            raise DamagedFileError("its tokens can be made of each other in far too many ways")
        found.sort(key=lambda pair: (vocab[pair[0]], vocab[pair[1]]))
        merges += [(piece.score, left, right) for left, right in found]
    merges.sort(key=lambda merge: (merge[0], len(merge[1]), len(merge[2])), reverse=True)
    return [[left, right] for _, left, right in merges]


def _parse_model(content: bytes) -> tuple[list[Piece], dict[int, Any], dict[int, Any]]:
    """Return the pieces, and the fields of the trainer's settings and of the normalization by their numbers."""
    pieces, trainer, rules = list[Piece](), dict[int, Any](), dict[int, Any]()
    for number, value in _fields(content):
        if number == 1:
            fields = dict(_fields(_as_bytes(value)))
            try:
                text = _as_bytes(fields.get(1, b"")).decode()
            except UnicodeDecodeError as error:
                raise DamagedFileError("one of its tokens is not UTF-8") from error
            score, kind = fields.get(2, 0.0), fields.get(3, 1)
            if not text or len(text) > MAX_PIECE or not isinstance(score, float) or not isinstance(kind, int) or score != score:
                raise DamagedFileError(f"its token {short_repr(text)} is empty, too long or without a valid score")
            pieces.append(Piece(text, score, kind))
        elif number in (2, 3):
            (trainer if number == 2 else rules).update(_fields(_as_bytes(value)))
    if not 0 < len(pieces) <= MAX_VOCABULARY or sum(len(piece.text) for piece in pieces) > MAX_CHARACTERS:
        raise DamagedFileError(f"it has {len(pieces):,} tokens, but must have 1 to {MAX_VOCABULARY:,}, none of them very long")
    if len({piece.text for piece in pieces}) < len(pieces):
        raise DamagedFileError("two of its tokens are the same")
    if not isinstance(rules.get(2, b""), bytes) or not all(isinstance(trainer.get(n, 0), int) for n in (3, 24, 35, 40, 42)):
        raise DamagedFileError("its settings have the wrong types")
    return pieces, trainer, rules


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Yield the numbers and values of a protocol buffer's fields: whole numbers, floats or bytes.

    Raises:
        DamagedFileError: If the data is not a protocol buffer.
    """
    position = 0
    while position < len(data):
        tag, position = _varint(data, position)
        wire = tag & 7
        value: Any
        if wire == 0:
            value, position = _varint(data, position)
            value = value - (1 << 64) if value >> 63 else value
        elif wire == 2:
            size, position = _varint(data, position)
            value, position = data[position : position + size], position + size
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
            chunk, position = data[position : position + size], position + size
            value = struct.unpack("<f", chunk)[0] if wire == 5 and len(chunk) == 4 else chunk
        else:
            raise DamagedFileError("it is not a SentencePiece model")
        if position > len(data):
            raise DamagedFileError("it is not a SentencePiece model, or is cut off")
        if tag >> 3 <= MAX_FIELD:  # A dict with many other numbers as keys could take quadratic time.
            yield tag >> 3, value


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = 0
    for index, byte in enumerate(data[position : position + 10]):
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return value & (1 << 64) - 1, position + index + 1
    raise DamagedFileError("it is not a SentencePiece model, or is cut off")


def _as_bytes(value: Any) -> bytes:
    if not isinstance(value, bytes):
        raise DamagedFileError("it is not a SentencePiece model")
    return value
