"""Continue a prompt and print the text while it is generated."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from gpt_pretrain.errors import UserError
from gpt_pretrain.generation.config import SamplerConfig
from gpt_pretrain.generation.decoding import DecodingModel
from gpt_pretrain.generation.sampling import generate_stream
from gpt_pretrain.system.streams import lost_output
from gpt_pretrain.system.terminal import escape_controls
from gpt_pretrain.tokenizers.base import Tokenizer, decode_stream, missing_ids
from gpt_pretrain.tokenizers.splitting import encode_prompt


@dataclass(frozen=True)
class Continuation:
    """A prompt with its continuation.

    Args:
        text: The prompt followed by the new text.
        prompt_ids: Token ids of the prompt.
        new_ids: Token ids of the continuation, without the end of text.
    """

    text: str
    prompt_ids: list[int]
    new_ids: list[int]


def continue_prompt(
    model: DecodingModel,
    tokenizer: Tokenizer,
    prompt: str,
    sampler: SamplerConfig,
    *,
    n_samples: int,
    seed: int,
    needs_output: bool = True,
) -> list[Continuation]:
    """Print a prompt and its continuations while they are generated, and return them.

    A file or a pipe gets the text exactly as it is. On a terminal, control characters in it are escaped, since the weights of
    somebody else can generate any text.

    Args:
        needs_output: Stop when the output cannot be written any longer, as after head has read enough.

    Raises:
        UserError: If the prompt has no tokens.
    """
    prompt_ids = encode_prompt(prompt, tokenizer)
    if not prompt_ids:
        raise UserError("The prompt is empty. Give at least one character, for example prompt='Every effort moves you'.")
    device = model.device
    generator = torch.Generator(device=device).manual_seed(seed)
    banned_ids = missing_ids(tokenizer, model.config.vocab_size)
    continuations: list[Continuation] = []
    escape = sys.stdout.isatty()

    def show(text: str) -> None:
        print(escape_controls(text) if escape else text, end="", flush=True)

    for number in range(n_samples):
        if n_samples > 1:
            print(f"--- sample {number + 1} of {n_samples}")
        token_ids = torch.tensor([prompt_ids], device=device)
        stream = generate_stream(model, token_ids, sampler, eos_id=tokenizer.eos_id, banned_ids=banned_ids, generator=generator)
        show(prompt)
        text, new_ids = prompt, list[int]()
        for piece in decode_stream(tokenizer, _collect(stream, new_ids, eos_id=tokenizer.eos_id)):
            show(piece)
            text += piece
            if needs_output and lost_output() is not None:
                return continuations
        print()
        continuations.append(Continuation(text, prompt_ids, new_ids))
    return continuations


def _collect(stream: Iterable[Tensor], new_ids: list[int], *, eos_id: int | None) -> Iterator[int]:
    """Yield the token ids of a stream with one row, except eos_id, and append them to new_ids."""
    for tokens in stream:
        if (token_id := int(tokens)) != eos_id:
            new_ids.append(token_id)
            yield token_id
