"""The work of generate.py: from its composed config to printed continuations."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from omegaconf import DictConfig

from gpt_pretrain.commands.failures import report_failures
from gpt_pretrain.commands.job import is_multirun, output_folder, overridden_keys, start_info
from gpt_pretrain.config.conversion import to_settings
from gpt_pretrain.config.schema import GenerateSettings
from gpt_pretrain.config.validation import generate_problems
from gpt_pretrain.errors import UserError
from gpt_pretrain.runs.metadata import track_run
from gpt_pretrain.system.environment import user_path
from gpt_pretrain.system.streams import lost_output, read_input

CURLY_QUOTED = re.compile("[\u201c\u201d\u201e\u2018\u201a].+[\u201c\u201d\u2019]", re.DOTALL)


def generate_texts(config: DictConfig) -> None:
    """Print continuations of the prompts; a job of a sweep also measures the texts and keeps them in its folder.

    Raises:
        SystemExit: If the command fails.
        SweepJobFailed: If it fails as a job of a sweep.
    """
    with report_failures(), ExitStack() as stack:
        if is_multirun():
            stack.enter_context(track_run(output_folder(), **start_info("generate.py")))
        settings = to_settings(config, GenerateSettings)
        if problems := generate_problems(settings):
            raise UserError(problems)
        _generate(settings, keep=output_folder() if is_multirun() else None)


def _generate(settings: GenerateSettings, *, keep: Path | None) -> None:
    from gpt_pretrain.checkpoints.checkpoint_file import first_readable
    from gpt_pretrain.checkpoints.pretrained import open_weights
    from gpt_pretrain.config.custom_parts import named_model
    from gpt_pretrain.evaluation.unlikely_text import unlikely_prompt
    from gpt_pretrain.generation.config import SamplerConfig
    from gpt_pretrain.generation.decoding import PRECISIONS, decoding_model, pick_decoding_precision
    from gpt_pretrain.generation.prompts import continue_prompt
    from gpt_pretrain.runs.folder import find_checkpoints
    from gpt_pretrain.system.devices import keep_freed_memory, pick_device
    from gpt_pretrain.system.terminal import escape_line, print_escaped
    from gpt_pretrain.tokenizers.unknown import unknown_prompt

    keep_freed_memory()
    # A prompt that cannot be read is refused before the weights are loaded.
    prompts = _interactive_prompts() if settings.interactive else _read_prompt(settings)
    sampler = SamplerConfig(**vars(settings.sampler))
    warnings = (
        sampler.unused_settings(),
        _equal_samples(settings),
        _unused_prompts(settings),
        _curly_marks(settings),
        _unused_heads(settings),
    )
    for warning in filter(None, warnings):
        print_escaped(f"warning: {warning}", file=sys.stderr)
    if settings.pretrained is not None:
        weights = open_weights(
            settings.pretrained, n_heads=settings.n_heads, kind=settings.weights, custom=named_model(settings.model)
        )
    else:
        weights = first_readable(
            find_checkpoints(settings.checkpoint),
            partial(open_weights, kind=settings.weights, custom=named_model(settings.model)),
        )
    tokenizer = weights.build_tokenizer(settings.tokenizer)
    model = weights.build(device=pick_device(settings.device))
    precision, reason = pick_decoding_precision(settings.precision, model)
    print_escaped(f"({escape_line(weights.name)}; precision {precision}: {reason})", file=sys.stderr)
    decoder = decoding_model(model, dtype=PRECISIONS[precision])
    texts = []
    for prompt in prompts:
        if (unknown := unknown_prompt(prompt, tokenizer)) is not None:
            print_escaped(f"warning: {unknown}", file=sys.stderr)
        elif settings.pretrained is not None and (unlikely := unlikely_prompt(model, tokenizer, prompt)) is not None:
            print_escaped(f"warning: {unlikely}", file=sys.stderr)
        texts += continue_prompt(
            decoder,
            tokenizer,
            prompt,
            sampler,
            n_samples=settings.n_samples,
            seed=settings.seed,
            needs_output=keep is None,
        )
        if keep is None and lost_output() is not None:
            return
    if keep is not None:
        from gpt_pretrain.evaluation.generated_text import save_measured_texts

        save_measured_texts(keep, model, texts, weights.content, tokenizer)


def _equal_samples(settings: GenerateSettings) -> str | None:
    if settings.n_samples == 1 or settings.sampler.temperature > 0:
        return None
    return (
        f"n_samples={settings.n_samples} makes the same text {settings.n_samples} times, since sampler.temperature=0 always "
        "takes the most likely token. Set a temperature above 0, such as sampler.temperature=0.7"
    )


def _unused_heads(settings: GenerateSettings) -> str | None:
    if settings.n_heads is None or settings.pretrained is not None:
        return None
    return (
        f"n_heads={settings.n_heads} has no effect, since a checkpoint names its heads. It is for a state dict: pretrained=FILE"
    )


def _curly_marks(settings: GenerateSettings) -> str | None:
    if not CURLY_QUOTED.fullmatch(settings.prompt) or settings.prompt_file is not None:
        return None
    return (
        f"The quotation marks of prompt={settings.prompt} are part of the prompt, since the shell knows only straight ones: "
        "'...' and \"...\"."
    )


def _unused_prompts(settings: GenerateSettings) -> str | None:
    """Return a sentence about typed prompts that another setting takes the place of."""
    typed = overridden_keys() & {"prompt"} | ({"prompt_file"} if settings.prompt_file is not None else set())
    used = "interactive" if settings.interactive else "prompt_file" if settings.prompt_file is not None else "prompt"
    unused = sorted(typed - {used})
    if not unused or used == "prompt":
        return None
    verb = "has" if len(unused) == 1 else "have"
    chosen = "interactive=true asks for prompts" if settings.interactive else f"prompt_file={settings.prompt_file} is the prompt"
    return f"{' and '.join(unused)} {verb} no effect, since {chosen}."


def _read_prompt(settings: GenerateSettings) -> list[str]:
    """Read the prompt to continue, as a list with one entry.

    Raises:
        UserError: If the prompt cannot be read or is not UTF-8.
    """
    if settings.prompt_file is None and settings.prompt != "-":
        return [settings.prompt]
    name = "prompt=-: standard input" if settings.prompt_file is None else f"prompt_file={settings.prompt_file}"
    try:
        if settings.prompt_file is None:
            return [read_input().removesuffix("\n")]
        return [user_path(settings.prompt_file).read_text(encoding="utf-8-sig").removesuffix("\n")]
    except OSError as error:
        raise UserError(f"{name} cannot be read: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{name} is not UTF-8 text ({error.reason} at byte {error.start}). Save it as UTF-8.") from error


def _interactive_prompts() -> Iterator[str]:
    """Yield the lines that the user types, until an empty line, Ctrl-D or Ctrl-C."""
    print("Type a prompt and press Enter. An empty line ends.")
    while True:
        try:
            line = input("> ")
        except (EOFError, KeyboardInterrupt):
            print()
            return
        if not line:
            return
        yield line
