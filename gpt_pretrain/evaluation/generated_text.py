"""Measure generated texts: their variety, their probability by the model, and their memorized spans."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch.nn import functional as F

from gpt_pretrain.config.checkpoint_settings import read_data_settings
from gpt_pretrain.config.schema import DataSettings
from gpt_pretrain.data.remote.download import find_download
from gpt_pretrain.data.sources import find_split
from gpt_pretrain.data.text import cache_folder, find_text
from gpt_pretrain.data.token_cache import tokenize_text
from gpt_pretrain.data.token_stream import TokenStream
from gpt_pretrain.errors import UserError
from gpt_pretrain.evaluation.memorization import longest_memorized_span
from gpt_pretrain.generation.prompts import Continuation
from gpt_pretrain.model.language_model import LanguageModel
from gpt_pretrain.runs.metadata import MAX_LISTED, update_metadata
from gpt_pretrain.system.files import write_text
from gpt_pretrain.system.urls import is_url
from gpt_pretrain.texts.text import sha256_without_blanks
from gpt_pretrain.tokenizers.base import Tokenizer


def find_training_tokens(content: Mapping[str, Any], tokenizer: Tokenizer) -> TokenStream | None:
    """Return the training tokens of a checkpoint, or None if they are unknown or no longer available.

    Args:
        content: The checkpoint's content besides the weights.
    """
    if "config" not in content or "text_sha256" not in content:
        return None
    try:
        data = read_data_settings(content)
    except UserError:
        return None
    if data is None:
        return None
    try:
        # Some measurements are not worth downloading a text again.
        if (
            data.path is None
            and data.url is not None
            and find_download(data.url, cache_dir=cache_folder(data), sha256=data.sha256) is None
        ):
            return None
        if data.name in ("shards", "mixture"):
            return _shard_tokens(data, content["text_sha256"], tokenizer)
        text = find_text(data, cache_dir=cache_folder(data))
        sha256, text_sha256 = content["text_sha256"], text.sha256()
        if sha256 not in (text_sha256, sha256_without_blanks(text_sha256)):
            return None
        split = tokenize_text(text, tokenizer, train_ratio=data.train_ratio, cache_dir=cache_folder(data))
        return split.train if split.text_sha256 == sha256 else None
    except UserError:
        return None


def _shard_tokens(data: DataSettings, sha256: str, tokenizer: Tokenizer) -> TokenStream | None:
    """Return the training set of local shards or of a mixture, or None if a part of it is remote or has changed.

    Raises:
        UserError: If a part no longer exists.
    """
    paths = [source.path for source in data.sources] if data.name == "mixture" else [data.path]
    if any(path is None or is_url(path) for path in paths):
        return None
    split = find_split(data, tokenizer)
    return split.train if split.text_sha256 == sha256 else None


def save_measured_texts(
    folder: Path, model: LanguageModel, texts: Sequence[Continuation], content: Mapping[str, Any], tokenizer: Tokenizer
) -> None:
    """Write texts to samples.txt in a folder. Write their measures and the first MAX_LISTED texts to its run metadata.

    Args:
        content: The content of the model's checkpoint besides the weights.
    """
    whole_texts = [text.text for text in texts]
    write_text(folder / "samples.txt", "\n\n".join(whole_texts) + "\n")
    measures = measure_texts(model, texts, training=find_training_tokens(content, tokenizer))
    update_metadata(folder, texts=whole_texts[:MAX_LISTED], measures=measures)


def measure_texts(model: LanguageModel, texts: Sequence[Continuation], *, training: TokenStream | None) -> dict[str, Any]:
    """Measure continuations. All measures except the longest memorized span are means over the continuations.

    Returns:
        distinct_1, distinct_2, distinct_3: Fraction of distinct n-grams among the new tokens.
        mean_log_probability: Mean log-probability of a new token in nats, at temperature 1 with all tokens allowed.
        run_length, new_tokens: Longest memorized span of all texts, and the number of new tokens in the text that contains it.
        A measure is None if the texts are too short for it.
    """
    spans = [] if training is None else [(longest_memorized_span(text.new_ids, training), len(text.new_ids)) for text in texts]
    longest = max(spans, default=(None, None))
    return {
        **{f"distinct_{n}": _mean([distinct_fraction(text.new_ids, n) for text in texts]) for n in (1, 2, 3)},
        "mean_log_probability": _mean([mean_log_probability(model, text.prompt_ids, text.new_ids) for text in texts]),
        "run_length": longest[0],
        "new_tokens": longest[1],
    }


def distinct_fraction(token_ids: Sequence[int], n: int) -> float | None:
    """Return the fraction of distinct n-grams among all n-grams, or None if there are none.

    Source: Li et al. 2016 (arXiv:1510.03055), distinct-n.
    """
    n_grams = [tuple(token_ids[start : start + n]) for start in range(len(token_ids) - n + 1)]
    return len(set(n_grams)) / len(n_grams) if n_grams else None


@torch.inference_mode()
def mean_log_probability(model: LanguageModel, prompt_ids: Sequence[int], new_ids: Sequence[int]) -> float | None:
    """Return the mean log-probability in nats that a model gives to tokens after a prompt, or None if there are none.

    A text longer than the context is read in windows that overlap by half. Each token is thus predicted from at least half a
    context.
    """
    ids = torch.tensor([*prompt_ids, *new_ids], device=model.device)
    context, prompt_length = model.config.context_length, len(prompt_ids)
    total, done = 0.0, prompt_length
    while done < len(ids):
        start = max(0, done - (context if done == prompt_length else max(context // 2, 1)))
        window = ids[start : start + context + 1]  # The last token is only a target.
        logits = model(window[None, :-1])[0, done - start - 1 :].float()  # The predictions of window[done - start :].
        targets = window[done - start :]
        total -= F.cross_entropy(logits, targets, reduction="sum").item()
        done += len(targets)
    return total / len(new_ids) if new_ids else None


def _mean(values: Sequence[float | None]) -> float | None:
    """Return the mean of the finite values, or None if there are none."""
    numbers = [value for value in values if value is not None and math.isfinite(value)]
    return fmean(numbers) if numbers else None
