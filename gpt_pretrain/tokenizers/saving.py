"""Save a tokenizer with its own vocabulary in files for this program and for transformers."""

from __future__ import annotations

import json

from gpt_pretrain.tokenizers.base import Tokenizer
from gpt_pretrain.tokenizers.byte import ByteTokenizer
from gpt_pretrain.tokenizers.characters import CharacterTokenizer
from gpt_pretrain.tokenizers.formats.vocabulary_files import TABLE_JSON, TOKENIZER_CONFIG, TOKENIZER_JSON
from gpt_pretrain.tokenizers.tables import TableTokenizer
from gpt_pretrain.tokenizers.tiktoken_bpe import TiktokenTokenizer
from gpt_pretrain.tokenizers.vocabulary import VocabularyTokenizer

TOKENIZER_FILES = (TOKENIZER_JSON, TOKENIZER_CONFIG, TABLE_JSON)


def tokenizer_files(tokenizer: Tokenizer, *, context_length: int | None = None) -> dict[str, str]:
    """Return the content of the files from which a tokenizer can be rebuilt; none if its name is enough.

    Args:
        context_length: The longest text of a model. transformers warns of longer ones.
    """
    if isinstance(tokenizer, TableTokenizer):
        return {TABLE_JSON: tokenizer.definition}
    if not isinstance(tokenizer, VocabularyTokenizer):
        return {}
    end = {} if tokenizer.end_of_text is None else dict.fromkeys(("bos_token", "eos_token"), tokenizer.end_of_text)
    longest = {} if context_length is None else {"model_max_length": context_length}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **end, **longest}
    return {
        TOKENIZER_JSON: json.dumps(tokenizer.fields, ensure_ascii=False) + "\n",
        TOKENIZER_CONFIG: json.dumps(config, indent=2, ensure_ascii=False) + "\n",
    }


def is_exportable(tokenizer: Tokenizer) -> bool:
    """Return whether a tokenizer can be exported to transformers."""
    return isinstance(tokenizer, ByteTokenizer | CharacterTokenizer | TiktokenTokenizer | VocabularyTokenizer)
