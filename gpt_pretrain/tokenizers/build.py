"""Build a tokenizer from its name, from its files, or from the content of a checkpoint."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import tiktoken

from gpt_pretrain.errors import UserError
from gpt_pretrain.system.argument_types import check_type
from gpt_pretrain.system.environment import user_path
from gpt_pretrain.system.json_files import parse_json
from gpt_pretrain.system.reading import DamagedFileError, read_bytes
from gpt_pretrain.system.reading_cost import explained_by_size
from gpt_pretrain.system.shell import quote_word
from gpt_pretrain.system.shown_values import short_repr
from gpt_pretrain.system.yaml_files import read_yaml
from gpt_pretrain.tokenizers import tables, vocabulary
from gpt_pretrain.tokenizers.base import Tokenizer, fingerprint
from gpt_pretrain.tokenizers.bpe_training import AUTOMATIC_NAME, TRAINED_NAME
from gpt_pretrain.tokenizers.byte import ByteTokenizer
from gpt_pretrain.tokenizers.characters import CHARACTER_PREFIXES, CharacterTokenizer
from gpt_pretrain.tokenizers.formats.definition import MAX_VALUES
from gpt_pretrain.tokenizers.formats.vocabulary_files import (
    MAX_FILE_BYTES,
    read_folder_tokenizer,
    read_tokenizer,
    read_tokenizer_file,
    several_vocabularies,
)
from gpt_pretrain.tokenizers.tables import IDS_PREFIX, IdTokenizer, restore_table
from gpt_pretrain.tokenizers.tiktoken_bpe import load_tiktoken
from gpt_pretrain.tokenizers.vocabulary import restore_vocabulary

DEFAULT_NAME = "gpt2"
KNOWN_SIZES = {"gpt2": 50257, "cl100k_base": 100277, "o200k_base": 200019}
MAX_PADDING = 128  # Some models pad their vocabulary to a multiple of 64 or 128.
STORED_NAME = re.compile(r"[A-Za-z0-9._-]{1,60}@[0-9a-f]{12}")
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


@dataclass(frozen=True)
class StoredTokenizer:
    """All that a checkpoint, a corpus or an exported folder stores of its tokenizer.

    Args:
        name: The name of the tokenizer.
        definition: Its definition, if the name is not enough.
    """

    name: str
    definition: str | None = None

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> StoredTokenizer:
        """Return the part of a tokenizer that is stored."""
        return cls(tokenizer.name, tokenizer.definition)


def build_tokenizer(name: str | Path) -> Tokenizer:
    """Build the tokenizer that a user names.

    Args:
        name: "gpt2", or "auto", which means the same if there is no text; "byte"; another of tiktoken's encodings;
            "characters:" followed by a percent-encoded alphabet; a folder or a file with a vocabulary; or the name of a model
            on the Hugging Face hub, with its owner: "someone/model".

    Raises:
        UserError: If there is no such tokenizer, or its files cannot be loaded.
    """
    check_type("tokenizer", name, (str, Path), "a name such as 'gpt2' or 'byte', or a folder or file with a vocabulary")
    name = str(name)
    if name == AUTOMATIC_NAME:
        return _build_named(DEFAULT_NAME)
    if is_tokenizer_name(name):
        return _build_named(name)
    if name == TRAINED_NAME:
        raise UserError(
            f"tokenizer={TRAINED_NAME} is trained by train.py, for new weights and text. Elsewhere, train a vocabulary first: "
            "gpt-pretrain tokenizer TEXT out=FOLDER. Then give tokenizer=FOLDER."
        )
    if not name.strip():
        raise UserError("tokenizer= is empty. Give a name such as gpt2 or byte, or a folder or file with a vocabulary.")
    if STORED_NAME.fullmatch(name):
        raise UserError(
            f"tokenizer={name}: this vocabulary is stored in a checkpoint, a corpus or an exported folder, which use it without "
            "tokenizer=. To use it elsewhere, give a folder or file with it: tokenizer=FOLDER"
        )
    if (found := _read_location(name)) is not None:
        return found
    known, near = _known_names(), _near_name(name)
    hint = "" if near is None else f" Did you mean {near}?"
    hint = " Type the folder of the run, such as tokenizer=outputs/RUN." if name == "latest" else hint
    raise UserError(
        f"tokenizer={short_repr(name) if len(name) > 100 else name}: there is no such tokenizer.{hint} Choose "
        f"{', '.join(known)}, a folder or file with a vocabulary, or a model of the hub (owner/name)."
    )


def _read_location(name: str) -> Tokenizer | None:
    """Return the tokenizer in a file, in a folder or on the hub; None if nothing has this name.

    Raises:
        UserError: If something of this name exists, but contains no usable tokenizer.
    """
    path = user_path(name)
    try:
        is_folder, is_file = path.is_dir(), path.is_file()
    except (OSError, ValueError) as error:
        raise UserError(
            f"tokenizer={short_repr(name)}: this path cannot be read. Check the name, and the permissions of its folder."
        ) from error
    try:
        if is_file or (path.exists() and not is_folder):  # The reader refuses devices and pipes.
            return read_tokenizer_file(path)
        if is_folder:
            return _read_folder(path, name)
    except UserError as error:
        if "tokenizer" in path.name or (run := _run_around(path)) is None:
            raise
        raise UserError(
            f"tokenizer={name} belongs to a run. Give the folder of the run, whose vocabulary is used: "
            + quote_word(f"tokenizer={run}")
        ) from error
    if not HUB_NAME.fullmatch(name):
        return None
    if (fetched := fetch_tokenizer(name)) is None:
        raise UserError(
            f"tokenizer={name}: this model on the hub has no vocabulary that can be read. Choose another one, or give a "
            "folder or file with a vocabulary."
        )
    return fetched


def _read_folder(path: Path, name: str) -> Tokenizer:
    if (found := read_folder_tokenizer(path)) is not None:
        return found
    if names := several_vocabularies(path):
        shown = ", ".join(names[:3]) + " and more" * (len(names) > 3)
        raise UserError(
            f"tokenizer={name}: this folder has several vocabularies: {shown}. Name one of them, such as "
            + quote_word(f"tokenizer={path / names[0]}")
        )
    if (stored := _name_in_run(path)) is not None:
        return _build_named(stored)
    raise UserError(
        f"tokenizer={name}: this folder has no vocabulary. It needs tokenizer.json, vocab.json with merges.txt, "
        "vocab.txt, *.tiktoken, nanoGPT's meta.pkl or nanochat's tokenizer.pkl."
    )


def _run_around(path: Path) -> Path | None:
    """Return the folder of the run that a file such as checkpoints/last.ckpt is in; None if it is in none."""
    return next((one for one in (path.parent, path.parent.parent) if (one / "run.json").is_file()), None)


def _name_in_run(folder: Path) -> str | None:
    """Return the name of the tokenizer in a run's settings; None if it is not enough, or if the folder holds no run."""
    with suppress(OSError, DamagedFileError):
        settings = read_yaml(folder / "config.yaml", within=folder).get("tokenizer")
        name = settings.get("name") if isinstance(settings, dict) else None
        return name if isinstance(name, str) and is_tokenizer_name(name) else None
    return None


