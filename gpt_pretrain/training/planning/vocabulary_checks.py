"""Check before a run that the vocabulary suits the text and covers the text and the prompts."""

from __future__ import annotations

import numpy as np

from gpt_pretrain.data.token_stream import TokenSplit, sample_tokens
from gpt_pretrain.errors import UserError
from gpt_pretrain.system.formatting import format_count
from gpt_pretrain.system.terminal import escape_line
from gpt_pretrain.tokenizers.base import END_OF_TEXT, Tokenizer, decode
from gpt_pretrain.tokenizers.unknown import MANY_UNKNOWN, describe_unknown, unknown_prompt
from gpt_pretrain.training.planning.check_context import CheckContext
from gpt_pretrain.training.run_tokenizer import SHORT_TOKENS

LINES = "a\nb"


def unsuitable_vocabulary(context: CheckContext) -> str | None:
    """Return a warning if GPT-2's vocabulary is only the default and cuts the text into short tokens."""
    split, settings = context.data.split, context.settings
    is_chosen = "tokenizer.name" in context.overridden or settings.init_from is not None or settings.resume is not None
    if is_chosen or settings.tokenizer.name != "gpt2" or split.characters is None:
        return None
    length = split.characters / max(split.train.count + split.val.count, 1)
    if length >= SHORT_TOKENS:
        return None
    return (
        f"tokenizer=gpt2 was made for English, and cuts this text into tokens of {length:.1f} characters. tokenizer=bpe trains a "
        "vocabulary on the text, with which a model learns more in the same time."
    )


def unknown_text(context: CheckContext) -> str | None:
    """Return a warning if the vocabulary lacks a noticeable share of the training text."""
    sources = {escape_line(source.name): source.split for source in context.data.sources} or {"": context.data.split}
    for name, split in sources.items():
        found, total = _unknown_tokens(split, context.data.tokenizer)
        if found > MANY_UNKNOWN * total:
            return f"{name}{': ' * bool(name)}{describe_unknown(found, total, split.unknown_example)}"
    return None


def unknown_start_context(context: CheckContext) -> str | None:
    """Return a warning if the vocabulary lacks a part of a sample's prompt."""
    settings = context.settings
    prompts = {"start_context": settings.start_context} if settings.callbacks.samples else {}
    if settings.callbacks.grid is not None:
        prompts |= {f"callbacks.grid.prompts: {prompt}": prompt for prompt in settings.callbacks.grid.prompts}
    found = {name: unknown_prompt(prompt, context.data.tokenizer) for name, prompt in prompts.items()}
    return next((escape_line(f"{name}: {text}") for name, text in found.items() if text is not None), None)


def dropped_line_ends(context: CheckContext) -> str | None:
    """Return a warning if the vocabulary leaves the line ends of a text out, or reads them as blanks."""
    tokenizer = context.data.tokenizer
    if tokenizer.keeps_bytes:
        return None
    try:
        read = decode(tokenizer, tokenizer.encode_ordinary(LINES).tolist())
    except UserError:
        return None  # Characters that the vocabulary lacks have messages of their own.
    if not all(word in read for word in LINES.split()) or "\n" in read:
        return None
    return (
        f"The vocabulary {escape_line(tokenizer.name)} drops the line ends of a text, so the model cannot learn them and "
        "generates none. A vocabulary that keeps every byte, as gpt2 and bpe do, keeps them."
    )


def missing_end_of_text(context: CheckContext) -> str | None:
    """Return a warning if the text has end-of-text markers, but the vocabulary has no token for them."""
    data, markers = context.data, context.data.split.markers
    if data.tokenizer.eos_id is not None or not markers:
        return None
    return (
        f"The text has {format_count(markers, END_OF_TEXT + ' marker')}, but the vocabulary {escape_line(data.tokenizer.name)} "
        "has no end-of-text token: nothing tells the model where one of these documents ends and the next begins."
    )


def describe_rare_unknown(split: TokenSplit) -> str | None:
    """Return a sentence about a few parts of a text that the vocabulary lacks. Many parts are a warning instead."""
    total = split.train.count + split.val.count
    if not split.unknown_tokens or split.unknown_tokens > MANY_UNKNOWN * total:
        return None
    return describe_unknown(split.unknown_tokens, total, split.unknown_example)


def _unknown_tokens(split: TokenSplit, tokenizer: Tokenizer) -> tuple[int, int]:
    """Return the number of unknown tokens and the number of all tokens. If the text is not at hand, count in a sample."""
    if split.unknown_tokens is not None:
        return split.unknown_tokens, split.train.count + split.val.count
    if tokenizer.unknown_id in (None, tokenizer.eos_id):
        return 0, 0
    sample = sample_tokens(split.train)
    return int(np.count_nonzero(sample == tokenizer.unknown_id)), len(sample)
