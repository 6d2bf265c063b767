"""Describe a trained vocabulary: bytes per token compared with other vocabularies, scripts, and its longest and oddest tokens."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache

import numpy as np

from gpt_pretrain.system.formatting import format_count
from gpt_pretrain.system.tables import format_table
from gpt_pretrain.texts.sampling import TextSample
from gpt_pretrain.tokenizers.base import Tokenizer
from gpt_pretrain.tokenizers.tiktoken_bpe import is_installed, load_tiktoken

MEASURED_BYTES = 3_000_000  # Bytes of each sample.
OTHERS = ("gpt2", "cl100k_base")
WIDTHS = (128, 384, 768)  # emb_dim of small models and of GPT-2
N_SHOWN, MAX_SHOWN_CHARACTERS, MAX_SCRIPTS = 8, 40, 8
FEW_BYTES = 100  # Bytes of text per token of the vocabulary; with less, most tokens are words that occur a few times.


def describe_vocabulary(tokenizer: Tokenizer, training: TextSample, held_out: TextSample) -> list[str]:
    """Return the lines of the report."""
    given = {"training text": training, "held-out text": held_out}
    samples = {name: list(sample.texts(until=MEASURED_BYTES)) for name, sample in given.items()}
    others = [load_tiktoken(name) for name in OTHERS if is_installed(name)]
    uses = np.zeros(tokenizer.vocab_size, np.int64)
    rows = [["bytes per token", f"this one ({tokenizer.vocab_size:,})", *(f"{one.name} ({one.vocab_size:,})" for one in others)]]
    for name, texts in samples.items():
        if texts:
            size = sum(len(text.encode()) for text in texts)
            counts = [_count_tokens(one, texts, uses if one is tokenizer else None) for one in (tokenizer, *others)]
            rows.append([name, *(f"{size / count:.2f}" for count in counts)])
    lines = [format_table(rows)]
    if not samples["held-out text"]:
        lines.append("No text is held out. Give several documents or a longer one, and a val_fraction above 0.")
    if len(others) < len(OTHERS):
        lines.append("cl100k_base is not on this machine; tokenizer=cl100k_base downloads it once.")
    if training.n_bytes < FEW_BYTES * tokenizer.vocab_size:
        lines.append(
            f"With only {training.n_bytes / tokenizer.vocab_size:.0f} bytes of text per token, many tokens are "
            "whole words that occur a few times. Choose a smaller vocab_size, or give more text."
        )
    lines += ["", format_table(_script_rows(tokenizer, samples["training text"])), "", *_token_lines(tokenizer, uses)]
    parameters = ", ".join(f"{tokenizer.vocab_size * width:,} at emb_dim={width}" for width in WIDTHS)
    return [*lines, f"Parameters of its embedding: {parameters}."]


def script_of(char: str) -> str | None:
    """Return the script of a letter, such as Latin or Cyrillic, by the first word of its name; None for other characters."""
    if not unicodedata.category(char).startswith("L"):
        return None
    return unicodedata.name(char, "other").partition(" ")[0].capitalize().replace("Cjk", "Chinese")


def _count_tokens(tokenizer: Tokenizer, texts: Iterable[str], uses: np.ndarray | None = None) -> int:
    """Return the number of tokens of texts, and add the number of uses of each token to `uses`."""
    n_tokens = 0
    for text in texts:
        token_ids = tokenizer.encode_ordinary(text)
        n_tokens += len(token_ids)
        if uses is not None:
            uses += np.bincount(token_ids, minlength=len(uses))
    return n_tokens


def _script_rows(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[str]]:
    """Return a table of the scripts in the texts: their share of the letters, and the number of tokens with such letters."""
    find = cache(script_of)
    characters = Counter[str]()
    for text in texts:
        characters.update(text)
    letters, tokens = Counter[str](), Counter[str]()
    for char, count in characters.items():
        if (script := find(char)) is not None:
            letters[script] += count
    for token in _decoded_tokens(tokenizer):
        tokens.update({script for char in token or "" if (script := find(char)) is not None})
    total = max(letters.total(), 1)
    rows = [[script, f"{count / total:.2%}", f"{tokens[script]:,}"] for script, count in letters.most_common(MAX_SCRIPTS)]
    return [["script", "share of the letters", "tokens with its letters"], *(rows or [["no letters", "-", "-"]])]


def _token_lines(tokenizer: Tokenizer, uses: np.ndarray) -> list[str]:
    """Describe the longest tokens, the tokens that are parts of characters, and the tokens that never occur."""
    decoded = _decoded_tokens(tokenizer)
    whole = [token for token in decoded if token is not None]
    words = [token for token in whole if any(map(str.isalnum, token))]
    signs = [token for token in whole if not any(map(str.isalnum, token))]
    unused = [token for token, count in zip(decoded, uses, strict=False) if count == 0 and token is not None and len(token) > 1]
    return [
        f"Longest words: {_listed(sorted(words, key=lambda token: (-len(token), token)))}",
        f"Longest tokens of symbols and spaces: {_listed(sorted(signs, key=lambda token: (-len(token), token)))}",
        f"{format_count(decoded.count(None), 'token')} are bytes or other parts of characters.",
        f"{format_count(len(unused), 'token')} of several characters do not occur in the measured text{_examples(unused)}.",
    ]


def _decoded_tokens(tokenizer: Tokenizer) -> list[str | None]:
    """Return the text of each token except the end of text; None for tokens that are not whole characters."""
    texts = list[str | None]()
    for token_id in range(tokenizer.vocab_size):
        if token_id != tokenizer.eos_id:
            try:
                texts.append(tokenizer.token_bytes(token_id).decode())
            except UnicodeDecodeError:
                texts.append(None)
    return texts


def _examples(tokens: Sequence[str]) -> str:
    return f": {_listed(tokens)}" if tokens else ""


def _listed(tokens: Sequence[str]) -> str:
    return ", ".join(map(_shown, tokens[:N_SHOWN])) + ", ..." * (len(tokens) > N_SHOWN) if tokens else "none"


def _shown(token: str) -> str:
    if len(token) > 2 and len(set(token)) == 1:
        return f"{len(token)} times {token[0]!r}"
    return repr(token if len(token) <= MAX_SHOWN_CHARACTERS else f"{token[:MAX_SHOWN_CHARACTERS]}...")
