"""Find the text to evaluate models on, and tokenize it with each model's tokenizer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from gpt_pretrain.checkpoints.weights import Weights
from gpt_pretrain.config.checkpoint_settings import read_data_settings
from gpt_pretrain.config.custom_parts import CUSTOM
from gpt_pretrain.config.schema import DataSettings
from gpt_pretrain.data.sources import find_data_sources, is_shard_path
from gpt_pretrain.data.token_stream import TokenSlice, TokenSplit, TokenStream
from gpt_pretrain.errors import UserError
from gpt_pretrain.evaluation.text_scores import BLOCK, EvaluationText
from gpt_pretrain.system.formatting import format_count
from gpt_pretrain.system.shown_values import short_repr
from gpt_pretrain.system.urls import without_secrets
from gpt_pretrain.texts.text import sha256_without_blanks
from gpt_pretrain.tokenizers.base import Tokenizer, token_byte_lengths

OTHER_TOKENIZER = "Use that tokenizer."  # advice for a training, which may choose its tokenizer

NO_TEXT = (
    "None of the models names a text that is still there, so there is no validation set to evaluate on. Give a text: "
    "data.path=FILE"
)


@dataclass(frozen=True)
class TextSource:
    """The text to evaluate on, before it is tokenized.

    Args:
        name: Its name in tables and messages.
        settings: The `data` settings.
        whole: Whether to evaluate all of it, or only its validation set.
        text_sha256: The required hash of the whole text; None allows any text.
    """

    name: str
    settings: DataSettings
    whole: bool
    text_sha256: str | None = None

    def tokenize(self, tokenizer: Tokenizer, *, max_bytes: int | None = None) -> EvaluationText:
        """Tokenize the text, or its beginning.

        Args:
            max_bytes: Bytes of the text to keep; None keeps all.

        Raises:
            UserError: If it cannot be read, has changed, or consists of another tokenizer's tokens.
        """
        try:
            (source,) = find_data_sources(self.settings, tokenizer, whole=self.whole)
        except UserError as error:
            other = "Evaluate the text that it was made of, which each model reads with its own tokenizer."
            raise UserError([problem.replace(OTHER_TOKENIZER, other) for problem in error.problems]) from error
        split = source.split
        if self.text_sha256 not in (None, split.text_sha256, sha256_without_blanks(split.text_sha256)):
            raise UserError(f"{self.name} has changed since the training, so it cannot be evaluated. Name a text: data.path=FILE")
        tokens = split.train if self.whole and self.settings.name != "shards" else split.val
        if max_bytes is not None:
            tokens = _beginning(tokens, tokenizer, max_bytes=max_bytes)
        text = EvaluationText(self.name, tokens, source.boundaries, tokenizer, tuple(self._warnings(split, tokenizer)))
        if tokens.count + text.adds_prefix < 2:
            raise UserError(f"{self.name} has {format_count(tokens.count, 'token')}, but needs at least 2.")
        return text

    def _warnings(self, split: TokenSplit, tokenizer: Tokenizer) -> Iterator[str]:
        if split.without_text and self.whole:
            yield f"{self.name}: {format_count(split.without_text, 'document')} without text left out."
        if split.unknown_tokens and self.whole:
            yield (
                f"{self.name}: the vocabulary {tokenizer.name} lacks parts of this text. {split.unknown_tokens:,} of its "
                f"{split.train.count:,} tokens replace what is missing, such as {short_repr(split.unknown_example)}, so the loss "
                "does not describe the text."
            )


def typed_source(settings: DataSettings) -> TextSource | None:
    """Return the text that the `data` settings name, or None if they name none."""
    if settings.name == "mixture":
        raise UserError("data=mixture cannot be evaluated. Evaluate its sources one by one: data.path=FOLDER or FILE")
    if settings.path is None and settings.url is None and settings.name != "sample":
        return None
    if settings.path is not None and settings.name == "text" and is_shard_path(settings.path):
        settings = replace(settings, name="shards")
    name = settings.path or settings.url
    whole = settings.name != "shards"
    shown = "the sample text" if name is None else without_secrets(name)
    return TextSource(shown if whole else f"the validation set of {shown}", settings, whole)


def validation_source(models: Sequence[Weights]) -> TextSource:
    """Return the validation set of the first model that names one.

    Raises:
        UserError: If no model names one, or the settings of the first model that does cannot be used.
    """
    for weights in models:
        content = weights.content
        if "config" not in content or not isinstance(content.get("text_sha256"), str):
            continue
        settings = read_data_settings(content)
        if settings is None:
            raise UserError(f"{weights.name} records a data path that is only used if you give it: data.path=FILE")
        if settings.name not in ("mixture", CUSTOM):
            return TextSource(f"the validation set of {weights.name}", settings, False, content["text_sha256"])
    raise UserError(NO_TEXT)


def _beginning(tokens: TokenStream, tokenizer: Tokenizer, *, max_bytes: int) -> TokenStream:
    """Return the first tokens up to a number of bytes, so that all tokenizers have nearly the same text.

    Raises:
        UserError: If the tokens do not show the bytes of their text.
    """
    if not tokenizer.keeps_bytes:
        raise UserError(
            f"max_bytes={max_bytes}: the tokens of {tokenizer.name} do not show how many bytes of text they stand for."
        )
    lengths, total = token_byte_lengths(tokenizer), 0
    for start in range(0, tokens.count, BLOCK):
        ends = total + np.cumsum(lengths[tokens.read(start, min(BLOCK, tokens.count - start))])
        if ends[-1] >= max_bytes:
            return TokenSlice(tokens, 0, start + int(np.searchsorted(ends, max_bytes)) + 1)
        total = int(ends[-1])
    return tokens
