"""Read a tokenizer from the files of other programs: in a folder, of a model on the hub, or a single file.

The known formats are transformers' tokenizer.json, GPT-2's vocab.json with merges.txt, BERT's vocab.txt, each with the files
beside it, tiktoken's ranks, SentencePiece's models, nanoGPT's meta.pkl, and nanochat's tokenizer.pkl.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from gpt_pretrain.errors import UserError
from gpt_pretrain.system.reading import DamagedFileError, read_bytes
from gpt_pretrain.system.reading_cost import explained_by_own_size, explained_by_size
from gpt_pretrain.system.recognition.file_kinds import HEAD
from gpt_pretrain.system.recognition.file_recognition import recognize
from gpt_pretrain.tokenizers.base import Tokenizer
from gpt_pretrain.tokenizers.formats.added_tokens import FilesBeside, read_beside
from gpt_pretrain.tokenizers.formats.definition import parse_tokenizer_json
from gpt_pretrain.tokenizers.formats.encoding_pickle import ENCODING_FILE, is_encoding_pickle
from gpt_pretrain.tokenizers.formats.nanogpt_meta import META, read_meta
from gpt_pretrain.tokenizers.formats.vocabulary_formats import (
    from_encoding_pickle,
    from_ranks,
    from_sentencepiece,
    from_tokenizer_json,
    from_vocab_and_merges,
    from_word_pieces,
)
from gpt_pretrain.tokenizers.tables import restore_table

TOKENIZER_JSON, VOCAB_JSON, MERGES, VOCAB_TXT = "tokenizer.json", "vocab.json", "merges.txt", "vocab.txt"
TOKENIZER_CONFIG, SPECIAL_TOKENS, ADDED_TOKENS = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
MODEL_CONFIG = "config.json"
ALIASES = {VOCAB_JSON: "encoder.json", MERGES: "vocab.bpe"}  # OpenAI's names
TABLE_JSON = "tokenizer_table.json"  # this program's own file for a nanoGPT table
TIKTOKEN_ENDING = ".tiktoken"
SENTENCEPIECE = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
MAX_FILE_BYTES = 64_000_000  # The largest known tokenizer.json has 33 million bytes.

ReadFile = Callable[[str], bytes | None]


def read_folder_tokenizer(folder: Path) -> Tokenizer | None:
    """Return the tokenizer in a folder, or None if there is none.

    Raises:
        UserError: If its files cannot be read or used.
    """

    tokenizer = read_tokenizer(_folder_reader(folder), label=folder.resolve().name, location=str(folder))
    for ending in (TIKTOKEN_ENDING, f"-{VOCAB_JSON}"):
        if tokenizer is None and len(found := sorted(folder.glob(f"*{ending}"))) == 1:
            _read_file(found[0], within=_home(found[0]))
            return read_tokenizer_file(found[0])
    return tokenizer


def several_vocabularies(folder: Path) -> list[str]:
    """Return the names of files in a folder if several of them could be its vocabulary."""
    for ending in (TIKTOKEN_ENDING, f"-{VOCAB_JSON}"):
        if len(found := sorted(path.name for path in folder.glob(f"*{ending}"))) > 1:
            return found
    return []


@explained_by_own_size
def read_tokenizer_file(path: Path) -> Tokenizer:
    """Return the tokenizer in a file. The files beside it also count.

    Raises:
        UserError: If the file cannot be read or used, or is not a tokenizer's.
    """
    name, content, label = path.name, _read_file(path), path.parent.resolve().name
    prefix = next((name.removesuffix(ending) for ending in (VOCAB_JSON, MERGES) if name.endswith(f"-{ending}")), "")
    if name in (TOKENIZER_CONFIG, SPECIAL_TOKENS, ADDED_TOKENS, MODEL_CONFIG):
        raise UserError(f"{path} says how a vocabulary is used, but does not hold one. Give its folder: tokenizer={path.parent}")
    try:
        if path.suffix == TIKTOKEN_ENDING:
            return from_ranks(content, label=path.stem)
        if path.suffix == ".pkl" and is_encoding_pickle(content):
            return from_encoding_pickle(content, label=label)
        if path.suffix == ".pkl":
            return read_meta(content, end_of_text=False, label=label)
        if path.suffix == ".model":
            return from_sentencepiece(content, _beside(_folder_reader(path.parent)), label=path.stem)
        if path.suffix == ".json" and not prefix and name not in (VOCAB_JSON, TOKENIZER_JSON, TABLE_JSON, ALIASES[VOCAB_JSON]):
            return from_tokenizer_json(content, FilesBeside(), label=path.stem)  # such as my-tokenizer.json
    except DamagedFileError as error:
        raise UserError(f"{path} cannot be used as a tokenizer: {error}.") from error
    if prefix or name in (TOKENIZER_JSON, VOCAB_JSON, MERGES, VOCAB_TXT, TABLE_JSON, *ALIASES.values()):
        others = () if name == TOKENIZER_JSON else (TOKENIZER_JSON,)
        read = _folder_reader(path.parent, prefix=prefix, hidden=others, typed=name)
        tokenizer = read_tokenizer(read, label=prefix.rstrip("-") or label, location=str(path.parent))
        if tokenizer is not None:
            return tokenizer
    found = recognize(name, content[:HEAD]).described()
    raise UserError(
        f"{path} is {found}, not a file of a tokenizer. Give {TOKENIZER_JSON}, {VOCAB_JSON} with {MERGES}, {VOCAB_TXT}, "
        f"*{TIKTOKEN_ENDING}, nanoGPT's {META} or nanochat's {ENCODING_FILE}, or the folder of a model."
    )


def _folder_reader(folder: Path, *, prefix: str = "", hidden: Sequence[str] = (), typed: str = "") -> ReadFile:
    """Return a function that reads a file of a folder by its name. It also finds the file by other programs' names for it.

    Args:
        prefix: The beginning of the names of a vocabulary and its merges.
        hidden: Files that are treated as if they were missing.
        typed: The name of the file that the user has named. It may be a link to anywhere.
    """

    def read(name: str) -> bytes | None:
        own = prefix + name if name in ALIASES else name
        for path in (folder / own, folder / ALIASES.get(name, own)):
            if name not in hidden and path.is_file():
                return _read_file(path, within=None if path.name == typed else _home(path))
        return None

    return read


def read_tokenizer(read: ReadFile, *, label: str, location: str) -> Tokenizer | None:
    """Return the tokenizer in the files that a function reads, or None if there is none.

    Args:
        read: Returns the content of a file by its name, or None if there is no such file.
        label: The name of the folder or repository. It becomes a part of the tokenizer's name.
        location: The folder or repository, for messages.

    Raises:
        UserError: If the files cannot be used.
    """
    with explained_by_size(location):
        return _read_first_vocabulary(read, label=label, location=location)


def _read_first_vocabulary(read: ReadFile, *, label: str, location: str) -> Tokenizer | None:
    name = TOKENIZER_JSON
    try:
        if (content := read(TOKENIZER_JSON)) is not None:
            return from_tokenizer_json(content, _beside(read), label=label)
        if (content := read(name := VOCAB_JSON)) is not None:
            return from_vocab_and_merges(content, read(MERGES), _beside(read), label=label)
        if (content := read(name := VOCAB_TXT)) is not None:
            return from_word_pieces(content, _beside(read), label=label)
        for name in SENTENCEPIECE:
            if (content := read(name)) is not None:
                return from_sentencepiece(content, _beside(read), label=label)
        if (content := read(name := META)) is not None:
            return read_meta(content, end_of_text=False, label=label)
        if (content := read(name := ENCODING_FILE)) is not None and is_encoding_pickle(content):
            return from_encoding_pickle(content, label=label)
        if (content := read(name := TABLE_JSON)) is not None:
            return restore_table(label, parse_tokenizer_json(content))
    except DamagedFileError as error:
        raise UserError(f"{location}: {name} cannot be used as a tokenizer: {error}.") from error
    return None


def _beside(read: ReadFile) -> FilesBeside:
    return read_beside(read(TOKENIZER_CONFIG), read(SPECIAL_TOKENS), read(ADDED_TOKENS))


def _home(path: Path) -> Path:
    """Return the folder that must contain a file after its links are followed: its own, or the hub's cache for a link.

    Any list of words is a valid vocabulary, and becomes a part of checkpoints and exports. In a folder from somebody else, a link
    could lead to a private file and thereby publish it.
    """
    is_cached = path.is_symlink() and path.parent.parent.name == "snapshots"
    return path.parent.parent.parent / "blobs" if is_cached else path.parent


def _read_file(path: Path, *, within: Path | None = None) -> bytes:
    try:
        return read_bytes(path, max_bytes=MAX_FILE_BYTES, within=within)
    except DamagedFileError as error:
        raise UserError(f"{path} cannot be used as a tokenizer: {error}.") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from error
