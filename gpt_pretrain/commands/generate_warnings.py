"""Warn of settings of generate.py that have no effect together, or are probably not meant."""

from __future__ import annotations

import re
from collections.abc import Iterator

from gpt_pretrain.commands.process.job import overridden_keys
from gpt_pretrain.config.inference_schema import GenerateSettings
from gpt_pretrain.generation.config import SamplerConfig

CURLY_QUOTED = re.compile("[\u201c\u201d\u201e\u2018\u201a].+[\u201c\u201d\u2019]", re.DOTALL)


def generate_warnings(settings: GenerateSettings, sampler: SamplerConfig) -> Iterator[str]:
    """Yield a sentence about each setting that has no effect, or probably not the intended one."""
    found = (
        sampler.unused_settings(),
        equal_samples(settings),
        unused_seed(settings),
        unused_prompts(settings),
        curly_marks(settings),
        unread_escapes(settings),
        unused_heads(settings),
        unused_scores(settings),
    )
    yield from filter(None, found)


def equal_samples(settings: GenerateSettings) -> str | None:
    """Return a sentence if several samples are all the same; None if they differ."""
    if settings.n_samples == 1 or settings.sampler.temperature > 0:
        return None
    return (
        f"n_samples={settings.n_samples} makes the same text {settings.n_samples} times, since sampler.temperature=0 always "
        "takes the most likely token. Set a temperature above 0, such as sampler.temperature=0.7"
    )


def unused_seed(settings: GenerateSettings) -> str | None:
    """Return a sentence if a seed is typed but the choices are not random, otherwise None."""
    if "seed" not in overridden_keys() or settings.sampler.temperature > 0:
        return None
    return (
        f"seed={settings.seed} has no effect at sampler.temperature=0, which always takes the most likely token. Set a "
        "temperature above 0, such as sampler.temperature=0.7"
    )


def unused_heads(settings: GenerateSettings) -> str | None:
    """Return a sentence if n_heads is typed but the weights name their heads, otherwise None."""
    if settings.n_heads is None or settings.pretrained is not None:
        return None
    return (
        f"n_heads={settings.n_heads} has no effect, since a checkpoint names its heads. It is for a state dict: pretrained=FILE"
    )


def curly_marks(settings: GenerateSettings) -> str | None:
    """Return a sentence about curly quotation marks, which a shell does not know; None if there are none."""
    if not CURLY_QUOTED.fullmatch(settings.prompt) or settings.prompt_file is not None or settings.prompts is not None:
        return None
    return (
        f"The quotation marks of prompt={settings.prompt} are part of the prompt, since the shell knows only straight ones: "
        "'...' and \"...\"."
    )


def unread_escapes(settings: GenerateSettings) -> str | None:
    """Return a sentence if a prompt has a backslash and an n that may mean a line feed, otherwise None."""
    is_typed = settings.prompt_file is None and settings.prompts is None and not settings.interactive
    examples = {
        "stop": (settings.stop, r"""$'stop=["\n"]'"""),
        "prompt": ([settings.prompt] * is_typed, r"$'prompt=One\nTwo'"),
    }
    found = [(name, example) for name, (texts, example) in examples.items() if any(r"\n" in text for text in texts)]
    if not found:
        return None
    names, commands = (" and ".join(one) for one in zip(*found, strict=True))
    return rf"\n in {names} is a backslash and an n, as it is typed. For a line feed, type {commands} in bash or zsh."


def unused_prompts(settings: GenerateSettings) -> str | None:
    """Return a sentence about typed prompts that another setting replaces, or None."""
    files = {name for name in ("prompts", "prompt_file") if getattr(settings, name) is not None}
    typed = overridden_keys() & {"prompt"} | files
    used = "interactive" if settings.interactive else max(files, default="prompt")  # prompts takes precedence over prompt_file
    unused = sorted(typed - {used})
    if not unused or used == "prompt":
        return None
    verb = "has" if len(unused) == 1 else "have"
    chosen = {
        "interactive": "interactive=true asks for prompts",
        "prompts": f"prompts={settings.prompts} holds the prompts",
        "prompt_file": f"prompt_file={settings.prompt_file} is the prompt",
    }[used]
    return f"{' and '.join(unused)} {verb} no effect, since {chosen}."


def unused_scores(settings: GenerateSettings) -> str | None:
    """Return a sentence if log-probabilities are requested but not shown, otherwise None."""
    if settings.logprobs is None or settings.prompts is not None or settings.out is not None:
        return None
    return f"logprobs={settings.logprobs} has no effect on plain text. To write lines of JSON, add out=FILE.jsonl"
