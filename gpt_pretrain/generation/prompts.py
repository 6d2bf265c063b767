"""Prompts from the command line, a file, standard input or a prompt loop, and their continuations on the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from gpt_pretrain.errors import UserError
from gpt_pretrain.generation.config import SamplerConfig
from gpt_pretrain.generation.decoding import DecodingModel
from gpt_pretrain.generation.sampling import generate_stream
from gpt_pretrain.tokenizers.base import Tokenizer, decode_stream


@dataclass(frozen=True)
class Continuation:
    """A prompt and what a model made of it.

    Args:
        text: both.
        prompt_ids, new_ids: their tokens.
    """

    text: str
    prompt_ids: list[int]
    new_ids: list[int]


def continue_prompt(
    model: DecodingModel, tokenizer: Tokenizer, prompt: str, sampler: SamplerConfig, *, n_samples: int, seed: int
) -> list[Continuation]:
    """Print a prompt and its continuations as they are made, and return them.

    Raises:
        UserError: when the prompt encodes to nothing.
    """
    token_ids = tokenizer.encode(prompt)
    if not token_ids:
        raise UserError("The prompt is empty: give at least one character, for example prompt='Every effort moves you'.")
    device = model.device
    generator = torch.Generator(device=device).manual_seed(seed)
    texts = []
    for number in range(n_samples):
        if n_samples > 1:
            print(f"--- sample {number + 1} of {n_samples}")
        columns = generate_stream(
            model, torch.tensor([token_ids], device=device), sampler, eos_id=tokenizer.eos_id, generator=generator
        )
        print(prompt, end="", flush=True)
        text, new_ids = prompt, list[int]()
        for piece in decode_stream(tokenizer, _kept(columns, new_ids, eos_id=tokenizer.eos_id)):
            print(piece, end="", flush=True)
            text += piece
        print()
        texts.append(Continuation(text, token_ids, new_ids))
    return texts


def _kept(columns: Iterable[Tensor], new_ids: list[int], *, eos_id: int) -> Iterator[int]:
    """The tokens as they are made, added to new_ids, but for the end of text."""
    for column in columns:
        if (token_id := int(column)) != eos_id:
            new_ids.append(token_id)
            yield token_id