def restore_tokenizer(stored: StoredTokenizer, *, origin: str) -> Tokenizer:
    """Build a tokenizer from its stored name and definition, without opening a path or using the network.

    Args:
        origin: The file that contains it, for messages.

    Raises:
        UserError: If it is damaged, or is not a tokenizer.
    """
    with explained_by_size(origin, size=len(stored.name) + len(stored.definition or "")):
        return _restore_stored(stored, origin=origin)


def _restore_stored(stored: StoredTokenizer, *, origin: str) -> Tokenizer:
    if stored.definition is None:
        if not is_tokenizer_name(stored.name):
            raise UserError(
                f"{origin} names the tokenizer {short_repr(stored.name)}, but does not contain it. Give its folder or file with "
                "tokenizer=FOLDER"
            )
        return _build_named(stored.name)
    label = stored.name.rpartition("@")[0]
    try:
        definition = parse_json(stored.definition, max_values=MAX_VALUES)
        tokenizer = _restore(label, definition)
    except DamagedFileError as error:
        raise UserError(f"{origin}: its tokenizer cannot be used: {error}.") from error
    if tokenizer.name.rpartition("@")[2] != stored.name.rpartition("@")[2]:
        raise UserError(f"{origin} is damaged: its tokenizer is {tokenizer.name}, not {short_repr(stored.name)}.")
    return tokenizer


