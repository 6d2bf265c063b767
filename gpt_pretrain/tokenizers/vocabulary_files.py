"""Read a tokenizer from the files in which programs keep it: of a folder, of a model on the hub, or a single file.

Known are transformers' tokenizer.json, GPT-2's vocab.json with merges.txt, BERT's vocab.txt, and what stands beside them; ranks
of tiktoken; and nanoGPT's meta.pkl.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gpt_pretrain.errors import UserError
from gpt_pretrain.system.reading import DamagedFileError, parse_json, read_bytes, short_repr
from gpt_pretrain.tokenizers.base import END_OF_TEXT, Tokenizer
from gpt_pretrain.tokenizers.definition import (
    MAX_VOCABULARY,
    added_token,
    canonical_fields,
    parse_tokenizer_json,
    vocabulary_of,
)
from gpt_pretrain.tokenizers.nanogpt_meta import META, read_meta
from gpt_pretrain.tokenizers.ranks import CL100K_PATTERN, KNOWN_RANKS, RankFile, ranks_to_fields
from gpt_pretrain.tokenizers.tables import restore_table
from gpt_pretrain.tokenizers.tiktoken_bpe import gpt2_merges, gpt2_vocabulary, load_tiktoken
from gpt_pretrain.tokenizers.vocabulary import VocabularyTokenizer

TOKENIZER_JSON, VOCAB_JSON, MERGES, VOCAB_TXT = "tokenizer.json", "vocab.json", "merges.txt", "vocab.txt"
TOKENIZER_CONFIG, SPECIAL_TOKENS, ADDED_TOKENS = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
TABLE_JSON = "tokenizer_table.json"  # this program's own file for a table of nanoGPT's
TIKTOKEN_ENDING = ".tiktoken"
SENTENCEPIECE = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
MAX_FILE_BYTES = 64_000_000  # The largest known tokenizer.json has 33 million.
MAX_TOKEN_BYTES = 1000  # Of a token in tiktoken's format; finding its merges takes quadratic time.
GPT2_TOKENS = 50257
# Tokens that end a text, the likeliest first, for vocabularies that do not say which one does.
ENDS = (END_OF_TEXT, "</s>", "<eos>", "<|end_of_text|>", "<|eos|>", "[EOS]", "[SEP]")
SPECIAL_FIELDS = ("eos_token", "bos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")

ReadFile = Callable[[str], bytes | None]

log = logging.getLogger(__name__)


def read_folder_tokenizer(folder: Path) -> Tokenizer | None:
    """Return the tokenizer in a folder, or None if there is none.

    Raises:
        UserError: If its files cannot be read or used.
    """

    def read(name: str) -> bytes | None:
        path = folder / name
        return _read_file(path) if path.is_file() else None

    tokenizer = read_tokenizer(read, label=folder.resolve().name, location=str(folder))
    if tokenizer is None and len(ranks := sorted(folder.glob(f"*{TIKTOKEN_ENDING}"))) == 1:
        return read_tokenizer_file(ranks[0])
    return tokenizer


def read_tokenizer_file(path: Path) -> Tokenizer:
    """Return the tokenizer in a file, with what its neighbors say of it.

    Raises:
        UserError: If the file cannot be read or used, or is not one of a tokenizer.
    """
    name, content = path.name, _read_file(path)
    try:
        if path.suffix == TIKTOKEN_ENDING:
            return _from_ranks(content, label=path.stem)
        if path.suffix == ".pkl":
            return read_meta(content, end_of_text=False, label=path.parent.resolve().name)
        if name in SENTENCEPIECE or path.suffix == ".model":
            raise UserError(explain_sentencepiece(str(path)))
        if path.suffix == ".json" and name not in (VOCAB_JSON, TOKENIZER_JSON, TABLE_JSON):  # such as my-tokenizer.json
            return _from_tokenizer_json(content, {}, {}, label=path.stem)
    except DamagedFileError as error:
        raise UserError(f"{path} cannot be used as a tokenizer: {error}.") from error
    if name in (TOKENIZER_JSON, VOCAB_JSON, MERGES, VOCAB_TXT, TABLE_JSON):
        only = name

        def read(wanted: str) -> bytes | None:
            neighbor = path.parent / wanted
            if only != TOKENIZER_JSON and wanted == TOKENIZER_JSON:
                return None
            return _read_file(neighbor) if neighbor.is_file() else None

        tokenizer = read_tokenizer(read, label=path.parent.resolve().name, location=str(path.parent))
        if tokenizer is not None:
            return tokenizer
    raise UserError(
        f"{path} is not the file of a tokenizer. Known are {TOKENIZER_JSON}, {VOCAB_JSON} with {MERGES}, {VOCAB_TXT}, "
        f"*{TIKTOKEN_ENDING} and nanoGPT's {META}; or name the folder of a model."
    )


def read_tokenizer(read: ReadFile, *, label: str, location: str) -> Tokenizer | None:
    """Return the tokenizer whose files a function reads, or None if there is none.

    Args:
        read: Returns the content of a file by its name, or None if there is no such file.
        label: The name of the place, which becomes a part of the tokenizer's.
        location: The place, for messages.

    Raises:
        UserError: If the files cannot be used.
    """
    name = TOKENIZER_JSON
    try:
        if (content := read(TOKENIZER_JSON)) is not None:
            return _from_tokenizer_json(content, *_beside(read), label=label)
        if (content := read(name := VOCAB_JSON)) is not None:
            return _from_vocab_json(content, read(MERGES), *_beside(read), label=label)
        if (content := read(name := VOCAB_TXT)) is not None:
            return _from_word_pieces(content, *_beside(read), label=label)
        if (content := read(name := META)) is not None:
            return read_meta(content, end_of_text=False, label=label)
        if (content := read(name := TABLE_JSON)) is not None:
            return restore_table(label, parse_tokenizer_json(content))
    except DamagedFileError as error:
        raise UserError(f"{location}: {name} cannot be used as a tokenizer: {error}.") from error
    for name in SENTENCEPIECE:
        if read(name) is not None:
            raise UserError(explain_sentencepiece(f"{location}/{name}"))
    return None


def explain_sentencepiece(place: str) -> str:
    """Return the message for a vocabulary in the format of SentencePiece."""
    return (
        f"{place} is a SentencePiece model, which is not read. Convert it once: "
        "python -c \"from transformers import AutoTokenizer as T; T.from_pretrained('FOLDER').save_pretrained('NEW')\", and use "
        "the tokenizer.json in NEW."
    )


def _beside(read: ReadFile) -> tuple[dict[str, Any], dict[str, int]]:
    """Return what the files beside a vocabulary say: its configuration, and its added tokens with their ids.

    Raises:
        DamagedFileError: If one of them is damaged.
    """
    config: dict[str, Any] = {}
    added: dict[str, int] = {}
    for name in (SPECIAL_TOKENS, TOKENIZER_CONFIG):
        if (content := read(name)) is not None:
            config |= {key: value for key, value in parse_json(content).items() if value is not None}
    if (content := read(ADDED_TOKENS)) is not None:
        added |= {token: token_id for token, token_id in parse_json(content).items() if type(token_id) is int}
    table = config.get("added_tokens_decoder")
    for digits, token in table.items() if isinstance(table, dict) else ():
        if isinstance(token, dict) and isinstance(token.get("content"), str) and digits.isdecimal() and len(digits) < 10:
            added[token["content"]] = int(digits)
    return config, added


def _from_tokenizer_json(content: bytes, config: Mapping[str, Any], added: Mapping[str, int], *, label: str) -> Tokenizer:
    return _finish(parse_tokenizer_json(content), config, added, label=label)


def _from_vocab_json(
    content: bytes, merges: bytes | None, config: Mapping[str, Any], added: Mapping[str, int], *, label: str
) -> Tokenizer:
    """Return the tokenizer of GPT-2's two files, with those added tokens that the files beside them name."""
    vocab = parse_json(content)
    if merges is None:
        raise DamagedFileError(f"{MERGES} is missing, which belongs to it")
    if sum(token.endswith("</w>") for token in vocab) > len(vocab) // 10:
        raise DamagedFileError("its words end in </w>, as those of CLIP and the first GPT do, not GPT-2's")
    fields = {
        "model": {"type": "BPE", "vocab": vocab, "merges": _pairs(merges)},
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": bool(config.get("add_prefix_space", False))},
        "decoder": {"type": "ByteLevel"},
    }
    return _finish(fields, config, added, label=label)


