"""What the `data` settings name, as windows: a text, token shards, or a mixture of several of them."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, replace
from pathlib import Path

from gpt_pretrain.config.schema import DataSettings
from gpt_pretrain.data.corpus import TokenCorpus, open_corpus, split_of
from gpt_pretrain.data.documents import Documents
from gpt_pretrain.data.files import Files, LocalFiles, is_url
from gpt_pretrain.data.manifest import MANIFEST
from gpt_pretrain.data.mixture import MixedWindows, most_in_proportion
from gpt_pretrain.data.shards import ConcatenatedTokens, moved
from gpt_pretrain.data.text import Text, cache_folder, find_text
from gpt_pretrain.data.tokens import TokenSplit, tokenize_text
from gpt_pretrain.data.windows import TokenWindows, Windows
from gpt_pretrain.errors import UserError
from gpt_pretrain.tokenizers.base import Tokenizer


@dataclass(frozen=True)
class DataSource:
    """A text or a corpus as tokens.

    Args:
        name: what to call it in messages.
        split: its two parts.
        documents: how its documents are told apart.
        weight: its share of a mixture.
    """

    name: str
    split: TokenSplit
    documents: Documents
    weight: float = 1.0


def tokenizer_of(settings: DataSettings) -> str | None:
    """The tokenizer that the shards named were made with; None for a text, which goes with any.

    Raises:
        UserError: when there are no shards, or they are of different tokenizers.
    """
    names = {path: corpus_at(path, settings).tokenizer for path in _shard_paths(settings)}
    if len(set(names.values())) > 1:
        told = ", ".join(f"{path} with {name}" for path, name in names.items())
        raise UserError(f"data.sources were made with different tokenizers: {told}. A mixture needs one for all.")
    return next(iter(names.values()), None)


def find_windows(
    settings: DataSettings, tokenizer: Tokenizer, *, context_length: int
) -> tuple[TokenSplit, Windows, Windows, list[DataSource]]:
    """The tokens that the settings name, and windows of both parts.

    Returns:
        Both parts, windows to train on and to validate on, and the sources of a mixture.

    Raises:
        UserError: when there is no usable text or corpus, or too little of it for these windows.
    """
    sources = _find_sources(settings, tokenizer)
    if problems := [problem for source in sources for problem in _too_short(source, context_length, settings)]:
        raise UserError(problems)
    train = [_windows(source, settings, part="train", context_length=context_length) for source in sources]
    val = [_windows(source, settings, part="val", context_length=context_length) for source in sources]
    at_most = None if settings.val_tokens is None else math.ceil(settings.val_tokens / context_length)
    if settings.name != "mixture":
        val = [_windows(sources[0], settings, part="val", context_length=context_length, at_most=at_most)]
        return sources[0].split, train[0], val[0], []
    weights = [source.weight for source in sources]
    kept = most_in_proportion([len(windows) for windows in val], weights, at_most=at_most)
    val = [
        _windows(source, settings, part="val", context_length=context_length, at_most=count)
        for source, count in zip(sources, kept, strict=True)
    ]
    return _joined(sources), MixedWindows(train, weights), MixedWindows(val, weights), sources


def corpus_at(path: str, settings: DataSettings) -> TokenCorpus:
    """The corpus of token shards in a folder, or beside a file of it, or behind a URL.

    Raises:
        UserError: when there is none.
    """
    return open_corpus(_files_at(path, settings), form=settings.format)


def _files_at(path: str, settings: DataSettings) -> Files:
    if is_url(path):
        from gpt_pretrain.data.remote import RemoteFiles

        folder, _, last = path.rpartition("/")
        return RemoteFiles(folder if last in (MANIFEST, "train.bin") else path, settings.remote)
    place = Path(path).expanduser()
    if place.is_file():
        if place.name not in (MANIFEST, "train.bin"):
            raise UserError(
                f"data.path={path}: the parts of a corpus are found by their names. Give the folder, its {MANIFEST}, or "
                "nanoGPT's train.bin; a file of another name has to be renamed first."
            )
        place = place.parent
    if not place.is_dir():
        raise UserError(f"data.path={path}: there is no such folder. Give one of token shards, or its URL.")
    return LocalFiles(place)


def _find_sources(settings: DataSettings, tokenizer: Tokenizer) -> list[DataSource]:
    if settings.name == "mixture":
        if not settings.sources:
            raise UserError("data=mixture needs data.sources='[{path: FOLDER, weight: 0.7}, {path: FOLDER2, weight: 0.3}]'.")
        return [_find_source(one.path, settings, tokenizer, weight=one.weight) for one in settings.sources]
    if settings.name == "shards":
        if settings.path is None:
            raise UserError("data=shards needs data.path=FOLDER of token shards, or its URL.")
        return [_find_source(settings.path, settings, tokenizer)]
    if settings.path is not None and looks_like_shards(settings.path):
        raise UserError(f"data.path={settings.path}: these are token shards, or behind a URL: add data=shards.")
    text = find_text(settings, cache_dir=cache_folder(settings))
    return [DataSource(settings.name, _text_split(text, settings, tokenizer), Documents(tokenizer.eos_id))]


def _find_source(path: str, settings: DataSettings, tokenizer: Tokenizer, *, weight: float = 1.0) -> DataSource:
    """A folder of shards, or, in a mixture, a text as well."""
    if settings.name == "mixture" and not looks_like_shards(path):
        text = find_text(DataSettings(**{**vars(settings), "path": path}), cache_dir=cache_folder(settings))
        return DataSource(path, _text_split(text, settings, tokenizer), Documents(tokenizer.eos_id), weight)
    corpus = corpus_at(path, settings)
    split = split_of(corpus, tokenizer, train_ratio=settings.train_ratio, verify=settings.verify)
    if corpus.files.remote:
        split = _through_cache(split, corpus, settings)
    return DataSource(path, split, Documents(tokenizer.eos_id, corpus.end_first), weight)


def _through_cache(split: TokenSplit, corpus: TokenCorpus, settings: DataSettings) -> TokenSplit:
    """The same, with the shards read through a cache on this machine."""
    from gpt_pretrain.data.remote import CachedFiles, RemoteFiles

    assert isinstance(corpus.files, RemoteFiles)
    shards = [shard for part in (corpus.train, corpus.val) if part is not None for shard in part.shards]
    checksums = {shard.name: shard.sha256 for shard in shards}
    files = CachedFiles(corpus.files, key=split.text_sha256, cache_dir=cache_folder(settings), checksums=checksums)
    return replace(split, train=moved(split.train, files), val=moved(split.val, files))


def looks_like_shards(path: str) -> bool:
    """Whether a path is of token shards, and not of text."""
    place = Path(path).expanduser()
    if is_url(path) or place.suffix == ".bin" or (place / MANIFEST).is_file():
        return True
    return place.is_dir() and any(place.glob("*.bin"))


def _shard_paths(settings: DataSettings) -> list[str]:
    if settings.name == "shards":
        return [] if settings.path is None else [settings.path]
    return [one.path for one in settings.sources if looks_like_shards(one.path)] if settings.name == "mixture" else []


def _text_split(text: Text, settings: DataSettings, tokenizer: Tokenizer) -> TokenSplit:
    return tokenize_text(text, tokenizer, train_ratio=settings.train_ratio, cache_dir=cache_folder(settings))


def _windows(
    source: DataSource, settings: DataSettings, *, part: str, context_length: int, at_most: int | None = None
) -> TokenWindows:
    return TokenWindows(
        getattr(source.split, part),
        context_length=context_length,
        stride=context_length if settings.stride is None else settings.stride,
        documents=source.documents if settings.respect_documents else None,
        at_most=at_most,
    )


def _joined(sources: list[DataSource]) -> TokenSplit:
    """All sources of a mixture one after another; its hash tells their weights as well."""
    splits = [source.split for source in sources]
    weights = [source.weight / sum(source.weight for source in sources) for source in sources]
    told = [[split.text_sha256, round(weight, 12)] for split, weight in zip(splits, weights, strict=True)]
    amounts = {name: [getattr(split, name) for split in splits] for name in ("characters", "documents", "n_bytes")}
    return TokenSplit(
        ConcatenatedTokens([split.train for split in splits]),
        ConcatenatedTokens([split.val for split in splits]),
        text_sha256=hashlib.sha256(json.dumps(told).encode()).hexdigest(),
        **{name: None if None in counts else sum(counts) for name, counts in amounts.items()},
    )


def _too_short(source: DataSource, context_length: int, settings: DataSettings) -> list[str]:
    """Parts of a source that are shorter than one window and its target."""
    train, val = source.split.train.count, source.split.val.count
    longest = min(train, val) - 1
    remedy = (
        f"The largest model.context_length that works here is {longest}; or give more text, or another data.train_ratio."
        if longest >= 1
        else "No model.context_length works here; give more text or another data.train_ratio."
    )
    of = f" of {source.name}" if settings.name == "mixture" else ""
    return [
        f"model.context_length={context_length}: the {part} part{of} has {count} tokens, "
        f"and a window needs {context_length + 1}. {remedy}"
        for part, count in (("training", train), ("validation", val))
        if count <= context_length
    ]
