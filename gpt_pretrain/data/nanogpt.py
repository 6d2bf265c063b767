"""nanoGPT's format of token shards: train.bin and val.bin of two-byte token ids, with an optional meta.pkl."""

from __future__ import annotations

from dataclasses import replace

from gpt_pretrain.data.corpus import CorpusPart, TokenCorpus
from gpt_pretrain.data.files import Files
from gpt_pretrain.data.token_stream import Shard
from gpt_pretrain.errors import UserError
from gpt_pretrain.system.pickles import read_plain_pickle
from gpt_pretrain.system.reading import DamagedFileError, short_repr
from gpt_pretrain.tokenizers.base import fingerprint
from gpt_pretrain.tokenizers.characters import CharacterTokenizer

TRAIN, VAL, META = "train.bin", "val.bin", "meta.pkl"
MAX_META_BYTES = 20_000_000  # One character takes 20 bytes, and Unicode has 150,000.
ITEMSIZE = 2  # bytes per token; Source: karpathy/nanoGPT, data/openwebtext/prepare.py


def is_nanogpt(files: Files) -> bool:
    """Return whether a folder holds a training set in this format."""
    return TRAIN in files.names()


def open_nanogpt(files: Files) -> TokenCorpus:
    """Describe a folder in nanoGPT's format.

    Raises:
        UserError: If train.bin is missing or meta.pkl is damaged.
    """
    names = files.names()
    if TRAIN not in names:
        raise UserError(f"data.path={files.location}: {TRAIN} is missing, which nanoGPT's format requires.")
    val = _read_part(files, VAL) if VAL in names else None
    corpus = TokenCorpus(files, "nanogpt", _read_part(files, TRAIN), val, states_itemsize=False)
    if META not in names:
        return corpus
    characters = CharacterTokenizer(_read_alphabet(files))
    return replace(corpus, tokenizer=characters.name, tokenizer_sha256=fingerprint(characters))


def _read_part(files: Files, name: str) -> CorpusPart:
    return CorpusPart((Shard(files, name, (files.size(name) or 0) // ITEMSIZE, ITEMSIZE),))


def _read_alphabet(files: Files) -> str:
    """Return the characters of a character-level corpus in the order of their ids.

    Raises:
        UserError: If the file holds anything but plain data.

    Source: karpathy/nanoGPT, data/shakespeare_char/prepare.py.
    """
    try:
        if (size := files.size(META) or 0) > MAX_META_BYTES:
            raise DamagedFileError(f"it has more than {MAX_META_BYTES:,} bytes")
        content = read_plain_pickle(files.read(META, 0, size))
        itos = content.get("itos") if isinstance(content, dict) else None
        if not isinstance(itos, dict) or itos.keys() != set(range(len(itos))):
            raise DamagedFileError("it has no table itos of the characters by their ids")
        alphabet = [itos[token_id] for token_id in range(len(itos))]
        for character in alphabet:
            if not isinstance(character, str) or len(character) != 1 or "\ud800" <= character <= "\udfff":
                raise DamagedFileError(f"its itos holds {short_repr(character)}, which is no character")
    except DamagedFileError as error:
        raise UserError(
            f"data.path={files.location}: {META}, which lists nanoGPT's characters, cannot be read as plain data: {error}. Train "
            "on the text itself: data=text tokenizer=byte data.path=input.txt"
        ) from error
    return "".join(alphabet)