def _pairs(merges: bytes) -> list[list[str]]:
    """Return the merges of a merges.txt, whose first line may be a comment."""
    try:
        lines = merges.decode("utf-8-sig").replace("\r\n", "\n").split("\n")
    except UnicodeDecodeError as error:
        raise DamagedFileError(f"{MERGES} is not UTF-8") from error
    begin = 1 if lines[0].startswith("#version") else 0
    return [line.split(" ") for line in lines[begin:] if line]


def _from_word_pieces(content: bytes, config: Mapping[str, Any], added: Mapping[str, int], *, label: str) -> Tokenizer:
    """Return the tokenizer of BERT's vocab.txt, which many Chinese GPTs have."""
    try:
        tokens = content.decode("utf-8-sig").replace("\r\n", "\n").removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise DamagedFileError("it is not UTF-8") from error
    vocab = {token: token_id for token_id, token in enumerate(tokens)}
    fields = {
        "model": {
            "type": "WordPiece",
            "vocab": vocab,
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
        },
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": bool(config.get("tokenize_chinese_chars", True)),
            "strip_accents": config.get("strip_accents"),
            "lowercase": bool(config.get("do_lower_case", True)),
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
    }
    specials = {token: vocab[token] for token in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]") if token in vocab}
    return _finish(fields, config, specials | dict(added), label=label)


