"""Continue a prompt and print the text while it is generated."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from gpt_pretrain.errors import UserError
from gpt_pretrain.generation.config import SamplerConfig
from gpt_pretrain.generation.continued_text import LENGTH, ContinuedText
from gpt_pretrain.generation.decoding import DecodingModel
from gpt_pretrain.generation.sampling import generate_steps
from gpt_pretrain.generation.token_scores import TokenScore, score_tokens, scores_as_json
from gpt_pretrain.system.streams import lost_output
from gpt_pretrain.system.terminal import escape_controls
from gpt_pretrain.tokenizers.base import Tokenizer, missing_ids
from gpt_pretrain.tokenizers.splitting import encode_prompt


@dataclass(frozen=True)
class Continuation:
    """A prompt with its continuation.

    Args:
        text: The prompt followed by the new text.
        prompt_ids: Token ids of the prompt.
        new_ids: Token ids of the continuation, without the end of text and without a stop string.
        finish_reason: "stop" after the end of text or a stop string, otherwise "length".
        logprobs: The new tokens with their log-probabilities, as in OpenAI's completions; None if not requested.
    """

    text: str
    prompt_ids: list[int]
    new_ids: list[int]
    finish_reason: str = LENGTH
    logprobs: dict[str, list[Any]] | None = None


@dataclass(frozen=True)
class TextModel:
    """A model that is ready to decode, with its tokenizer.

    Args:
        decoder: The model.
        tokenizer: The tokenizer that it was trained with.
    """

    decoder: DecodingModel
    tokenizer: Tokenizer

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        device: torch.device = self.decoder.device
        return device

    @cached_property
    def banned_ids(self) -> list[int]:
        """The ids without a token. They are never generated."""
        return missing_ids(self.tokenizer, self.decoder.config.vocab_size)

    @cached_property
    def banned(self) -> torch.Tensor:
        """The same ids as a tensor on the model's device."""
        return torch.tensor(self.banned_ids, dtype=torch.int64, device=self.device)


@dataclass(frozen=True)
class PromptOptions:
    """The settings for continuing prompts, besides the sampler's.

    Args:
        n_samples: Continuations of each prompt.
        seed: Seed of the random choices. Each prompt begins with it, so its texts do not depend on other prompts.
        stop: Texts that end a continuation.
        logprobs: Number of alternatives of each token to keep with its log-probability; None keeps neither.
    """

    n_samples: int
    seed: int
    stop: Sequence[str] = field(default_factory=tuple)
    logprobs: int | None = None


def continue_prompt(
    model: TextModel,
    prompt: str,
    sampler: SamplerConfig,
    options: PromptOptions,
    *,
    needs_output: bool = True,
) -> list[Continuation]:
    """Print a prompt and its continuations while they are generated, and return them.

    A file or a pipe gets the exact text. On a terminal, control characters are escaped, since somebody else's weights can
    generate any text.

    Args:
        needs_output: Stop when the output can no longer be written, for example after head has read enough.

    Raises:
        UserError: If the prompt has no tokens.
    """
    prompt_ids = encode_prompt(prompt, model.tokenizer)
    check_prompt_ids(prompt_ids)
    generator = torch.Generator(device=model.device).manual_seed(options.seed)
    continuations: list[Continuation] = []
    escape = sys.stdout.isatty()

    def show(text: str) -> bool:
        print(escape_controls(text) if escape else text, end="", flush=True)
        return not needs_output or lost_output() is None

    for number in range(options.n_samples):
        if options.n_samples > 1:
            print(f"--- sample {number + 1} of {options.n_samples}")
        show(prompt)
        made = continue_ids(model, prompt_ids, sampler, options, generator=generator, show=show)
        if needs_output and lost_output() is not None:
            return continuations
        print()
        continuations.append(_with_prompt(prompt, made))
    return continuations


def continue_quietly(model: TextModel, prompt: str, sampler: SamplerConfig, options: PromptOptions) -> list[Continuation]:
    """Return the same continuations of a prompt as `continue_prompt`, without printing them.

    Raises:
        UserError: If the prompt has no tokens.
    """
    prompt_ids = encode_prompt(prompt, model.tokenizer)
    check_prompt_ids(prompt_ids)
    generator = torch.Generator(device=model.device).manual_seed(options.seed)
    return [
        _with_prompt(prompt, continue_ids(model, prompt_ids, sampler, options, generator=generator))
        for _ in range(options.n_samples)
    ]


def check_prompt_ids(prompt_ids: Sequence[int]) -> None:
    """Check that a prompt has tokens.

    Raises:
        UserError: If it has none.
    """
    if not prompt_ids:
        raise UserError("The prompt is empty. Give at least one character, for example prompt='Every effort moves you'.")


def continue_ids(
    model: TextModel,
    prompt_ids: list[int],
    sampler: SamplerConfig,
    options: PromptOptions,
    *,
    generator: torch.Generator,
    show: Callable[[str], bool] = lambda _: True,
) -> Continuation:
    """Continue the token ids of a prompt once.

    Args:
        show: Called with each piece of text as soon as it is certain. After it returns False, no more tokens are generated.

    Returns:
        The continuation, with a text without the prompt.
    """
    tokenizer = model.tokenizer
    made = ContinuedText(tokenizer, max_new_tokens=sampler.max_new_tokens, stop=options.stop)
    token_ids = torch.tensor([prompt_ids], device=model.device)
    steps = generate_steps(
        model.decoder, token_ids, sampler, eos_id=tokenizer.eos_id, banned_ids=model.banned_ids, generator=generator
    )
    scores: list[TokenScore] = []
    for new, logits in steps:
        token_id = int(new)
        if options.logprobs is not None:
            scores += score_tokens(logits, [token_id], count=options.logprobs, banned=model.banned)
        if not show(made.add(token_id)) or made.finish_reason is not None:
            break
    shown = made.n_shown
    new_ids = [token_id for token_id in made.token_ids[:shown] if token_id != tokenizer.eos_id]
    logprobs = None if options.logprobs is None else scores_as_json(scores[:shown], made.offsets[:shown], tokenizer)
    return Continuation(made.text, prompt_ids, new_ids, made.finish_reason or LENGTH, logprobs)


def _with_prompt(prompt: str, made: Continuation) -> Continuation:
    return Continuation(prompt + made.text, made.prompt_ids, made.new_ids, made.finish_reason, made.logprobs)
