"""The work of generate.py: from its composed config to printed continuations."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from omegaconf import DictConfig

from gpt_pretrain.checkpoints.serialization.checksum import check_early
from gpt_pretrain.commands.generate_warnings import generate_warnings
from gpt_pretrain.commands.process.failures import report_failures
from gpt_pretrain.commands.process.job import is_multirun, output_folder, start_info
from gpt_pretrain.config.conversion import to_settings
from gpt_pretrain.config.inference_rules import generate_problems
from gpt_pretrain.config.inference_schema import GenerateSettings, weight_names
from gpt_pretrain.errors import UserError
from gpt_pretrain.runs.metadata import track_run
from gpt_pretrain.system.environment import user_path
from gpt_pretrain.system.loading import loading_libraries
from gpt_pretrain.system.streams import lost_output, read_input

if TYPE_CHECKING:
    from gpt_pretrain.generation.config import SamplerConfig
    from gpt_pretrain.generation.prompt_files import NumberedPrompt
    from gpt_pretrain.generation.prompts import PromptOptions, TextModel
    from gpt_pretrain.model.language_model import LanguageModel
    from gpt_pretrain.tokenizers.base import Tokenizer

MAX_WARNED = 3  # prompts of a file that get a warning


def generate_texts(config: DictConfig) -> None:
    """Print continuations of the prompts. A job of a sweep also measures the texts and keeps them in its folder.

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
        _generate(settings, stack, keep=output_folder() if is_multirun() else None)


def _generate(settings: GenerateSettings, stack: ExitStack, *, keep: Path | None) -> None:
    check_early((weight_names(settings) or [settings.checkpoint])[0])
    with loading_libraries():
        from gpt_pretrain.commands.named_weights import load_text_model, open_named_weights
        from gpt_pretrain.generation.config import SamplerConfig
        from gpt_pretrain.generation.prompts import PromptOptions, continue_prompt
        from gpt_pretrain.system.devices import prepare_computing
        from gpt_pretrain.system.terminal import print_escaped

    prepare_computing()
    # A prompt that cannot be read is refused before the weights are loaded.
    prompts = _interactive_prompts() if settings.interactive else _read_prompt(settings)
    answers = _open_answers(settings, stack)
    sampler = SamplerConfig(**vars(settings.sampler))
    for warning in generate_warnings(settings, sampler):
        print_escaped(f"warning: {warning}", file=sys.stderr)
    (weights,) = open_named_weights(settings)
    ready, model = load_text_model(weights, settings)
    options = PromptOptions(settings.n_samples, settings.seed, settings.stop, settings.logprobs)
    if answers is not None:
        _write_answers(answers, ready, sampler, options, prompts=_numbered(settings, prompts))
        return
    texts = []
    for prompt in prompts:
        if (problem := _prompt_problem(prompt, model, ready.tokenizer, pretrained=settings.pretrained is not None)) is not None:
            print_escaped(f"warning: {problem}", file=sys.stderr)
        texts += continue_prompt(ready, prompt, sampler, options, needs_output=keep is None)
        if keep is None and lost_output() is not None:
            return
    if keep is not None:
        from gpt_pretrain.evaluation.generated_text import save_measured_texts

        save_measured_texts(keep, model, texts, weights.content, ready.tokenizer)


def _prompt_problem(prompt: str, model: LanguageModel, tokenizer: Tokenizer, *, pretrained: bool) -> str | None:
    """Return a reason why a model may continue a prompt badly, or None."""
    from gpt_pretrain.evaluation.unlikely_text import unlikely_prompt
    from gpt_pretrain.tokenizers.splitting import encode_prompt
    from gpt_pretrain.tokenizers.unknown import unknown_prompt

    n_tokens, seen = len(encode_prompt(prompt, tokenizer)), model.config.context_length
    if (unknown := unknown_prompt(prompt, tokenizer)) is not None:
        return unknown
    if n_tokens > seen:
        return f"The prompt has {n_tokens:,} tokens, of which the model sees the last {seen:,} (its context_length)."
    return unlikely_prompt(model, tokenizer, prompt) if pretrained else None


def _open_answers(settings: GenerateSettings, stack: ExitStack) -> TextIO | None:
    """Open the file for lines of JSON, or standard output. Return None if the texts are printed as plain text.

    Args:
        stack: Removes the file at its end if nothing was written, so that the same command can be tried again.

    Raises:
        UserError: If the file exists or cannot be written, or the prompts cannot be read.
    """
    from gpt_pretrain.generation.prompt_files import check_prompts

    if settings.prompts is not None:
        check_prompts(user_path(settings.prompts), name=f"prompts={settings.prompts}")
    if settings.out is None or settings.out == "-":
        return None if settings.out is None and settings.prompts is None else sys.stdout
    path = user_path(settings.out)
    try:
        answers = path.open("x", encoding="utf-8")
    except FileExistsError as error:
        if path.is_file():
            raise UserError(f"out={settings.out}: this file exists already. Choose another name, or delete it.") from error
        kind = "a folder" if path.is_dir() else "a device, a pipe or a broken link"
        raise UserError(f"out={settings.out} is {kind}. Name a new file; out=- writes to standard output.") from error
    except OSError as error:
        raise UserError(f"out={settings.out}: this file cannot be written ({error.strerror or error}).") from error
    stack.callback(_remove_empty, path)
    return stack.enter_context(answers)


