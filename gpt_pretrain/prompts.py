"""Prompts from the command line, a file, standard input or a prompt loop, and their continuations on the terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from gpt_pretrain.config import SamplerConfig
from gpt_pretrain.decoding import DecodingModel
from gpt_pretrain.errors import UserError
from gpt_pretrain.generation import generate_stream
from gpt_pretrain.settings import GenerateSettings
from gpt_pretrain.tokenizer import Tokenizer, decode_stream


def prompts(settings: GenerateSettings) -> Iterator[str]:
    """The prompts to continue, one after another.

    Raises:
        UserError: when a file of prompts cannot be read or is not UTF-8.
    """
    if settings.interactive:
        yield from _typed_prompts()
    elif settings.prompt_file is not None:
        try:
            yield Path(settings.prompt_file).expanduser().read_text(encoding="utf-8").removesuffix("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"prompt_file={settings.prompt_file} cannot be read as UTF-8 text: {error}") from error
    elif settings.prompt == "-":
        try:
            yield sys.stdin.read().removesuffix("\n")
        except UnicodeDecodeError as error:
            raise UserError(f"prompt=-: standard input is not UTF-8 text: {error}") from error
    else:
        yield settings.prompt


def continue_prompt(
    model: DecodingModel, tokenizer: Tokenizer, prompt: str, sampler: SamplerConfig, *, n_samples: int, seed: int
) -> list[str]:
    """Print a prompt and its continuations as they are made, and return the whole texts.

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
        new_ids = (int(column) for column in columns)
        print(prompt, end="", flush=True)
        text = prompt
        for piece in decode_stream(tokenizer, (token_id for token_id in new_ids if token_id != tokenizer.eos_id)):
            print(piece, end="", flush=True)
            text += piece
        print()
        texts.append(text)
    return texts


def _typed_prompts() -> Iterator[str]:
    """Lines that the user types, until an empty line, Ctrl-D or Ctrl-C."""
    print("Type a prompt and press Enter; an empty line ends.")
    while True:
        try:
            line = input("> ")
        except (EOFError, KeyboardInterrupt):
            print()
            return
        if not line:
            return
        yield line
