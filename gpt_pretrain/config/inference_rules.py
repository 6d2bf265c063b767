"""The rules for the settings of generate.py, evaluate.py and serve.py, which use trained weights."""

from __future__ import annotations

import re

from gpt_pretrain.config.inference_schema import EvaluateSettings, GenerateSettings, ServeSettings
from gpt_pretrain.config.rules import WEIGHTS, Rule, Test, at_least, one_of, rule_problems, sampler_problems
from gpt_pretrain.generation.config import MAX_LOGPROBS, MAX_STOP_LENGTH, MAX_STOPS
from gpt_pretrain.system.environment import user_path

MAX_SAMPLES = 1_000_000  # of one prompt, which take days even from a tiny model

EXISTS: tuple[Test, str] = (lambda name: name is None or user_path(name).exists(), "no file has this path; check it")
NO_FOLDER: tuple[Test, str] = (lambda name: name is None or not user_path(name).is_dir(), "this is a folder. Give a file in it")

GENERATE_RULES: list[Rule] = [
    ("weights", *one_of(*WEIGHTS)),
    ("n_samples", lambda count: 1 <= count <= MAX_SAMPLES, f"must be between 1 and {MAX_SAMPLES:,} samples"),
    ("device", lambda name: re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", name) is not None, "must be auto, cpu, cuda or mps"),
    ("precision", *one_of("auto", "32-true", "bf16-mixed", "int8")),
    ("prompt", lambda text: text != "", "must have at least one character, for example 'Every effort moves you'"),
    ("prompt_file", *EXISTS),
    ("prompt_file", *NO_FOLDER),
    ("prompts", *EXISTS),
    ("prompts", *NO_FOLDER),
    (
        "prompts",
        lambda name: name is None or user_path(name).is_file() or user_path(name).is_dir() or not user_path(name).exists(),
        "this is a pipe or a device, which cannot be read twice. Save the prompts in a file first",
    ),
    (
        "stop",
        lambda texts: len(texts) <= MAX_STOPS and all(1 <= len(text) <= MAX_STOP_LENGTH for text in texts),
        f"must be at most {MAX_STOPS} texts of 1 to {MAX_STOP_LENGTH:,} characters",
    ),
    ("logprobs", lambda count: count is None or 0 <= count <= MAX_LOGPROBS, f"must be between 0 and {MAX_LOGPROBS}, or null"),
    ("seed", lambda seed: 0 <= seed < 2**32, "must be between 0 and 4,294,967,295"),
    ("n_heads", *at_least(1, "attention head", null="the heads that the weights name")),
]

TASK_NAMES = ("lambada", "hellaswag", "piqa", "arc_easy", "arc_challenge", "winogrande", "copa")  # on the hub

EVALUATE_RULES: list[Rule] = [
    ("weights", *one_of(*WEIGHTS)),
    ("stride", *at_least(1, "token", null="the context length")),
    ("max_bytes", *at_least(1, "byte", null="the whole text")),
    ("tasks.limit", *at_least(1, "item", null="all items")),
    ("tasks.n_shots", lambda count: count is None or 0 <= count <= 100, "must be from 0 to 100, or null"),
    ("batch_tokens", *at_least(1, "token", null="what suits the device")),
    ("precision", *one_of("auto", "32-true", "bf16-mixed")),
    *(rule for rule in GENERATE_RULES if rule[0] in ("device", "n_heads")),
]

SERVE_RULES: list[Rule] = [
    ("timeline", lambda count: 0 <= count <= 100, "must be between 0 and 100 checkpoints"),
    (
        "host",
        lambda host: re.fullmatch(r"[\w.-]{1,255}|(?=.*:.*:)[0-9a-fA-F:.]{2,45}", host, re.ASCII) is not None,
        "must be a name or an address of this machine without http://, brackets or a port, such as localhost or ::1; 0.0.0.0 "
        "stands for all addresses, and port= names the port",
    ),
    ("port", lambda port: 0 <= port <= 65535, "must be between 0 and 65535; 0 takes any free port"),
    (
        "api_key",
        lambda key: key is None or re.fullmatch(r"[!-~]{8,1000}", key) is not None,
        "must have at least 8 letters, digits or symbols, without spaces",
    ),
    (
        "cors",
        lambda origins: all(re.fullmatch(r"https?://[\w.:\[\]-]+", one, re.ASCII) for one in origins),
        "must be origins such as https://example.org, without a path",
    ),
    ("max_rows", lambda count: 1 <= count <= 1024, "must be between 1 and 1024 texts"),
    ("max_queue", lambda count: 0 <= count <= 100_000, "must be between 0 and 100,000 texts"),
    ("max_seconds", lambda seconds: 0 < seconds <= 1_000_000, "must be above 0 and at most 1,000,000 seconds"),
    *(rule for rule in GENERATE_RULES if rule[0] in ("weights", "device", "precision", "n_heads")),
]


def generate_problems(settings: GenerateSettings) -> list[str]:
    """List the problems of generate.py's settings."""
    problems = rule_problems(settings, GENERATE_RULES) + sampler_problems(settings.sampler)
    if settings.pretrained is not None and settings.checkpoint != "latest":
        problems.append("checkpoint and pretrained both name the weights to use. Set only one of them.")
    if settings.interactive and settings.out is not None:
        problems.append(f"interactive=true prints its texts, so it cannot be combined with out={settings.out}.")
    return problems


def evaluate_problems(settings: EvaluateSettings) -> list[str]:
    """List the problems of the settings of evaluate.py."""
    problems = rule_problems(settings, EVALUATE_RULES) + _several_weights(settings)
    problems += [
        f"tasks.names={name}: there is no such task. Choose from {', '.join(TASK_NAMES)}; others are files, set with tasks.path."
        for name in settings.tasks.names
        if name not in TASK_NAMES
    ]
    if settings.tasks.names and settings.tasks.path is not None:
        problems.append("tasks.path and tasks.names cannot be combined. Evaluate twice.")
    return problems


def serve_problems(settings: ServeSettings) -> list[str]:
    """List the problems of the settings of serve.py."""
    problems = rule_problems(settings, SERVE_RULES) + _several_weights(settings)
    if settings.timeline and (settings.models or settings.pretrained is not None):
        problems.append(
            f"timeline={settings.timeline} adds checkpoints of the run that checkpoint= names. To choose others, list them "
            "instead: 'models=[outputs/RUN/checkpoints/step-00000100.ckpt,outputs/RUN]'"
        )
    return problems


def _several_weights(settings: EvaluateSettings | ServeSettings) -> list[str]:
    """List the settings that name weights, if there is more than one."""
    named = {"checkpoint": settings.checkpoint != "latest", "pretrained": settings.pretrained is not None}
    several = [name for name, is_set in (named | {"models": bool(settings.models)}).items() if is_set]
    if len(several) < 2:
        return []
    return [f"{' and '.join(several)}: each names the weights to use. Set one of them; models=[...] takes several."]
