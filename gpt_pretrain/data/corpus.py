"""Folders of token shards: this program's own, nanoGPT's and llm.c's, told apart by looking, and checked before they are read."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import pickle
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np

from gpt_pretrain.data.files import Files
from gpt_pretrain.data.manifest import FORMAT as OURS
from gpt_pretrain.data.manifest import MANIFEST
from gpt_pretrain.data.shards import ConcatenatedTokens, Shard, TokenSlice
from gpt_pretrain.data.tokens import TokenSplit, sample_tokens
from gpt_pretrain.errors import UserError
from gpt_pretrain.tokenizers.base import Tokenizer, fingerprint
from gpt_pretrain.tokenizers.characters import CharacterTokenizer

META = "meta.pkl"
BEGUN = ".work/plan.json"  # which a corpus has while it is made
FORMATS = ("gpt_pretrain", "nanogpt", "llmc")
MOST_ZEROS = 0.4  # share of a sample; of four-byte ids read as two bytes each, half are 0
LLMC_MAGIC, LLMC_VERSION, LLMC_HEADER = 20240520, 1, 1024  # bytes; Source: karpathy/llm.c, dev/data/data_common.py
LLMC_LLAMA3 = 20240801
PROBE = 4096  # bytes from the middle of each shard that tell one corpus from another where no checksums do
AT_ONCE = 16  # files looked at, which takes a while each where they are far away

Result = TypeVar("Result")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Part:
    """The shards of one part of a corpus, in order, with what its manifest says about the text behind them."""

    shards: tuple[Shard, ...]
    documents: int | None = None
    n_bytes: int | None = None


@dataclass(frozen=True)
class TokenCorpus:
    """A folder of token shards.

    Args:
        form: one of FORMATS.
        train, val: its parts; val is None where there is none.
        tokenizer: the name of the tokenizer that it was made with.
        tokenizer_sha256: its fingerprint, where that is known.
        end_first: whether an end of text stands before each document, instead of behind it.
    """

    files: Files
    form: str
    train: Part
    val: Part | None
    tokenizer: str = "gpt2"
    tokenizer_sha256: str | None = None
    end_first: bool = False


def open_corpus(files: Files, *, form: str = "auto") -> TokenCorpus:
    """What a folder of token shards says about itself.

    Args:
        form: one of FORMATS, or "auto" to find it out.

    Raises:
        UserError: when it holds none, or is unfinished.
    """
    if form == "gpt_pretrain" or (form == "auto" and files.size(MANIFEST) is not None):
        return _ours(files)
    names = files.names()
    if form == "auto":
        form = _form_of(files, names)
    return _nanogpt(files, names) if form == "nanogpt" else _llmc(files, names)


def split_of(corpus: TokenCorpus, tokenizer: Tokenizer, *, train_ratio: float, verify: bool = False) -> TokenSplit:
    """The two parts of a corpus, checked: each shard is as long as it should be, and the tokens are of this tokenizer.

    Args:
        train_ratio: share of the tokens that is for training, where the corpus has no validation part.
        verify: compare all checksums as well.

    Raises:
        UserError: when something is amiss.
    """
    parts = [part for part in (corpus.train, corpus.val) if part is not None]
    problems = _check_tokenizer(corpus, tokenizer) + _check_shards(corpus, parts, verify=verify)
    if problems:
        raise UserError(problems)
    joined = [ConcatenatedTokens(part.shards) for part in parts]
    if problems := [problem for tokens in joined for problem in _check_ids(corpus, tokens, tokenizer)]:
        raise UserError(problems)
    train, val = joined[0], joined[-1]
    known = {
        name: sum(counts) if None not in (counts := [getattr(part, name) for part in parts]) else None
        for name in ("documents", "n_bytes")
    }
    if corpus.val is not None:
        return TokenSplit(train, val, text_sha256=_content_hash(corpus, parts), **known)
    cut = int(train_ratio * train.count)
    log.info(
        "data.path=%s has no validation part: the last %s tokens of its training part are taken for it (data.train_ratio=%g)",
        corpus.files.place,
        f"{train.count - cut:,}",
        train_ratio,
    )
    return TokenSplit(
        TokenSlice(train, 0, cut), TokenSlice(train, cut, train.count - cut), text_sha256=_content_hash(corpus, parts), **known
    )


def _ours(files: Files) -> TokenCorpus:
    size = files.size(MANIFEST)
    if size is None:
        raise UserError(f"data.path={files.place}: there is no {MANIFEST}.{_unfinished(files, files.names())}")
    try:
        content = json.loads(files.read(MANIFEST, 0, size))
        if content["format"] != OURS or content["version"] != 1:
            raise UserError(
                f"data.path={files.place}: its {MANIFEST} is of format {content['format']!r}, version {content['version']!r}, "
                f"and this program reads {OURS!r}, version 1. Make it again with gpt-pretrain prepare."
            )
        itemsize = {2: 2, 4: 4}[content["itemsize"]]
        parts = {name: _our_part(files, told, itemsize) for name, told in content["parts"].items()}
        train, tokenizer = parts["train"], content["tokenizer"]
        name, sha256 = str(tokenizer["name"]), str(tokenizer["sha256"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"data.path={files.place}: its {MANIFEST} is damaged ({type(error).__name__}: {error}). Copy or make it again."
        ) from error
    val = parts.get("val")
    return TokenCorpus(
        files, "gpt_pretrain", train, val if val and any(shard.count for shard in val.shards) else None, name, sha256
    )


def _our_part(files: Files, told: dict[str, Any], itemsize: int) -> Part:
    shards = [Shard(files, str(one["file"]), int(one["tokens"]), itemsize, sha256=str(one["sha256"])) for one in told["shards"]]
    if any("/" in shard.name or "\\" in shard.name or shard.count < 0 for shard in shards):
        raise ValueError("a shard with an odd name or length")
    return Part(tuple(shards), int(told["documents"]), int(told["bytes"]))


def _form_of(files: Files, names: list[str]) -> str:
    """Which of the foreign formats it is.

    Raises:
        UserError: when it is none.
    """
    binaries = [name for name in names if name.endswith(".bin")]
    if any(_llmc_count(files, name) is not None for name in binaries if re.search(r"_train(_|\.)", name)):
        return "llmc"
    if "train.bin" in names:
        return "nanogpt"
    if others := [name for name in binaries if _magic(files, name) == LLMC_LLAMA3]:
        raise UserError(
            f"data.path={files.place}: {others[0]} is a shard of llm.c's for Llama 3, whose vocabulary no tokenizer here has. "
            "Prepare the text with gpt-pretrain prepare."
        )
    raise UserError(
        f"data.path={files.place}: there are no token shards.{_unfinished(files, names)} Wanted is a folder with manifest.json "
        "(gpt-pretrain prepare makes one), nanoGPT's train.bin and val.bin, or llm.c's *_train_*.bin and *_val_*.bin. "
        "For text files choose data=text."
    )


def _unfinished(files: Files, names: list[str]) -> str:
    """What to say about shards of this program's own without a manifest; empty where there are none."""
    if files.size(BEGUN) is not None:
        return (
            " The corpus is unfinished: its manifest is written last. Start the same command that makes it again, which goes on."
        )
    lost = any(re.match(r"\.?(train|val)-\d+\.(bin|idx)", name) for name in names)
    return f" Its {MANIFEST}, without which its shards are not read, is not there: copy it as well." if lost else ""


