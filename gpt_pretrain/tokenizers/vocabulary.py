"""A tokenizer with its own vocabulary, from a tokenizer.json or equivalent files, run by the tokenizers library."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
from tokenizers import Encoding
from tokenizers import Tokenizer as FastTokenizer

from gpt_pretrain.errors import UserError, first_line
from gpt_pretrain.system.native_errors import without_panic_messages
from gpt_pretrain.system.reading import DamagedFileError
from gpt_pretrain.tokenizers.base import END_OF_TEXT, check_one_text
from gpt_pretrain.tokenizers.byte_letters import LETTERS, from_letters
from gpt_pretrain.tokenizers.formats.definition import STEPS, canonical_fields, largest_part, may_rescan, to_text, vocabulary_of
from gpt_pretrain.tokenizers.formats.kept_bytes import keeps_bytes

KIND = "tokenizer.json"  # of the definition
DIGEST_DIGITS = 12
BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
ANCHOR = "a"  # a token that decoders do not change
# Characters that most vocabularies never join with the text after them, and texts that may follow.
SEPARATE, FOLLOWING = ("\ue000", "\n", "\u2063"), ("a", " a", "\n", "今", "\ue000")
# Processor time to encode texts. Usual tokenizers take one to three seconds for a million characters. Some characters count
# several times, since a text is encoded around each position at which it may be split, and a machine may be ten times as slow.
SECONDS, SECONDS_PER_MILLION = 25.0, 30.0
CALL = 100  # characters for which a call counts in addition, since even an empty text takes time

Result = TypeVar("Result")


class VocabularyTokenizer:
    """A tokenizer that the tokenizers library runs.

    Added tokens are found in every text. Only `encode` finds the end of text, and also accepts it as `<|endoftext|>`.

    Args:
        label: A name for people. The tokenizer's name is this label and the beginning of its definition's checksum.
        fields: The fields of a tokenizer.json.
        end_of_text: The token at the end of a text, if the vocabulary has one.

    Raises:
        DamagedFileError: If the fields do not make a tokenizer, or could take unlimited time or memory.
    """

    def __init__(self, label: str, fields: Mapping[str, Any], end_of_text: str | None) -> None:
        self.fields = canonical_fields(fields)
        self._ids = vocabulary_of(self.fields)
        if end_of_text is not None and end_of_text not in self._ids:
            raise DamagedFileError(f"its end of text, {end_of_text!r}, is not in its vocabulary")
        for token in self.fields["added_tokens"]:
            token["special"] = token["content"] == end_of_text
        self.end_of_text = end_of_text
        self.eos_id = None if end_of_text is None else self._ids[end_of_text]
        self.vocab_size = max(self._ids.values()) + 1
        self.definition = to_text({"kind": KIND, "end_of_text": end_of_text, "fields": self.fields})
        try:
            digest = hashlib.sha256(self.definition.encode()).hexdigest()
        except UnicodeEncodeError as error:
            raise DamagedFileError("one of its tokens is half a surrogate pair") from error
        self.name = f"{tokenizer_label(label)}@{digest[:DIGEST_DIGITS]}"
        fast = _load(self.fields)
        self._decoder = fast.decoder
        self._loaded, self._by_mode = [fast], dict[bool, FastTokenizer]()
        # These are lists: a dict with a stranger's numbers as keys could take quadratic time.
        self._tokens, self._is_added = list[str | None]([None] * self.vocab_size), bytearray(self.vocab_size)
        for token, token_id in self._ids.items():
            self._tokens[token_id] = token
        for added in self.fields["added_tokens"]:
            self._is_added[added["id"]] = True
        self._is_byte_level = _has_type(self.fields["decoder"], "ByteLevel")
        self.keeps_bytes = keeps_bytes(self.fields)
        model = self.fields["model"]
        self.may_rescan, self.largest_part = may_rescan(self.fields), largest_part(self.fields)
        self._seconds, self._characters = 0.0, 0  # of all texts that have been encoded
        self.unknown_id: int | None = model.get("unk_id") if model["type"] == "Unigram" else self._ids.get(model.get("unk_token"))

    def encode(self, text: str) -> list[int]:
        """Return the token ids of text, with `<|endoftext|>` encoded as eos_id.

        Raises:
            UserError: If the vocabulary cannot write text.
        """
        check_one_text(text)
        if END_OF_TEXT in self._ids and self._is_added[self._ids[END_OF_TEXT]]:
            return self._encode(text, ordinary=False).ids
        token_ids: list[int] = []
        for number, part in enumerate(text.split(END_OF_TEXT)):
            token_ids += [self.eos_id] if number and self.eos_id is not None else []
            token_ids += self._encode(part, ordinary=False).ids
        return token_ids

    def encode_ordinary(self, text: str) -> np.ndarray:
        """Return the token ids of text as uint32, with the end of text treated as ordinary text.

        Raises:
            UserError: If the vocabulary cannot write text.
        """
        check_one_text(text)
        return np.array(self._encode(text, ordinary=True).ids, np.uint32)

    @cached_property
    def before_continuation(self) -> tuple[str, int]:
        """A text to encode before a text that continues another one, and the number of its tokens, which are then left out.

        A vocabulary that puts a blank before every text puts it before this text instead. For other vocabularies it is empty.
        """
        adds_blank = _has_type(self.fields["normalizer"], "Prepend") or _has_type(self.fields["pre_tokenizer"], "Metaspace")
        if not adds_blank and '"add_prefix_space":true' not in to_text(self.fields["pre_tokenizer"]):
            return "", 0
        for text in SEPARATE:
            with suppress(UserError):
                ids = self.encode_ordinary(text).tolist()
                starts = (self.encode_ordinary(text + after).tolist()[: len(ids)] for after in FOLLOWING)
                if ids and all(start == ids for start in starts):
                    return text, len(ids)
        return "", 0

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes of a token, or no bytes if the id is unused.

        The bytes of a token at the start of a word include the blank before it.
        """
        if not 0 <= token_id < self.vocab_size or (token := self._tokens[token_id]) is None:
            return b""
        if self._is_added[token_id]:
            return token.encode()
        return from_letters(token) if self._is_byte_level else self._decoded(token)

    def _in_mode(self, *, ordinary: bool) -> FastTokenizer:
        """Return the library's tokenizer in one of two modes: with the end of text as ordinary text, or as a token.

        Each is built when it is needed, since it takes much memory and most programs need only one.
        """
        if (fast := self._by_mode.get(ordinary)) is None:
            try:
                fast = self._loaded.pop()
            except IndexError:
                fast = _load(self.fields)
            fast.encode_special_tokens = ordinary
            self._by_mode[ordinary] = fast
        return fast

    @cached_property
    def _drops_characters(self) -> bool:
        """True if the library silently leaves out characters that no token has."""
        model = self.fields["model"]
        if model["type"] != "BPE" or "unk_token" in model or "byte_fallback" in model:
            return False
        return not (_has_type(self.fields["pre_tokenizer"], "ByteLevel") and all(letter in self._ids for letter in LETTERS))

    def _encode(self, text: str, *, ordinary: bool) -> Encoding:
        fast, began = self._in_mode(ordinary=ordinary), time.thread_time()
        found = _guarded(lambda: fast.encode(text, add_special_tokens=False), self.name)
        self._check_time(time.thread_time() - began, len(text))
        if self._drops_characters:
            self._check_nothing_dropped(text, found)
        return found

    def _check_time(self, seconds: float, characters: int) -> None:
        """Check that the texts so far explain the processor time that the library has taken for them.

        Raises:
            UserError: If they do not.
        """
        self._seconds += seconds
        self._characters += characters + CALL
        if self._seconds > SECONDS + SECONDS_PER_MILLION * self._characters / 1e6:
            raise UserError(
                f"The tokenizer {self.name} took {self._seconds:.0f} seconds of processor time to encode "
                f"{self._characters:,} characters, far more than usual. It is damaged, or was made to keep this machine busy. "
                "Use another one."
            )

    def _check_nothing_dropped(self, text: str, found: Encoding) -> None:
        """Check that each character of a text, except blanks, is in one of its tokens.

        Raises:
            UserError: If a character is in none.
        """
        if self.keeps_bytes:
            complete = sum(len(self.token_bytes(token_id)) for token_id in found.ids) >= len(text.encode())
            if complete:
                return
        covered = bytearray(len(text))
        for start, end in found.offsets:
            covered[start:end] = b"\1" * (end - start)
        if all(seen or char.isspace() for char, seen in zip(text, covered, strict=True)):
            return
        # After a dropped character, the library's offsets are too small.
        missing = next((char for char in dict.fromkeys(text) if not char.isspace() and not self._has_token(char)), None)
        if missing is not None:
            raise UserError(
                f"The tokenizer {self.name} has no token for {missing!r}, so it cannot encode this text. Remove the "
                "character, or give another tokenizer: tokenizer=FOLDER"
            )

    def _has_token(self, character: str) -> bool:
        """Return whether the vocabulary can write a character, which is no blank."""
        fast = self._in_mode(ordinary=True)
        if _has_type(self.fields["pre_tokenizer"], "ByteLevel"):
            text = character if fast.normalizer is None else fast.normalizer.normalize_str(character)
            return all(LETTERS[byte] in self._ids for byte in text.encode())
        pair = [character, 2 * character]
        once, twice = (found.ids for found in _guarded(lambda: fast.encode_batch(pair, add_special_tokens=False), self.name))
        # A vocabulary may put a blank or a mark before every text, or before each word. It is there without the character too.
        return once != twice and any(self.token_bytes(token_id).strip() for token_id in once)

    def _decoded(self, token: str) -> bytes:
        """Return the decoded text of a token within a text."""
        decoder = self._decoder
        if (byte := BYTE_TOKEN.fullmatch(token)) is not None and _has_type(self.fields["decoder"], "ByteFallback"):
            return bytes([int(byte.group(1), 16)])
        if decoder is None:
            return f" {token}".encode()
        suffix = self.fields["decoder"].get("suffix")
        if self.fields["decoder"].get("type") == "BPEDecoder" and isinstance(suffix, str) and suffix:
            return token.replace(suffix, " ").encode()
        text: str = _guarded(lambda: decoder.decode([ANCHOR, token]), self.name)
        return text.removeprefix(ANCHOR).encode()


