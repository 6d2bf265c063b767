"""Folders of token shards in any format: their checks, and their split into a training set and a validation set."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from gpt_pretrain.data.files import Files
from gpt_pretrain.data.token_stream import ConcatenatedTokens, Shard, TokenSlice, TokenSplit, sample_tokens
from gpt_pretrain.errors import UserError
from gpt_pretrain.system.reading import DamagedFileError
from gpt_pretrain.tokenizers.base import Tokenizer, fingerprint
from gpt_pretrain.tokenizers.build import STORED_NAME, StoredTokenizer, restore_tokenizer
from gpt_pretrain.tokenizers.formats.vocabulary_files import MAX_FILE_BYTES, read_tokenizer

# If four-byte token ids are read as two bytes each, every second value is 0: the share of zeros is above MAX_ZEROS, and the share
# of neighbors that are both not 0 is below MAX_PAIRS. It is not 0, since the sample joins parts of the corpus.
MAX_ZEROS = 0.4
ZEROS_OF_EIGHT_BYTES = 0.7  # share of zeros above which the ids have eight bytes, not four
MAX_PAIRS = 0.05
NEGATIVE = 1 << 31  # Ids from here on were negative numbers of four or eight bytes.
PROBE = 4096  # bytes from the middle of each shard that represent its content if it has no checksum
CONCURRENT_READS = 16  # of remote shards
MAX_PROBLEMS = 5  # shards that are listed one by one
MAX_COUNT = 1 << 62  # the largest number of tokens, documents or bytes

Result = TypeVar("Result")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CorpusPart:
    """The training set or the validation set of a corpus.

    Args:
        shards: The shards in order.
        documents: Number of documents, if known.
        n_bytes: Size of the text in bytes, if known.
    """

    shards: tuple[Shard, ...]
    documents: int | None = None
    n_bytes: int | None = None


@dataclass(frozen=True)
class TokenCorpus:
    """A folder of token shards.

    Args:
        files: The folder.
        format: The name of its format.
        train: The training set.
        val: The validation set, or None if the folder has none.
        tokenizer: Name of the tokenizer that made the tokens.
        tokenizer_sha256: Fingerprint of that tokenizer, if known.
        tokenizer_definition: Its definition, if the name is not enough and no files of the folder hold it.
        eos_first: Whether the end-of-text token precedes each document instead of following it.
        states_itemsize: Whether the files state how many bytes a token has.
    """

    files: Files
    format: str
    train: CorpusPart
    val: CorpusPart | None
    tokenizer: str = "gpt2"
    tokenizer_sha256: str | None = None
    tokenizer_definition: str | None = None
    eos_first: bool = False
    states_itemsize: bool = True

    def build_tokenizer(self) -> Tokenizer:
        """Build the tokenizer that made the tokens.

        Raises:
            UserError: If the folder names one that it does not hold.
        """
        location = f"data.path={self.files.location}"
        if STORED_NAME.fullmatch(self.tokenizer) and self.tokenizer_definition is None:
            label = self.tokenizer.rpartition("@")[0]
            found = read_tokenizer(self._read_file, label=label, location=location)
            if found is not None and fingerprint(found) == self.tokenizer_sha256:
                return found
        return restore_tokenizer(StoredTokenizer(self.tokenizer, self.tokenizer_definition), origin=location)

    def _read_file(self, name: str) -> bytes | None:
        size = self.files.size(name)
        if size is not None and size > MAX_FILE_BYTES:
            raise DamagedFileError(f"it has more than {MAX_FILE_BYTES:,} bytes")
        return None if size is None else self.files.read(name, 0, size)


def split_corpus(corpus: TokenCorpus, tokenizer: Tokenizer, *, train_ratio: float, verify: bool = False) -> TokenSplit:
    """Check a corpus and return its training set and its validation set.

    Args:
        train_ratio: Share of the tokens to train on if the corpus has no validation set.
        verify: Compare the checksums of all shards too.

    Raises:
        UserError: If shards are missing or damaged, or the tokens are not from this tokenizer.
    """
    parts = [part for part in (corpus.train, corpus.val) if part is not None]
    if problems := _check_tokenizer(corpus, tokenizer) + _check_shards(corpus, parts, verify=verify):
        raise UserError(problems)
    streams = [ConcatenatedTokens(part.shards) for part in parts]
    if problems := [problem for stream in streams for problem in _check_token_ids(corpus, stream, tokenizer)]:
        raise UserError(problems)
    train, val = streams[0], streams[-1]
    text_sha256 = _content_hash(corpus, parts)
    documents, n_bytes = add_known(part.documents for part in parts), add_known(part.n_bytes for part in parts)
    if corpus.val is not None:
        return TokenSplit(train, val, text_sha256=text_sha256, documents=documents, n_bytes=n_bytes, is_given=True)
    cut = int(train_ratio * train.count)
    log.info(
        "%s has no validation set. The last %s tokens of the training set are used instead (data.train_ratio=%g).",
        corpus.files.location,
        f"{train.count - cut:,}",
        train_ratio,
    )
    return TokenSplit(
        TokenSlice(train, 0, cut),
        TokenSlice(train, cut, train.count - cut),
        text_sha256=text_sha256,
        documents=documents,
        n_bytes=n_bytes,
    )


def add_known(counts: Iterable[int | None]) -> int | None:
    """Return the sum of the counts, or None if one of them is unknown."""
    total = 0
    for count in counts:
        if count is None:
            return None
        total += count
    return total


def _check_tokenizer(corpus: TokenCorpus, tokenizer: Tokenizer) -> list[str]:
    if corpus.tokenizer_sha256 is None or fingerprint(tokenizer) == corpus.tokenizer_sha256:
        return []
    location = f"data.path={corpus.files.location}"
    if corpus.tokenizer == tokenizer.name:
        return [f"tokenizer={tokenizer.name}: {location} was made with a tokenizer of the same name but other tokens."]
    return [f"tokenizer={tokenizer.name}: {location} was made with {corpus.tokenizer}. Use that tokenizer."]


def _check_shards(corpus: TokenCorpus, parts: list[CorpusPart], *, verify: bool) -> list[str]:
    """Return a problem for each shard that is missing, has the wrong length or, with `verify`, the wrong checksum."""
    shards = [shard for part in parts for shard in part.shards]
    sizes = _map_shards(corpus.files, lambda shard: corpus.files.size(shard.name), shards)
    problems, checksums = [], dict[str, str]()
    for shard, size in zip(shards, sizes, strict=True):
        if not 0 <= shard.count < MAX_COUNT:
            problems.append(f"{shard.name} is damaged: it states an impossible number of tokens. Copy it again.")
        elif size is None:
            problems.append(f"{shard.name} is missing. Copy it again.")
        elif size != shard.n_bytes:
            problems.append(f"{shard.name} has {size:,} bytes instead of {shard.n_bytes:,}. Copy it again.")
        elif verify and shard.sha256 is not None:
            if shard.name not in checksums:  # a manifest may list a file a million times
                checksums[shard.name] = _sha256(shard)
            if checksums[shard.name] != shard.sha256:
                problems.append(f"{shard.name} is damaged: its checksum differs. Copy it again.")
    if len(problems) > MAX_PROBLEMS + 1:
        problems[MAX_PROBLEMS:] = [f"{len(problems) - MAX_PROBLEMS} more shards are missing or damaged."]
    return [f"data.path={corpus.files.location}: {problem}" for problem in problems]


def _map_shards(files: Files, function: Callable[[Shard], Result], shards: list[Shard]) -> list[Result]:
    """Apply a function to each shard, to several at a time if they are remote."""
    if not files.remote:
        return [function(shard) for shard in shards]
    with ThreadPoolExecutor(CONCURRENT_READS) as pool:
        return list(pool.map(function, shards))


def _sha256(shard: Shard) -> str:
    digest, step = hashlib.sha256(), 1 << 24
    for start in range(0, shard.n_bytes, step):
        digest.update(shard.files.read(shard.name, start, min(step, shard.n_bytes - start)))
    return digest.hexdigest()


def _check_token_ids(corpus: TokenCorpus, tokens: ConcatenatedTokens, tokenizer: Tokenizer) -> list[str]:
    """Return a problem if a sample of the tokens holds ids that the tokenizer does not have."""
    token_ids = sample_tokens(tokens)
    if not corpus.states_itemsize and _looks_like_four_bytes(token_ids):
        eight = np.mean(token_ids == 0) > ZEROS_OF_EIGHT_BYTES
        seen, size = ("three of four values are 0", "eight") if eight else ("nearly every second value is 0", "four")
        return [
            f"data.path={corpus.files.location}: {seen}, so the token ids seem to have {size} bytes, but "
            f"data.format={corpus.format} has two. Write them as uint16, or prepare the text with gpt-pretrain prepare."
        ]
    highest = int(token_ids.max(initial=0))
    if highest < tokenizer.vocab_size:
        return []
    if highest >= NEGATIVE:
        negative = highest - (1 << (64 if highest >> 63 else 32))
        return [
            f"data.path={corpus.files.location} has the token id {negative}, but ids are numbers from 0 on. "
            "Masked positions, which some programs mark by -100 or -1, cannot be trained on: write the ids without them."
        ]
    return [
        f"data.path={corpus.files.location} has token id {highest:,}, but tokenizer={tokenizer.name} has only "
        f"{tokenizer.vocab_size:,} ids. Choose the tokenizer that made the corpus, or set data.format if the format was detected "
        "wrongly."
    ]


def _looks_like_four_bytes(token_ids: np.ndarray) -> bool:
    """Return whether every second value is 0. It is not enough that half of them are, as in a text with only two tokens."""
    pairs = (token_ids[:-1] != 0) & (token_ids[1:] != 0)
    return len(pairs) > 0 and bool(np.mean(token_ids == 0) > MAX_ZEROS and np.mean(pairs) < MAX_PAIRS)


def _content_hash(corpus: TokenCorpus, parts: list[CorpusPart]) -> str:
    """Return a hash of the shards' checksums or, if there are none, of their names, lengths and a part of their content."""
    shards = [shard for part in parts for shard in part.shards]
    if all(shard.sha256 is not None for shard in shards):
        entries: list[Any] = [(shard.count, shard.sha256) for shard in shards]
    else:
        probes = _map_shards(corpus.files, lambda shard: corpus.files.read(shard.name, shard.n_bytes // 2, PROBE), shards)
        entries = [
            (shard.name, shard.count, hashlib.sha256(probe).hexdigest()) for shard, probe in zip(shards, probes, strict=True)
        ]
    content = [corpus.format, corpus.tokenizer_sha256, [len(part.shards) for part in parts], entries]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
