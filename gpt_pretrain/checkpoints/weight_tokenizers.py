"""Find the tokenizer that weights bring with them: beside them in their folder, on the hub, or in the checkpoint itself."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gpt_pretrain.checkpoints.layouts import CONFIG_FILE, OWN_KEY
from gpt_pretrain.errors import UserError
from gpt_pretrain.system.reading import DamagedFileError, read_bytes
from gpt_pretrain.system.shown_values import short_repr
from gpt_pretrain.tokenizers.base import Tokenizer
from gpt_pretrain.tokenizers.build import STORED_NAME, StoredTokenizer, build_tokenizer, fetch_tokenizer, restore_tokenizer
from gpt_pretrain.tokenizers.nanogpt_meta import MAX_META_BYTES, META, read_meta
from gpt_pretrain.tokenizers.vocabulary_files import read_folder_tokenizer

NAME_FIELD, DEFINITION_FIELD = "tokenizer", "tokenizer_definition"  # of a checkpoint
OPENAI_MODELS = re.compile(r"(openai-community/)?gpt2(-medium|-large|-xl)?")
DATASET_NAME = re.compile(r"\w[\w.-]*")
MAX_PADDING = 128  # rows without a token, with which a vocabulary is filled up
EXPECTED = (UserError, DamagedFileError, OSError)

FindTokenizer = Callable[[], Tokenizer | None]

log = logging.getLogger(__name__)


def no_tokenizer() -> Tokenizer | None:
    """Return no tokenizer, for weights that state none."""
    return None


def tokenizer_fields(tokenizer: Tokenizer) -> dict[str, Any]:
    """Return the fields of a checkpoint that hold its tokenizer; a definition is a tensor of bytes, which is quick to skip."""
    stored = StoredTokenizer.of(tokenizer)
    if stored.definition is None:
        return {NAME_FIELD: stored.name}
    data = np.frombuffer(stored.definition.encode(), np.uint8).copy()
    return {NAME_FIELD: stored.name, DEFINITION_FIELD: torch.from_numpy(data)}


def checkpoint_tokenizer(content: Mapping[str, Any], *, origin: str) -> Tokenizer:
    """Build the tokenizer that a checkpoint holds. No path is looked for.

    Raises:
        UserError: If it is damaged, or names a tokenizer that it does not hold.
    """
    name, data = content[NAME_FIELD], content.get(DEFINITION_FIELD)
    if data is None:
        return restore_tokenizer(StoredTokenizer(name), origin=origin)
    if not isinstance(data, Tensor) or data.dtype != torch.uint8 or data.ndim != 1:
        raise UserError(f"{origin} is damaged: its {DEFINITION_FIELD} is not a tensor of bytes.")
    try:
        definition = data.numpy().tobytes().decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{origin} is damaged: its {DEFINITION_FIELD} is not UTF-8.") from error
    return restore_tokenizer(StoredTokenizer(name, definition), origin=origin)


def folder_finder(folder: Path, own: Any) -> FindTokenizer:
    """Return how to find the tokenizer of a folder that transformers or an export wrote.

    Args:
        own: What an export of this program says of itself in config.json.

    Raises:
        UserError: If it names a tokenizer in a wrong way.
    """
    name = own.get("tokenizer") if isinstance(own, dict) else None
    if name is None:
        return partial(read_folder_tokenizer, folder)
    if not isinstance(name, str):
        raise UserError(f"{folder / CONFIG_FILE}: {OWN_KEY}.tokenizer={short_repr(name)} is not the name of a tokenizer.")
    if STORED_NAME.fullmatch(name):
        return partial(read_folder_tokenizer, folder)
    return partial(restore_tokenizer, StoredTokenizer(name), origin=str(folder))


def hub_finder(repo_id: str) -> FindTokenizer:
    """Return how to find the tokenizer of a model on the hub."""
    if OPENAI_MODELS.fullmatch(repo_id):
        return partial(build_tokenizer, "gpt2")
    return partial(fetch_tokenizer, repo_id)


def neighbor_finder(path: Path, rows: int | None) -> FindTokenizer:
    """Return how to find the tokenizer in the folder of a file of weights, which belongs to them if it has as many tokens.

    Args:
        rows: Rows of the weights' vocabulary, with those that only fill it up.
    """

    def find() -> Tokenizer | None:
        try:
            found = read_folder_tokenizer(path.parent)
        except EXPECTED as error:
            log.warning("%s: the tokenizer beside it is not used: %s", path, error)
            return None
        if found is None or rows is None or 0 <= rows - found.vocab_size < MAX_PADDING:
            return found
        sizes = f"{found.vocab_size:,} tokens instead of {rows:,}"
        log.warning("%s: the tokenizer beside it has %s, and is not used", path, sizes)
        return None

    return find


def nanogpt_finder(path: Path, content: Mapping[str, Any]) -> FindTokenizer:
    """Return how to find the tokenizer of a checkpoint of nanoGPT: its data set's meta.pkl, if that has as many ids.

    It is looked for beside the checkpoint, and in data/NAME/ there, one folder higher, and here.
    """
    arguments, settings = content.get("model_args"), content.get("config")
    size = arguments.get("vocab_size") if isinstance(arguments, dict) else None
    dataset = settings.get("dataset") if isinstance(settings, dict) else None
    named = [dataset] if isinstance(dataset, str) and DATASET_NAME.fullmatch(dataset) else []
    folders = [path.parent, path.parent / "data"]
    folders += [base / "data" / name for name in named for base in (path.parent, path.parent.parent, Path())]

    def find() -> Tokenizer | None:
        for folder in folders:
            try:
                found = read_meta(read_bytes(folder / META, max_bytes=MAX_META_BYTES), end_of_text=False)
            except EXPECTED:
                continue
            if found.vocab_size == size:
                log.info("%s: its tokenizer is read from %s", path, folder / META)
                return found
        return neighbor_finder(path, size if isinstance(size, int) else None)()

    return find
