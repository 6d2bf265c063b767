"""Small vocabularies of every kind, trained on a text of a few languages, for the tests of tokenizers."""

from __future__ import annotations

import base64
import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

TEXT = [
    "Der Sinn des Lebens ist die Freude. Every effort moves you, doesn't it? 1234567 3.14\n",
    "今天天气很好,我们去公园散步。 Привет, мир! naïve façade 🙂👩‍👩‍👧\n\n\tif (x == 1) {\n    return x;\n}\r\n",
] * 20
PROBES = [
    "Der Sinn des Lebens ist 42, doesn't it?",
    "  leading and trailing   \n\n",
    "今天天气 Привет naïve 🙂👩‍👩‍👧\t{x == 1}",
    "",
]
SPECIALS = ["<|endoftext|>", "<|user|>"]


def byte_level(folder: Path, *, size: int = 400, specials: list[str] = SPECIALS) -> Path:
    """Write a byte-level BPE as tokenizer.json."""
    fast = Tokenizer(models.BPE())
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, special_tokens=specials, show_progress=False)
    return _trained(fast, trainer, folder, eos=specials[0] if specials else None)


def unigram(folder: Path) -> Path:
    """Write a unigram model like SentencePiece's as tokenizer.json. The library's trainer gives another one each time."""
    words = Counter(f"▁{word}" for text in TEXT for word in text.split())
    letters = Counter(char for word in words.elements() for char in word)
    pieces = {piece: math.log(count / letters.total()) for piece, count in (letters | words).most_common(198)}
    fast = Tokenizer(models.Unigram([("<unk>", 0.0), ("</s>", 0.0), *pieces.items()], unk_id=0))
    fast.normalizer = normalizers.NFKC()
    fast.pre_tokenizer = pre_tokenizers.Metaspace()
    fast.decoder = decoders.Metaspace()
    fast.add_special_tokens(["<unk>", "</s>"])
    return _save(fast, folder, eos="</s>")


def llama_like(folder: Path) -> Path:
    """Write a BPE of characters with single bytes for all others, as the first Llama has it, as tokenizer.json."""
    tokens = ["<unk>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"abcdefghijklmnopqrstuvwxyz", "▁t", "▁th"]
    vocab = {token: token_id for token_id, token in enumerate(tokens)}
    fast = Tokenizer(
        models.BPE(vocab=vocab, merges=[("▁", "t"), ("▁t", "h")], unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    fast.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    fast.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    fast.add_special_tokens(["<unk>", "</s>"])
    return _save(fast, folder, eos="</s>")


def word_pieces(folder: Path) -> Path:
    """Write BERT's vocab.txt. The library's trainer gives another one each time."""
    fast = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    fast.normalizer = normalizers.BertNormalizer()
    fast.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    found = [word for text in TEXT for word, _ in fast.pre_tokenizer.pre_tokenize_str(fast.normalizer.normalize_str(text))]
    letters = [piece for word in found for char in word for piece in (char, f"##{char}")]
    tokens = dict.fromkeys(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *found])
    folder.mkdir(parents=True)
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in tokens), encoding="utf-8")
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))
    return folder


def words(folder: Path) -> Path:
    """Write a vocabulary of whole words as tokenizer.json."""
    fast = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    fast.pre_tokenizer = pre_tokenizers.Whitespace()
    return _trained(fast, trainers.WordLevelTrainer(special_tokens=["[UNK]"], show_progress=False), folder, eos=None)


def gpt2_files(folder: Path, *, added: dict[str, int] | None = None) -> Path:
    """Write a byte-level BPE as GPT-2's vocab.json and merges.txt."""
    source = json.loads((byte_level(folder / "x", specials=[]) / "tokenizer.json").read_text(encoding="utf-8"))
    vocab = source["model"]["vocab"]
    vocab["<|endoftext|>"] = len(vocab)
    lines = ["#version: 0.2", *(" ".join(merge) for merge in source["model"]["merges"])]
    _write_json(folder / "vocab.json", vocab)
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    _write_json(folder / "config.json", {"model_type": "gpt2"})
    if added is not None:
        _write_json(folder / "added_tokens.json", added)
    for file in (folder / "x").iterdir():
        file.unlink()
    (folder / "x").rmdir()
    return folder


def rank_file(path: Path, ranks: dict[bytes, int]) -> Path:
    """Write ranks in tiktoken's format."""
    path.write_bytes(b"".join(base64.b64encode(token) + f" {rank}\n".encode() for token, rank in ranks.items()))
    return path


def _trained(fast: Tokenizer, trainer: Any, folder: Path, *, eos: str | None) -> Path:
    fast.train_from_iterator(TEXT, trainer)
    return _save(fast, folder, eos=eos)


def _save(fast: Tokenizer, folder: Path, *, eos: str | None) -> Path:
    folder.mkdir(parents=True)
    fast.save(str(folder / "tokenizer.json"))
    _write_json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": eos})
    return folder


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


KINDS = {"byte_level": byte_level, "unigram": unigram, "llama_like": llama_like, "word_pieces": word_pieces, "words": words}