def is_tokenizer_name(name: str) -> bool:
    """Return whether a tokenizer is built from this name alone, without opening a path or URL."""
    return name == ByteTokenizer.name or name.startswith((*CHARACTER_PREFIXES, IDS_PREFIX)) or name in _tiktoken_names()


def is_location_of_tokenizer(name: str) -> bool:
    """Return whether a name may lead to a file, a folder or the hub."""
    return not is_tokenizer_name(name) and name != TRAINED_NAME and STORED_NAME.fullmatch(name) is None


def same_tokenizer(one: Tokenizer, other: Tokenizer) -> bool:
    """Return whether two tokenizers give the same ids to every text."""
    return fingerprint(one) == fingerprint(other)


def fetch_tokenizer(repo_id: str) -> Tokenizer | None:
    """Return the tokenizer of a model on the Hugging Face hub, or None if it has none.

    Raises:
        UserError: If there is no such model, or if its files cannot be downloaded or used.
    """
    from gpt_pretrain.system.hub import fetch_if_present

    def read(file: str) -> bytes | None:
        path = fetch_if_present(repo_id, file)
        return None if path is None else read_bytes(path, max_bytes=MAX_FILE_BYTES)

    return read_tokenizer(read, label=repo_id.rpartition("/")[2], location=repo_id)


def tokenizer_by_size(vocab_size: int) -> str | None:
    """Return the most likely tokenizer's name for a model with this vocab_size, or None if none fits."""
    if vocab_size == ByteTokenizer.vocab_size:
        return ByteTokenizer.name
    return next((name for name, size in KNOWN_SIZES.items() if size <= vocab_size < size + MAX_PADDING), None)


def _build_named(name: str) -> Tokenizer:
    if name == ByteTokenizer.name:
        return ByteTokenizer()
    if name.startswith(IDS_PREFIX):
        return IdTokenizer.from_name(name)
    if name.startswith(CHARACTER_PREFIXES):
        return CharacterTokenizer.from_name(name)
    return load_tiktoken(name)


def _restore(label: str, definition: Mapping[str, Any]) -> Tokenizer:
    if definition.get("kind") == vocabulary.KIND:
        return restore_vocabulary(label, definition)
    if definition.get("kind") == tables.KIND:
        return restore_table(label, definition)
    raise DamagedFileError(f"it has the kind {short_repr(definition.get('kind'))}, which this version does not know")


def _near_name(name: str) -> str | None:
    """Return the tokenizer that a user most likely means by another name, such as the name of one of OpenAI's models."""
    lower = name.lower()
    with suppress(KeyError):
        return tiktoken.encoding_name_for_model(lower)
    if lower.startswith("gpt2"):
        return "gpt2"
    return next(iter(get_close_matches(lower, [*_known_names(), TRAINED_NAME, AUTOMATIC_NAME], n=1)), None)


def _tiktoken_names() -> list[str]:
    return tiktoken.list_encoding_names()


def _known_names() -> list[str]:
    return [ByteTokenizer.name, *sorted(_tiktoken_names())]
