"""What can be said of generated texts: how varied, how likely to the model, how much of them is learnt by heart."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from omegaconf import OmegaConf
from torch.nn import functional as F

from gpt_pretrain.config.schema import DataSettings
from gpt_pretrain.data.corpus import split_of
from gpt_pretrain.data.download import downloaded
from gpt_pretrain.data.files import is_url
from gpt_pretrain.data.sources import corpus_at
from gpt_pretrain.data.text import cache_folder, find_text
from gpt_pretrain.data.tokens import TokenText, tokenize_text
from gpt_pretrain.errors import UserError
from gpt_pretrain.evaluation.memorization import longest_memorized_span
from gpt_pretrain.generation.prompts import Continuation
from gpt_pretrain.model.gpt2 import GPTModel
from gpt_pretrain.runs.metadata import update_metadata
from gpt_pretrain.system.files import write_text
from gpt_pretrain.tokenizers.base import Tokenizer


def training_tokens(content: Mapping[str, Any], tokenizer: Tokenizer) -> TokenText | None:
    """The tokens that a checkpoint was trained on; None where it does not tell, or its text is not there any more.

    Args:
        content: what the checkpoint holds beside weights.
    """
    if "config" not in content:
        return None
    data = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(DataSettings), content["config"]["data"]))
    assert isinstance(data, DataSettings)
    if data.path is None and data.url is not None and not downloaded(data.url, folder=cache_folder(data) / "texts").is_file():
        return None  # which a look at some texts is no reason to fetch
    try:
        if data.name in ("shards", "mixture"):
            return _shard_tokens(data, content["text_sha256"], tokenizer)
        text = find_text(data, cache_dir=cache_folder(data))
        if text.sha256() != content["text_sha256"]:
            return None
        return tokenize_text(text, tokenizer, train_ratio=data.train_ratio, cache_dir=cache_folder(data)).train
    except UserError:
        return None


def _shard_tokens(data: DataSettings, sha256: str, tokenizer: Tokenizer) -> TokenText | None:
    """The training part of shards on this machine, if they are still the same.

    Raises:
        UserError: when they are not there any more.
    """
    if data.path is None or is_url(data.path):
        return None
    split = split_of(corpus_at(data.path, data), tokenizer, train_ratio=data.train_ratio)
    return split.train if split.text_sha256 == sha256 else None


def keep_measured(
    folder: Path, model: GPTModel, texts: Sequence[Continuation], content: Mapping[str, Any], tokenizer: Tokenizer
) -> None:
    """Write texts to samples.txt in a folder, and with their measures to its record.

    Args:
        content: what the model's checkpoint holds beside weights.
    """
    whole = [text.text for text in texts]
    write_text(folder / "samples.txt", "\n\n".join(whole) + "\n")
    update_metadata(folder, texts=whole, measures=measure(model, texts, training=training_tokens(content, tokenizer)))


def measure(model: GPTModel, texts: Sequence[Continuation], *, training: TokenText | None) -> dict[str, Any]:
    """Measures of some continuations, each a mean over them, but for the longest run that stands in the training text.

    Returns:
        distinct_1, distinct_2, distinct_3: different n-grams of new tokens by all n-grams; mean_log_probability: of a new token,
        in nats, at temperature 1 with all tokens allowed; run_length, new_tokens: of the one with the longest run. None where
        texts are too short.
    """
    runs = [] if training is None else [(longest_memorized_span(text.new_ids, training), len(text.new_ids)) for text in texts]
    longest = max(runs, default=(None, None))
    return {
        **{f"distinct_{n}": _mean([distinct(text.new_ids, n) for text in texts]) for n in (1, 2, 3)},
        "mean_log_probability": _mean([mean_log_probability(model, text.prompt_ids, text.new_ids) for text in texts]),
        "run_length": longest[0],
        "new_tokens": longest[1],
    }


def distinct(tokens: Sequence[int], n: int) -> float | None:
    """Different n-grams of some tokens by all of them; None where there is none.

    Source: Li et al. 2016 (arXiv:1510.03055).
    """
    n_grams = [tuple(tokens[place : place + n]) for place in range(len(tokens) - n + 1)]
    return len(set(n_grams)) / len(n_grams) if n_grams else None


@torch.inference_mode()
def mean_log_probability(model: GPTModel, prompt_ids: Sequence[int], new_ids: Sequence[int]) -> float | None:
    """Mean log-probability in nats that a model gives to tokens after a prompt; None where there are none.

    A text longer than the context is read in windows that overlap by half, so that each token is judged with at least half a
    context before it.
    """
    ids = torch.tensor([*prompt_ids, *new_ids], device=model.head_weight.device)
    context, first = model.config.context_length, len(prompt_ids)
    total, judged = 0.0, first  # tokens before `judged` are done
    while judged < len(ids):
        begin = max(0, judged - (context if judged == first else max(context // 2, 1)))
        window = ids[begin : begin + context + 1]  # the last token is a target only
        logits = model(window[None, :-1])[0, judged - begin - 1 :].float()  # those that predict ids from `judged` on
        targets = window[judged - begin :]
        total -= F.cross_entropy(logits, targets, reduction="sum").item()
        judged += len(targets)
    return total / len(new_ids) if new_ids else None


def _mean(values: Sequence[float | None]) -> float | None:
    numbers = [value for value in values if value is not None and math.isfinite(value)]
    return fmean(numbers) if numbers else None
