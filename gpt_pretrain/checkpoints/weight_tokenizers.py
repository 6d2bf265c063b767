"""Find the tokenizer that belongs to weights: in their folder, on the hub, or in the checkpoint itself."""

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

from gpt_pretrain.checkpoints.formats.layouts import CONFIG_FILE, OWN_KEY
from gpt_pretrain.errors import UserError
from gpt_pretrain.system.reading import DamagedFileError, read_bytes
from gpt_pretrain.system.shown_values import short_repr
from gpt_pretrain.tokenizers.base import Tokenizer
from gpt_pretrain.tokenizers.build import STORED_NAME, StoredTokenizer, build_tokenizer, fetch_tokenizer, restore_tokenizer
from gpt_pretrain.tokenizers.formats.nanogpt_meta import MAX_META_BYTES, META, read_meta
from gpt_pretrain.tokenizers.formats.vocabulary_files import read_folder_tokenizer

NAME_FIELD, DEFINITION_FIELD = "tokenizer", "tokenizer_definition"  # of a checkpoint
OPENAI_MODELS = re.compile(r"(openai-community/)?gpt2(-medium|-large|-xl)?")
DATASET_NAME = re.compile(r"\w[\w.-]*")
MAX_PADDING = 128  # rows without a token, to which a vocabulary is rounded up
EXPECTED = (UserError, DamagedFileError, OSError)

FindTokenizer = Callable[[], Tokenizer | None]

log = logging.getLogger(__name__)


def no_tokenizer() -> Tokenizer | None:
    """Return None, for weights without a tokenizer."""
    return None


def tokenizer_fields(tokenizer: Tokenizer) -> dict[str, Any]:
    """Return the fields of a checkpoint that hold its tokenizer. A definition is a tensor of bytes, since readers can skip it."""
    stored = StoredTokenizer.of(tokenizer)
    if stored.definition is None:
        return {NAME_FIELD: stored.name}
    data = np.frombuffer(stored.definition.encode(), np.uint8).copy()
    return {NAME_FIELD: stored.name, DEFINITION_FIELD: torch.from_numpy(data)}


def checkpoint_tokenizer(content: Mapping[str, Any], *, origin: str) -> Tokenizer:
    """Build the tokenizer that a checkpoint holds. No other file is read.

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
    """Return a function that finds the tokenizer in a folder that transformers or an export wrote.

    Args:
        own: The value that an export of this program has stored in config.json.

    Raises:
        UserError: If this value names no valid tokenizer.
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
    """Return a function that finds the tokenizer of a model on the hub."""
    if OPENAI_MODELS.fullmatch(repo_id):
        return partial(build_tokenizer, "gpt2")
    return partial(fetch_tokenizer, repo_id)


def neighbor_finder(path: Path, rows: int | None) -> FindTokenizer:
    """Return a function that finds the tokenizer in the folder of a file of weights. It must have as many tokens as the weights.

    Args:
        rows: Rows of the weights' vocabulary, including those that round it up.
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
    """Return a function that finds the tokenizer of a checkpoint of nanoGPT: the meta.pkl of its data set, if the sizes agree.

    It searches the folder of the checkpoint, and data/NAME/ in that folder, in its parent and in the current folder.
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


def nanochat_finder(path: Path, size: int) -> FindTokenizer:
    """Return a function that finds the tokenizer of a checkpoint of nanochat, if the sizes agree.

    It searches the folder of the checkpoint, and nanochat's folder of the tokenizer beside its folders of checkpoints.
    """
    folder = path.absolute().parent.parent.parent / "tokenizer"

    def find() -> Tokenizer | None:
        beside = neighbor_finder(path, size)()
        return neighbor_finder(folder / path.name, size)() if beside is None and folder.is_dir() else beside

    return find