def _remove_empty(path: Path) -> None:
    with suppress(OSError):
        if path.stat().st_size == 0:
            path.unlink()


def _numbered(settings: GenerateSettings, prompts: Iterable[str]) -> Iterator[NumberedPrompt]:
    from gpt_pretrain.generation.prompt_files import NumberedPrompt, read_prompts

    if settings.prompts is not None:
        return read_prompts(user_path(settings.prompts), name=f"prompts={settings.prompts}")
    return (NumberedPrompt(number, text, {}) for number, text in enumerate(prompts, start=1))


def _write_answers(
    answers: TextIO, model: TextModel, sampler: SamplerConfig, options: PromptOptions, *, prompts: Iterable[NumberedPrompt]
) -> None:
    """Write each continuation of each prompt as a line of JSON, as soon as it is complete.

    Raises:
        UserError: If the file cannot be written.
    """
    from gpt_pretrain.generation.prompt_files import answer_line
    from gpt_pretrain.generation.prompts import continue_quietly

    try:
        with answers if answers is not sys.stdout else nullcontext():
            for prompt in _with_warnings(prompts, model.tokenizer):
                for number, made in enumerate(continue_quietly(model, prompt.text, sampler, options), start=1):
                    answers.write(answer_line(prompt, made, sample=number))
                    answers.flush()
                if answers is sys.stdout and lost_output() is not None:
                    return
    except OSError as error:
        raise UserError(f"The answers cannot be written: {error.strerror or error}.") from error


def _with_warnings(prompts: Iterable[NumberedPrompt], tokenizer: Tokenizer) -> Iterator[NumberedPrompt]:
    """Yield prompts. Warn of fields that the answer replaces, and of text that the vocabulary lacks."""
    from gpt_pretrain.generation.prompt_files import ANSWER_FIELDS
    from gpt_pretrain.system.terminal import print_escaped
    from gpt_pretrain.tokenizers.unknown import unknown_prompt

    replaced, n_unknown = set[str](), 0
    for prompt in prompts:
        if more := [name for name in ANSWER_FIELDS if name in prompt.fields and name not in replaced]:
            replaced.update(more)
            fields = f"field {more[0]}" if len(more) == 1 else f"fields {', '.join(more)}"
            print_escaped(f"warning: line {prompt.line}: the answer's {fields} will replace the prompt's.", file=sys.stderr)
        if (unknown := unknown_prompt(prompt.text, tokenizer)) is not None:
            n_unknown += 1
            if n_unknown <= MAX_WARNED:
                print_escaped(f"warning: line {prompt.line}: {unknown}", file=sys.stderr)
        yield prompt
    if n_unknown > MAX_WARNED:
        lacking = f"{n_unknown - MAX_WARNED:,} further prompt{'s' * (n_unknown > MAX_WARNED + 1)}"
        print_escaped(f"warning: The vocabulary also lacks parts of {lacking}.", file=sys.stderr)


def _read_prompt(settings: GenerateSettings) -> list[str]:
    """Read the prompt to continue, as a list with one entry. The list is empty if there is a file of prompts.

    Raises:
        UserError: If the prompt cannot be read or is not UTF-8.
    """
    from gpt_pretrain.generation.prompt_files import MAX_LINE_BYTES, check_prompt_text
    from gpt_pretrain.system.line_ends import unify_line_ends
    from gpt_pretrain.system.recognition.file_kinds import HEAD

    if settings.prompts is not None:
        return []
    if settings.prompt_file is None and settings.prompt != "-":
        return [settings.prompt]
    name = "prompt=-: standard input" if settings.prompt_file is None else f"prompt_file={settings.prompt_file}"
    try:
        if settings.prompt_file is None:
            return [read_input().removesuffix("\n")]
        path = user_path(settings.prompt_file)
        with path.open("rb") as stream:  # It may be a pipe.
            content = stream.read(MAX_LINE_BYTES + 1)
        if len(content) > MAX_LINE_BYTES:
            raise UserError(f"{name} has more than {MAX_LINE_BYTES:,} bytes. Shorten it.")
        check_prompt_text(path, content[:HEAD], name=name, as_text=True)
        return [unify_line_ends(content.decode("utf-8-sig")).removesuffix("\n")]
    except OSError as error:
        raise UserError(f"{name} cannot be read: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{name} is not UTF-8 text ({error.reason} at byte {error.start}). Save it as UTF-8.") from error


def _interactive_prompts() -> Iterator[str]:
    """Yield the lines that the user types, until an empty line, Ctrl-D or Ctrl-C."""
    # With readline, lines may have any length, arrow keys edit them, and pasted lines stay together, which Python turns off.
    # Without it, a terminal passes at most 4,095 bytes of a line, and input() cuts off the last character before Ctrl-D.
    with suppress(ImportError):
        importlib.import_module("readline").parse_and_bind("set enable-bracketed-paste on")
    print("Type a prompt and press Enter. An empty line ends the program.")
    while True:
        try:
            line = input("> ")
        except (EOFError, KeyboardInterrupt):
            print()
            return
        if not line:
            return
        try:
            line.encode()
        except UnicodeEncodeError:
            print("This line is not UTF-8 text. Set the terminal's encoding to UTF-8, and type it again.", file=sys.stderr)
        else:
            yield line
