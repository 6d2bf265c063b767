"""The `data` settings as datasets of windows: a text, token shards, or a mixture of several of them."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from gpt_pretrain.config.schema import DataSettings
from gpt_pretrain.data.dataset import TokenWindows, WindowDataset
from gpt_pretrain.data.documents import DocumentBoundaries
from gpt_pretrain.data.files import Files, LocalFiles
from gpt_pretrain.data.mixture import MixedWindows, allocate_validation_windows
from gpt_pretrain.data.shards.corpus import TokenCorpus, add_known, split_corpus
from gpt_pretrain.data.shards.formats import open_corpus
from gpt_pretrain.data.shards.manifest import MANIFEST
from gpt_pretrain.data.shards.nanogpt import TRAIN
from gpt_pretrain.data.text import cache_folder, find_text
from gpt_pretrain.data.token_cache import tokenize_anyway, tokenize_text
from gpt_pretrain.data.token_stream import ConcatenatedTokens, TokenSplit, TokenStream, with_files
from gpt_pretrain.errors import UserError
from gpt_pretrain.system.environment import user_path
from gpt_pretrain.system.formatting import format_count
from gpt_pretrain.system.recognition.file_kinds import LLMC, NUMPY, TOKENS
from gpt_pretrain.system.urls import is_url, without_secrets
from gpt_pretrain.texts.missing_files import explain_missing_file
from gpt_pretrain.texts.recognition import recognize_file
from gpt_pretrain.tokenizers.base import Tokenizer

SHARD_SUFFIXES = (".bin", ".npy")
SINGLE_PATH = re.compile(r"^data\.path=")
MAX_LOOKED_AT = 10  # files with a suffix of shards that are opened to see what they are
ENTRY_FILES = (MANIFEST, TRAIN)  # files that may be given in place of their folder


@dataclass(frozen=True)
class DataSource:
    """A tokenized text or corpus.

    Args:
        name: Its name in messages.
        split: Its training set and validation set.
        boundaries: How to separate its documents.
        weight: Its weight in a mixture.
    """

    name: str
    split: TokenSplit
    boundaries: DocumentBoundaries
    weight: float = 1.0


@dataclass(frozen=True)
class Datasets:
    """Everything that the `data` settings name.

    Args:
        split: The training set and the validation set as tokens.
        train: The windows to train on.
        val: The windows to validate on.
        sources: The sources of a mixture; otherwise empty.
    """

    split: TokenSplit
    train: WindowDataset
    val: WindowDataset
    sources: list[DataSource]


def build_datasets(settings: DataSettings, tokenizer: Tokenizer, *, context_length: int) -> Datasets:
    """Find, check and tokenize the data and divide it into windows.

    Raises:
        UserError: If there is no usable text or corpus, or it is shorter than a window.
    """
    sources = find_data_sources(settings, tokenizer)
    if problems := [problem for source in sources for problem in _check_lengths(source, context_length, settings)]:
        raise UserError(problems)
    windows = partial(_windows, settings=settings, context_length=context_length)
    train = [windows(source, source.split.train, shifted=settings.shift_windows) for source in sources]
    max_windows = None if settings.val_tokens is None else math.ceil(settings.val_tokens / context_length)
    if settings.name != "mixture":
        (source,) = sources
        return Datasets(source.split, train[0], windows(source, source.split.val, max_windows=max_windows), [])
    weights = [source.weight for source in sources]
    sizes = [len(windows(source, source.split.val)) for source in sources]
    shares = allocate_validation_windows(sizes, weights, max_windows=max_windows)
    val = [windows(source, source.split.val, max_windows=share) for source, share in zip(sources, shares, strict=True)]
    return Datasets(_concatenate(sources), MixedWindows(train, weights), MixedWindows(val, weights), sources)


def find_shard_tokenizer(settings: DataSettings) -> Tokenizer | None:
    """Return the tokenizer that made the token shards, or None if the settings name only text.

    Raises:
        UserError: If there are no shards, or they were made with different tokenizers, or one does not hold its own.
    """
    if settings.name != "mixture":
        is_named = settings.name == "shards" and settings.path is not None
        return open_corpus_at(str(settings.path), settings).build_tokenizer() if is_named else None
    corpora, problems = dict[str, TokenCorpus](), list[str]()
    for source in settings.sources:
        with _collect_problems(problems):
            if is_shard_path(source.path):
                corpora[source.path] = open_corpus_at(source.path, settings)
    if problems:
        raise UserError(problems)
    if len({corpus.tokenizer for corpus in corpora.values()}) > 1:
        listed = ", ".join(f"{without_secrets(path)} with {corpus.tokenizer}" for path, corpus in corpora.items())
        raise UserError(f"data.sources were made with different tokenizers: {listed}. All sources need the same tokenizer.")
    return next((corpus.build_tokenizer() for corpus in corpora.values()), None)


def open_corpus_at(path: str, settings: DataSettings) -> TokenCorpus:
    """Open the token shards in a folder or behind a URL; the path may also name manifest.json or train.bin.

    Raises:
        UserError: If there are none.
    """
    return open_corpus(_files_at(path, settings), format_name=settings.format)


def check_sources(settings: DataSettings) -> None:
    """Check that a mixture has sources.

    Raises:
        UserError: If not.
    """
    if not settings.sources:
        raise UserError("data=mixture needs data.sources='[{path: FOLDER, weight: 0.7}, {path: FOLDER2, weight: 0.3}]'.")


def is_shard_path(path: str) -> bool:
    """Return whether a path leads to token shards rather than text.

    Raises:
        UserError: If the path cannot be read.
    """
    local = user_path(path)
    if is_url(path):
        return True
    try:
        if local.suffix in SHARD_SUFFIXES:
            return not local.is_file() or _is_shard(local)
        if (local / MANIFEST).is_file() or not local.is_dir():
            return (local / MANIFEST).is_file()
        found = [file for suffix in SHARD_SUFFIXES for file in sorted(local.glob(f"*{suffix}"))]
        return any(_is_shard(file) for file in found[:MAX_LOOKED_AT])
    except OSError as error:  # no permission to enter a folder, or too long a name
        raise UserError(f"data.path={path} cannot be read: {error.strerror or error}.") from error


def _is_shard(file: Path) -> bool:
    """Return whether a file contains token ids, and not weights, as .bin files of other programs do."""
    try:
        return recognize_file(str(file)) in (TOKENS, NUMPY, LLMC)
    except OSError:
        return False


def _files_at(path: str, settings: DataSettings) -> Files:
    if is_url(path):
        from gpt_pretrain.data.remote.remote_files import RemoteFiles

        folder, _, last = path.rpartition("/")
        return RemoteFiles(folder if last in ENTRY_FILES else path, settings.remote)
    local = user_path(path)
    if local.is_file():
        if local.name not in ENTRY_FILES:
            if (kind := recognize_file(str(local))).is_read:
                raise UserError(f"data.path={path} is {kind.described()}, not a folder of token shards. Add data=text.")
            raise UserError(
                f"data.path={path} is {kind.described()}, not text. Token shards are found by their names: give their folder, "
                f"its {MANIFEST} or nanoGPT's {TRAIN}. Rename a file of token ids that has another name."
            )
        local = local.parent
    if not local.is_dir():
        raise UserError(f"data.path={path}: there is no such folder. Give a folder of token shards, or its URL.")
    return LocalFiles(local)


def find_data_sources(settings: DataSettings, tokenizer: Tokenizer, *, whole: bool = False) -> list[DataSource]:
    """Find, check and tokenize everything that the `data` settings name: one source or, for a mixture, several.

    Args:
        whole: Take all of a text as its training set, as for an evaluation.

    Raises:
        UserError: If there is no usable text or corpus.
    """
    if whole:
        settings = replace(settings, train_ratio=1.0)
    if settings.name == "mixture":
        return _mixed_sources(settings, tokenizer)
    if settings.name == "shards":
        if settings.path is None:
            raise UserError("data=shards needs data.path=FOLDER of token shards, or its URL.")
        return [_shard_source(settings.path, settings, tokenizer)]
    if settings.path is not None and is_shard_path(settings.path):
        raise UserError(_not_text(settings.path))
    return [_text_source(settings.name, settings, tokenizer)]


def _not_text(path: str) -> str:
    """Return the message about token shards, or a URL, that are given as a text."""
    if is_url(path) and path.startswith("file:"):
        return f"data.path={path} is a URL. {explain_missing_file(path)}"
    if is_url(path):
        return f"data.path={without_secrets(path)} is a URL. For a text, give data.url=URL. For token shards, add data=shards."
    return f"data.path={path} holds token ids, not text. Add data=shards."


def find_split(settings: DataSettings, tokenizer: Tokenizer) -> TokenSplit:
    """Find the training set and the validation set as tokens, those of a mixture's sources one after another.

    Raises:
        UserError: If there is no usable text or corpus.
    """
    sources = find_data_sources(settings, tokenizer)
    return _concatenate(sources) if settings.name == "mixture" else sources[0].split


def _mixed_sources(settings: DataSettings, tokenizer: Tokenizer) -> list[DataSource]:
    """Find the sources of a mixture.

    Raises:
        UserError: If there is none, or some cannot be used; lists the problems of all.
    """
    check_sources(settings)
    found, problems = list[DataSource](), list[str]()
    for source in settings.sources:
        with _collect_problems(problems):
            found.append(
                _shard_source(source.path, settings, tokenizer, weight=source.weight)
                if is_shard_path(source.path)
                else _text_source(source.path, replace(settings, path=source.path), tokenizer, weight=source.weight)
            )
    if problems:
        raise UserError(problems)
    return found


@contextmanager
def _collect_problems(problems: list[str]) -> Iterator[None]:
    """Collect the problems of one source of a mixture. In their texts, data.sources replaces data.path."""
    try:
        yield
    except UserError as error:
        problems += [SINGLE_PATH.sub("data.sources: path=", problem) for problem in error.problems]


def _text_source(name: str, settings: DataSettings, tokenizer: Tokenizer, *, weight: float = 1.0) -> DataSource:
    cache_dir = cache_folder(settings)
    text = find_text(settings, cache_dir=cache_dir)
    # A user who names a folder for the cache may have no room elsewhere.
    tokenize = tokenize_anyway if settings.cache_dir is None else tokenize_text
    split = tokenize(text, tokenizer, train_ratio=settings.train_ratio, cache_dir=cache_dir)
    return DataSource(name, split, DocumentBoundaries(tokenizer.eos_id), weight)


def _shard_source(path: str, settings: DataSettings, tokenizer: Tokenizer, *, weight: float = 1.0) -> DataSource:
    corpus = open_corpus_at(path, settings)
    split = split_corpus(corpus, tokenizer, train_ratio=settings.train_ratio, verify=settings.verify)
    if corpus.files.remote:
        split = _through_cache(split, corpus, settings)
    return DataSource(without_secrets(path), split, DocumentBoundaries(tokenizer.eos_id, corpus.eos_first), weight)


def _through_cache(split: TokenSplit, corpus: TokenCorpus, settings: DataSettings) -> TokenSplit:
    """Return the same split with its shards read through a cache on the local disk."""
    from gpt_pretrain.data.remote.remote_cache import CachedFiles
    from gpt_pretrain.data.remote.remote_files import RemoteFiles

    assert isinstance(corpus.files, RemoteFiles)
    shards = [shard for part in (corpus.train, corpus.val) if part is not None for shard in part.shards]
    checksums = {shard.name: shard.sha256 for shard in shards}
    files = CachedFiles(corpus.files, key=split.text_sha256, cache_dir=cache_folder(settings), checksums=checksums)
    return replace(split, train=with_files(split.train, files), val=with_files(split.val, files))


def _windows(
    source: DataSource,
    tokens: TokenStream,
    *,
    settings: DataSettings,
    context_length: int,
    max_windows: int | None = None,
    shifted: bool = False,
) -> TokenWindows:
    return TokenWindows(
        tokens,
        context_length=context_length,
        stride=context_length if settings.stride is None else settings.stride,
        boundaries=source.boundaries if settings.respect_documents else None,
        max_windows=max_windows,
        shifted=shifted,
    )


def _concatenate(sources: list[DataSource]) -> TokenSplit:
    """Return all sources of a mixture one after another. The hash depends on their weights too."""
    splits = [source.split for source in sources]
    weights = [source.weight / sum(source.weight for source in sources) for source in sources]
    content = [[split.text_sha256, round(weight, 12)] for split, weight in zip(splits, weights, strict=True)]
    return TokenSplit(
        ConcatenatedTokens([split.train for split in splits]),
        ConcatenatedTokens([split.val for split in splits]),
        text_sha256=hashlib.sha256(json.dumps(content).encode()).hexdigest(),
        characters=add_known(split.characters for split in splits),
        documents=add_known(split.documents for split in splits),
        n_bytes=add_known(split.n_bytes for split in splits),
    )


def _check_lengths(source: DataSource, context_length: int, settings: DataSettings) -> list[str]:
    """Return a problem for each set of a source that is shorter than one window and its last target."""
    train, val = source.split.train.count, source.split.val.count
    longest = min(train, val) - 1
    remedy = (
        f"The largest model.context_length that works here is {longest}. Or give more text, or another data.train_ratio."
        if longest >= 1
        else "No model.context_length works here. Give more text or another data.train_ratio."
    )
    of_source = f" of {source.name}" if settings.name == "mixture" else ""
    return [
        f"model.context_length={context_length}: the {name} set{of_source} has {format_count(count, 'token')}, "
        f"but a window needs {context_length + 1}. {remedy}"
        for name, count in (("training", train), ("validation", val))
        if count <= context_length
    ]
