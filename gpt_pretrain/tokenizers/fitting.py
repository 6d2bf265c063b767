"""Fit a tokenizer to a model with more or fewer rows than the tokenizer has tokens."""

from __future__ import annotations

import logging

from gpt_pretrain.errors import UserError
from gpt_pretrain.system.shown_values import short_repr
from gpt_pretrain.tokenizers.base import END_OF_TEXT, Tokenizer
from gpt_pretrain.tokenizers.characters import CharacterTokenizer
from gpt_pretrain.tokenizers.formats.definition import FREE_IDS, MAX_SPREAD, added_token, vocabulary_of
from gpt_pretrain.tokenizers.formats.vocabulary_formats import as_known_tokenizer
from gpt_pretrain.tokenizers.vocabulary import VocabularyTokenizer

log = logging.getLogger(__name__)


class TooManyTokensError(UserError):
    """A tokenizer has more tokens than a model.

    Attributes:
        finding: Both numbers, as a sentence without its full stop.
    """

    def __init__(self, finding: str) -> None:
        super().__init__(f"{finding}. Give the tokenizer that it was trained with: tokenizer=NAME")
        self.finding = finding


def fit_to_rows(tokenizer: Tokenizer, n_rows: int, *, origin: str) -> Tokenizer:
    """Return a tokenizer without added tokens, or without an end of text, for which a model has no row.

    Rows without a token are never generated. There may be as many of them as a vocabulary may have unused ids: each row takes
    time whenever the model computes a token, and a file of 10 MB has room for five million rows.

    Args:
        n_rows: Rows of the model's vocabulary.
        origin: The model, for messages.

    Raises:
        UserError: If ordinary tokens have no row, or far too many rows have no token.
    """
    if n_rows > MAX_SPREAD * tokenizer.vocab_size + FREE_IDS:
        raise UserError(
            f"{origin} has a vocabulary of {n_rows:,} tokens, but the tokenizer {tokenizer.name} has only "
            f"{tokenizer.vocab_size:,}. Give the tokenizer that it was trained with: tokenizer=NAME"
        )
    if tokenizer.vocab_size <= n_rows:
        return tokenizer
    if isinstance(tokenizer, CharacterTokenizer) and tokenizer.eos_id == n_rows:
        return CharacterTokenizer(tokenizer.alphabet, end_of_text=False)
    if isinstance(tokenizer, VocabularyTokenizer):
        fields, added = tokenizer.fields, tokenizer.fields["added_tokens"]
        beyond = dict.fromkeys(token["content"] for token in added if token["id"] >= n_rows)
        kept = [token for token in added if token["id"] < n_rows]
        vocab = fields["model"]["vocab"]
        if isinstance(vocab, dict):
            vocab = {token: token_id for token, token_id in vocab.items() if token_id < n_rows or token not in beyond}
        if (max(vocab.values(), default=0) if isinstance(vocab, dict) else len(vocab) - 1) < n_rows:
            shown = ", ".join(map(short_repr, list(beyond)[:5])) + ", ..." * (len(beyond) > 5)
            log.warning("%s has no rows for the added tokens %s, which are ordinary text here", origin, shown)
            end = None if tokenizer.end_of_text in beyond else tokenizer.end_of_text
            model = fields["model"] | {"vocab": vocab}
            label = tokenizer.name.rpartition("@")[0]
            return as_known_tokenizer(label, fields | {"model": model, "added_tokens": kept}, end)
    raise TooManyTokensError(
        f"{origin} has a vocabulary of {n_rows:,} tokens, but the tokenizer {tokenizer.name} has {tokenizer.vocab_size:,}"
    )


def with_end_of_text(tokenizer: Tokenizer) -> Tokenizer:
    """Return a tokenizer for new weights or a corpus. If it lacks an end of text, add one as its last token, if possible."""
    if tokenizer.eos_id is not None:
        return tokenizer
    if isinstance(tokenizer, CharacterTokenizer):
        return CharacterTokenizer(tokenizer.alphabet)
    if not isinstance(tokenizer, VocabularyTokenizer) or END_OF_TEXT in vocabulary_of(tokenizer.fields):
        return tokenizer
    added = [*tokenizer.fields["added_tokens"], added_token(END_OF_TEXT, tokenizer.vocab_size)]
    return VocabularyTokenizer(tokenizer.name.rpartition("@")[0], tokenizer.fields | {"added_tokens": added}, END_OF_TEXT)