def restore_vocabulary(label: str, definition: Mapping[str, Any]) -> VocabularyTokenizer:
    """Build a tokenizer from its definition.

    Raises:
        DamagedFileError: If it is not one.
    """
    fields, end = definition.get("fields"), definition.get("end_of_text")
    if not isinstance(fields, dict) or not (end is None or isinstance(end, str)):
        raise DamagedFileError("it is not the definition of a tokenizer")
    return VocabularyTokenizer(label, fields, end)


def tokenizer_label(label: str) -> str:
    """Return a label for the name of a tokenizer, reduced to letters, digits and a few signs."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", label)[:60] or "tokenizer"


def _load(fields: dict[str, Any]) -> FastTokenizer:
    """Build the library's tokenizer. Each added token gets its id in the file.

    By itself, the library gives new ids to added tokens that are not in the model's vocabulary.

    Raises:
        DamagedFileError: If the library refuses the fields.
    """

    def build(content: dict[str, Any]) -> FastTokenizer:
        return FastTokenizer.from_str(json.dumps(content))

    wanted = {token["content"]: token["id"] for token in fields["added_tokens"]}
    fast = _guarded(lambda: build(fields))
    if any(fast.token_to_id(token) != token_id for token, token_id in wanted.items()):
        model = fields["model"]
        if model["type"] != "Unigram":
            fast = _guarded(lambda: build(fields | {"model": model | {"vocab": model["vocab"] | wanted}}))
        moved = [token for token, token_id in wanted.items() if fast.token_to_id(token) != token_id]
        if moved:
            raise DamagedFileError(f"its added token {moved[0]!r} cannot have the id {wanted[moved[0]]}")
    return fast


def _guarded(call: Callable[[], Result], name: str | None = None) -> Result:
    """Call the library. Its failures may have any class: a panic of Rust is not even an Exception.

    Args:
        name: The tokenizer, while it encodes or decodes; None while it is built.

    Raises:
        UserError: If the library fails and there is a name.
        DamagedFileError: If it fails and there is no name.
    """
    try:
        with without_panic_messages():
            return call()
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:
        if name is None:
            raise DamagedFileError(f"the tokenizers library cannot use it ({first_line(error)})") from error
        raise UserError(f"The tokenizer {name} fails on a text ({first_line(error)}). Use another one.") from error


def _has_type(part: Any, kind: str) -> bool:
    """Return whether a part of a tokenizer.json has a type, or is a sequence with a part of this type."""
    if not isinstance(part, dict):
        return False
    inner = [step for name in STEPS for step in part.get(name) or []]
    return part.get("type") == kind or any(_has_type(step, kind) for step in inner)