def _from_ranks(content: bytes, *, label: str) -> Tokenizer:
    """Return the tokenizer of a file in tiktoken's format, which states neither the pattern nor the special tokens.

    Raises:
        DamagedFileError: If the file is not in this format.
    """
    ranks: dict[bytes, int] = {}
    for line in content.split(b"\n"):
        token, _, rank = line.strip().partition(b" ")
        if not token:
            continue
        try:
            if not (rank.isdigit() and len(rank) < 10):
                raise ValueError("no number follows the token")
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error) as error:
            raise DamagedFileError(f"its line {short_repr(line)} is not a token in base64 and its number") from error
    if not ranks or len(ranks) > MAX_VOCABULARY or any(bytes([byte]) not in ranks for byte in range(256)):
        raise DamagedFileError("it lacks some of the 256 single bytes")
    if max(map(len, ranks)) > MAX_TOKEN_BYTES:
        raise DamagedFileError(f"one of its tokens has more than {MAX_TOKEN_BYTES} bytes")
    known = KNOWN_RANKS.get(hashlib.sha256(content).hexdigest())
    if known is None:
        known = RankFile(CL100K_PATTERN, {END_OF_TEXT: max(ranks.values()) + 1})
        log.warning(
            "%s states neither how it splits a text into words nor its special tokens: cl100k_base's pattern is used, and %s is "
            "token %d. A tokenizer.json states both.",
            label + TIKTOKEN_ENDING,
            END_OF_TEXT,
            known.specials[END_OF_TEXT],
        )
    return _finish(ranks_to_fields(ranks, known.specials, known.pattern), {}, {}, label=label)


def _finish(fields: Mapping[str, Any], config: Mapping[str, Any], added: Mapping[str, int], *, label: str) -> Tokenizer:
    """Add the tokens that files beside the vocabulary name, find the end of text, and build the tokenizer.

    Raises:
        DamagedFileError: If the files contradict each other or cannot be used.
    """
    canonical = canonical_fields(fields)
    ids, listed = vocabulary_of(canonical), {token["content"] for token in canonical["added_tokens"]}
    named = [_token_text(config.get(field)) for field in SPECIAL_FIELDS]
    end = next((token for token in (named[0], *ENDS) if token is not None and token in ids | dict(added)), None)
    wanted = {token: ids[token] for token in (*named, end) if token is not None and token in ids} | dict(added)
    for token, token_id in wanted.items():
        if token and token not in listed:
            canonical["added_tokens"].append(added_token(token, ids.get(token, token_id)))
    canonical["added_tokens"].sort(key=lambda token: int(token["id"]))
    return as_known_tokenizer(label, canonical, end)


def as_known_tokenizer(label: str, fields: Mapping[str, Any], end_of_text: str | None) -> Tokenizer:
    """Return the tokenizer of a canonical tokenizer.json; GPT-2's own one, which is faster, if it is that.

    Raises:
        DamagedFileError: If the fields cannot be used.
    """
    return load_tiktoken("gpt2") if _is_gpt2(fields) else VocabularyTokenizer(label, fields, end_of_text)


def _token_text(token: Any) -> str | None:
    """Return the text of a special token, which configurations write as a string or as an object."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None


def _is_gpt2(fields: Mapping[str, Any]) -> bool:
    """Return whether the fields of a tokenizer.json are those of GPT-2, whose own tokenizer is faster."""
    model, splitter = fields["model"], fields["pre_tokenizer"] or {}
    return (
        len(model["vocab"]) == GPT2_TOKENS
        and model["type"] == "BPE"
        and {name for name in model if name not in ("type", "vocab", "merges")} == set()
        and fields["normalizer"] is None
        and (splitter.get("type"), splitter.get("add_prefix_space"), splitter.get("use_regex")) == ("ByteLevel", False, True)
        and [token["content"] for token in fields["added_tokens"]] == [END_OF_TEXT]
        and model["vocab"] == gpt2_vocabulary()
        and model["merges"] == gpt2_merges()
    )


def _read_file(path: Path) -> bytes:
    try:
        return read_bytes(path, max_bytes=MAX_FILE_BYTES)
    except DamagedFileError as error:
        raise UserError(f"{path} cannot be used as a tokenizer: {error}.") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from error