def _nanogpt(files: Files, names: list[str]) -> TokenCorpus:
    if "train.bin" not in names:
        raise UserError(f"data.path={files.place}: there is no train.bin, which nanoGPT's format has.")
    parts = [_foreign_part(files, [name], header=0) for name in ("train.bin", "val.bin") if name in names]
    corpus = TokenCorpus(files, "nanogpt", parts[0], parts[1] if len(parts) == 2 else None)
    if META not in names:
        return corpus
    characters = CharacterTokenizer(_alphabet(files))
    return replace(corpus, tokenizer=characters.name, tokenizer_sha256=fingerprint(characters))


class _PlainUnpickler(pickle.Unpickler):
    """Reads dicts, lists, texts and numbers, and nothing that could run anything."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def _alphabet(files: Files) -> str:
    """The characters that nanoGPT's preparation of single characters has noted beside its tokens, in the order of their ids.

    Raises:
        UserError: when the file holds anything else.

    Source: karpathy/nanoGPT, data/shakespeare_char/prepare.py.
    """
    try:
        itos = _PlainUnpickler(io.BytesIO(files.read(META, 0, files.size(META) or 0))).load()["itos"]
        alphabet = [itos[number] for number in range(len(itos))]
        if any(not isinstance(one, str) or len(one) != 1 for one in alphabet):
            raise ValueError("its itos is no table of characters")
    except Exception as error:  # a damaged pickle file may bring about any
        raise UserError(
            f"data.path={files.place}: {META}, which should tell nanoGPT's characters, cannot be read as plain data "
            f"({type(error).__name__}: {error}). Train on the text itself: data=text tokenizer=byte data.path=input.txt"
        ) from error
    return "".join(alphabet)


def _llmc(files: Files, names: list[str]) -> TokenCorpus:
    found = {part: [name for name in names if re.search(rf"_{part}(_.*)?\.bin$", name)] for part in ("train", "val")}
    if not found["train"]:
        raise UserError(f"data.path={files.place}: there are no *_train_*.bin, which llm.c's format has.")
    counts = {name: _llmc_count(files, name) for shards in found.values() for name in shards}
    if bad := [name for name, count in counts.items() if count is None]:
        raise UserError(
            f"data.path={files.place}: {', '.join(bad[:3])} {'does' if len(bad) == 1 else 'do'} not begin with llm.c's header "
            f"(magic number {LLMC_MAGIC}, version {LLMC_VERSION}). Take the files that are no shards out of the folder."
        )
    train, val = (
        Part(tuple(Shard(files, name, counts[name] or 0, 2, header=LLMC_HEADER) for name in found[part])) for part in found
    )
    return TokenCorpus(files, "llmc", train, val if val.shards else None, end_first=True)


def _foreign_part(files: Files, names: list[str], *, header: int) -> Part:
    return Part(tuple(Shard(files, name, ((files.size(name) or 0) - header) // 2, 2, header) for name in names))


def _magic(files: Files, name: str) -> int:
    """The number that a file begins with."""
    return int.from_bytes(files.read(name, 0, 4), "little")


def _llmc_count(files: Files, name: str) -> int | None:
    """Tokens in a shard of llm.c, as its header says; None where it has no such header."""
    head = np.frombuffer(files.read(name, 0, 12).ljust(12, b"\0"), "<i4")
    return int(head[2]) if (head[0], head[1]) == (LLMC_MAGIC, LLMC_VERSION) else None


def _check_tokenizer(corpus: TokenCorpus, tokenizer: Tokenizer) -> list[str]:
    if corpus.tokenizer_sha256 is None or fingerprint(tokenizer) == corpus.tokenizer_sha256:
        return []
    return [
        f"tokenizer={tokenizer.name}: data.path={corpus.files.place} was made with "
        + (f"{corpus.tokenizer}; choose that." if corpus.tokenizer != tokenizer.name else "other tokens under the same name.")
    ]


def _check_shards(corpus: TokenCorpus, parts: list[Part], *, verify: bool) -> list[str]:
    """Shards that are missing, or of another length or, where that is to be verified, content than they should be."""
    shards = [shard for part in parts for shard in part.shards]
    problems = []
    for shard, size in zip(shards, _each(corpus.files, lambda shard: corpus.files.size(shard.name), shards), strict=True):
        if size is None:
            problems.append(f"data.path={corpus.files.place}: {shard.name} is missing. Copy it anew.")
        elif size != shard.n_bytes:
            told = f"has {size:,} bytes instead of {shard.n_bytes:,}"
            problems.append(f"data.path={corpus.files.place}: {shard.name} {told}. Copy it anew.")
        elif verify and shard.sha256 is not None and _sha256(shard) != shard.sha256:
            problems.append(f"data.path={corpus.files.place}: {shard.name} is damaged: its checksum differs. Copy it anew.")
    more = len(problems) - 5
    return (
        problems
        if more <= 1
        else [*problems[:5], f"data.path={corpus.files.place}: {more} more shards are not as they should be."]
    )


def _each(files: Files, look: Callable[[Shard], Result], shards: list[Shard]) -> list[Result]:
    """What a look at each shard gives; several at a time where they are far away."""
    if not files.remote:
        return [look(shard) for shard in shards]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(look, shards))


def _sha256(shard: Shard) -> str:
    digest, step = hashlib.sha256(), 1 << 24
    for start in range(0, shard.n_bytes, step):
        digest.update(shard.files.read(shard.name, start, min(step, shard.n_bytes - start)))
    return digest.hexdigest()


def _check_ids(corpus: TokenCorpus, tokens: ConcatenatedTokens, tokenizer: Tokenizer) -> list[str]:
    """Token ids that the tokenizer does not have, looked for in a sample."""
    ids = sample_tokens(tokens)
    if corpus.form == "nanogpt" and len(ids) and np.mean(ids == 0) > MOST_ZEROS:
        return [
            f"data.path={corpus.files.place}: nearly every second number is 0, so these seem to be token ids of four bytes, and "
            "nanoGPT's have two. Write them as uint16, or prepare the text with gpt-pretrain prepare."
        ]
    highest = int(ids.max(initial=0))
    if highest < tokenizer.vocab_size:
        return []
    return [
        f"data.path={corpus.files.place} has token id {highest}, and tokenizer={tokenizer.name} only {tokenizer.vocab_size} ids. "
        "Choose the tokenizer that it was made with, or data.format= if its bytes are read in the wrong way."
    ]


def _content_hash(corpus: TokenCorpus, parts: list[Part]) -> str:
    """A hash of what is in the shards: of their checksums, or, where there are none, of names, lengths and samples."""
    shards = [shard for part in parts for shard in part.shards]
    if corpus.form == "gpt_pretrain":
        told: list[Any] = [(shard.count, shard.sha256) for shard in shards]
    else:
        probes = _each(corpus.files, lambda shard: corpus.files.read(shard.name, shard.n_bytes // 2, PROBE), shards)
        told = [(shard.name, shard.count, hashlib.sha256(probe).hexdigest()) for shard, probe in zip(shards, probes, strict=True)]
    known = [corpus.form, corpus.tokenizer_sha256, [len(part.shards) for part in parts], told]
    return hashlib.sha256(json.dumps(known).encode()).hexdigest()
