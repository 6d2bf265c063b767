"""Write this program's tokenizers as files that transformers' AutoTokenizer opens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as FastTokenizer
from transformers import AutoTokenizer, GPT2Tokenizer, PreTrainedTokenizerFast

from gpt_pretrain.errors import UserError
from gpt_pretrain.tokenizers.base import END_OF_TEXT, Tokenizer
from gpt_pretrain.tokenizers.byte import ByteTokenizer
from gpt_pretrain.tokenizers.byte_letters import to_letters
from gpt_pretrain.tokenizers.characters import CharacterTokenizer
from gpt_pretrain.tokenizers.formats.ranks import ranks_to_merges, to_oniguruma
from gpt_pretrain.tokenizers.saving import is_exportable, tokenizer_files
from gpt_pretrain.tokenizers.tiktoken_bpe import TiktokenTokenizer
from gpt_pretrain.tokenizers.vocabulary import VocabularyTokenizer

# Texts that both sides must encode identically: cases, contractions, numbers, spaces, line ends, scripts, an end of text.
PROBES = [
    "Every effort moves you, doesn't IT?  1234567 3.14\n\n\tnaïve façade\r\n 東京は大きい. Привет! 🙂👩‍👩‍👧\u00a0end ",
    f"One.{END_OF_TEXT}Two{END_OF_TEXT}",
    " \n  \n leading, trailing   ",
]
NO_TOKEN = ""  # the token for characters that are not in an alphabet


def write_tokenizer(tokenizer: Tokenizer, folder: Path, *, context_length: int) -> None:
    """Write a tokenizer's files to a folder, open them with transformers and compare some encodings.

    Raises:
        UserError: If transformers encodes a text differently.
    """
    if not is_exportable(tokenizer):
        raise UserError(
            f"A model with the tokenizer {tokenizer.name[:100]} cannot be exported: transformers has no such tokenizer."
        )
    if isinstance(tokenizer, VocabularyTokenizer):
        for name, content in tokenizer_files(tokenizer, context_length=context_length).items():
            (folder / name).write_text(content, encoding="utf-8")
        _compare_encodings(tokenizer, folder)
        return
    theirs = _characters(tokenizer) if isinstance(tokenizer, CharacterTokenizer) else _byte_pairs(tokenizer)
    theirs.model_max_length = context_length
    theirs.save_pretrained(folder)
    # transformers 5 writes the class name TokenizersBackend, which older releases do not know.
    if not isinstance(theirs, GPT2Tokenizer):
        path = folder / "tokenizer_config.json"
        fields = json.loads(path.read_text(encoding="utf-8")) | {"tokenizer_class": "PreTrainedTokenizerFast"}
        path.write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
    _compare_encodings(tokenizer, folder)


def _byte_pairs(tokenizer: Tokenizer) -> Any:
    """Build transformers' tokenizer for bytes or for one of tiktoken's encodings."""
    vocabulary, merges = _vocabulary(tokenizer)
    # The byte tokenizer merges nothing, so it does not matter that GPT-2's tokenizer splits words first.
    if tokenizer.name in ("gpt2", "byte"):
        return GPT2Tokenizer(vocab=vocabulary, merges=list[Any](map(tuple, merges)))
    assert isinstance(tokenizer, TiktokenTokenizer)
    return _byte_level_bpe(tokenizer.pattern, vocabulary, merges, specials=tokenizer.specials)


def _characters(tokenizer: CharacterTokenizer) -> PreTrainedTokenizerFast:
    """Build a tokenizer whose words are single characters. It fails on other characters; byte pairs would drop them silently."""
    ids = {character: token_id for token_id, character in enumerate(tokenizer.alphabet)}
    fast = FastTokenizer(models.WordLevel(vocab=ids, unk_token=NO_TOKEN))
    fast.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    fast.decoder = decoders.Fuse()
    if tokenizer.eos_id is None:
        return PreTrainedTokenizerFast(tokenizer_object=fast)
    fast.add_special_tokens([AddedToken(END_OF_TEXT, normalized=False)])
    return PreTrainedTokenizerFast(tokenizer_object=fast, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT)


def _compare_encodings(tokenizer: Tokenizer, folder: Path) -> None:
    """Open a folder with transformers and compare the encodings of some texts.

    Raises:
        UserError: If they differ.
    """
    opened = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    end = (tokenizer.end_of_text or "") if isinstance(tokenizer, VocabularyTokenizer) else END_OF_TEXT
    probes = PROBES
    if isinstance(tokenizer, CharacterTokenizer):
        probes = [tokenizer.alphabet, f"{tokenizer.alphabet[::-1]}{END_OF_TEXT * (tokenizer.eos_id is not None)}"]
    for probe in (text.replace(END_OF_TEXT, end) for text in probes):
        try:
            token_ids = tokenizer.encode(probe)
        except UserError:  # The vocabulary cannot write all of it.
            continue
        if opened.encode(probe, verbose=False) != token_ids:
            raise UserError(f"tokenizer={tokenizer.name} cannot be exported: transformers encodes {probe!r} differently.")


def _byte_level_bpe(
    pattern: str, vocabulary: dict[str, int], merges: list[list[str]], *, specials: dict[str, int]
) -> PreTrainedTokenizerFast:
    """Build a byte-level BPE tokenizer that splits text by its own pattern."""
    fast = FastTokenizer(models.BPE(vocab=vocabulary, merges=[(left, right) for left, right in merges], ignore_merges=True))
    split = pre_tokenizers.Split(Regex(to_oniguruma(pattern)), behavior="isolated")
    fast.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    fast.decoder = decoders.ByteLevel()
    fast.add_special_tokens(
        [AddedToken(token, normalized=False) for token in sorted(specials, key=lambda token: specials[token])]
    )
    return PreTrainedTokenizerFast(tokenizer_object=fast, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT)


def _vocabulary(tokenizer: Tokenizer) -> tuple[dict[str, int], list[list[str]]]:
    """Return the ids of the tokens, and the merges in order, with bytes written as in GPT-2's vocabulary."""
    if isinstance(tokenizer, ByteTokenizer):
        return {to_letters(bytes([byte])): byte for byte in range(256)} | {END_OF_TEXT: tokenizer.eos_id}, []
    assert isinstance(tokenizer, TiktokenTokenizer)
    vocabulary, merges = ranks_to_merges(tokenizer.ranks)
    return vocabulary | tokenizer.specials, merges
