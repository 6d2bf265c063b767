"""Look up the names and types of all settings and groups, and find the names that are most like a mistyped one."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from omegaconf import OmegaConf
from omegaconf.errors import ValidationError

from gpt_pretrain.config.settings_files import reading_problem
from gpt_pretrain.errors import UserError
from gpt_pretrain.system.checkout import CONF
from gpt_pretrain.system.reading import DamagedFileError
from gpt_pretrain.system.yaml_files import read_yaml

MAX_NEAREST = 3
MAX_NAME = 200  # characters of a mistyped name; a longer one is like no other
LEAST_LIKENESS = 0.75  # the least likeness, between 0 and 1, of a name that is suggested
# What other programs call these settings. `other_programs.py` has names whose values are written differently.
OTHER_NAMES = {
    **dict.fromkeys(
        ("block_size", "n_positions", "n_ctx", "seq_len", "seq_length", "max_seq_len", "context_size"), "model.context_length"
    ),
    **dict.fromkeys(("n_embd", "d_model", "hidden_size", "dim", "emb_size"), "model.emb_dim"),
    **dict.fromkeys(("n_layer", "num_layers", "num_hidden_layers", "depth"), "model.n_layers"),
    **dict.fromkeys(("n_head", "num_heads", "num_attention_heads"), "model.n_heads"),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads", "n_kv_head", "n_query_groups"), "model.n_kv_heads"),
    **dict.fromkeys(("dropout", "dropout_rate"), "model.drop_rate"),
    **dict.fromkeys(("learning_rate", "max_lr"), "optimizer.lr"),
    **dict.fromkeys(("max_iters", "num_iterations", "steps", "train_steps"), "trainer.max_steps"),
    **dict.fromkeys(("epochs", "num_epochs", "num_train_epochs"), "trainer.max_epochs"),
    **dict.fromkeys(("gradient_accumulation_steps", "grad_accum_steps", "accumulate"), "trainer.accumulate_grad_batches"),
    **dict.fromkeys(("grad_clip", "max_grad_norm", "clip_grad_norm"), "trainer.gradient_clip_val"),
    **dict.fromkeys(("warmup_iters", "warmup", "num_warmup_steps"), "scheduler.warmup_steps"),
    **dict.fromkeys(("batch", "bs", "micro_batch_size", "per_device_train_batch_size", "device_batch_size"), "data.batch_size"),
    **dict.fromkeys(("output_dir", "default_root_dir"), "hydra.run.dir"),
    **dict.fromkeys(("max_length", "max_tokens_to_generate", "length"), "sampler.max_new_tokens"),
    "temp": "sampler.temperature",
    **dict.fromkeys(("dataset", "data_path", "data_dir", "train_file", "train_data_path", "text", "file", "input"), "data.path"),
    **dict.fromkeys(("num_samples", "num_return_sequences"), "n_samples"),
    **dict.fromkeys(("start", "input_text"), "prompt"),
    **dict.fromkeys(("ckpt", "model_path", "checkpoint_path"), "checkpoint"),
    **dict.fromkeys(("from_pretrained", "init_weights"), "init_from"),
    **dict.fromkeys(("log_interval", "logging_steps", "log_freq"), "trainer.log_every_n_steps"),
    **dict.fromkeys(("eval_interval", "eval_steps", "eval_every", "eval.interval"), "eval_freq"),
    **dict.fromkeys(("save_steps", "save_interval", "save_every", "checkpoint.interval"), "checkpoint.every_n_steps"),
    **dict.fromkeys(("save_total_limit", "keep_last_n"), "checkpoint.keep"),
    **dict.fromkeys(("gpus", "num_gpus", "nproc"), "trainer.devices"),
    "matrix_lr": "optimizer.matrices.lr",
    "embedding_lr": "optimizer.embedding.lr",
    "unembedding_lr": "optimizer.head.lr",
    "scalar_lr": "optimizer.vectors.lr",
    "num_fewshot": "tasks.n_shots",
}


def all_types(schema: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted name and the type of each setting, and of each group of settings."""
    for name, hint in get_type_hints(schema).items():
        yield f"{prefix}{name}", hint
        if (inner := settings_class(hint)) is not None:
            yield from all_types(inner, f"{prefix}{name}.")


def find_type(schema: type, key: str) -> Any:
    """Return the type of the setting, or group of settings, with a dotted name.

    Raises:
        KeyError: If there is none.
    """
    hint: Any = schema
    for name in key.split("."):
        inner = settings_class(hint)
        if inner is not None:
            hint = get_type_hints(inner)[name]
        elif get_origin(hint) is dict:
            hint = get_args(hint)[1]
        elif get_origin(hint) is list and name.isdecimal():
            hint = get_args(hint)[0]
        elif hint is not Any:
            raise KeyError(key)
    return hint


def is_declared(schema: type, key: str, *, within_mapping: bool = False) -> bool:
    """Return whether the schema has a setting of this name.

    Args:
        within_mapping: Return instead whether the name is inside a mapping, where any name is allowed.
    """
    try:
        find_type(schema, key)
        group = find_type(schema, key.rpartition(".")[0]) if "." in key else schema
    except KeyError:
        return False
    return (settings_class(group) is None) == within_mapping


def is_mapping(schema: type, key: str) -> bool:
    """Return whether a setting is a mapping with free names, such as callbacks.custom."""
    try:
        return get_origin(find_type(schema, key)) is dict
    except KeyError:
        return False


def set_checked(schema: type, key: str, value: Any) -> None:
    """Check that the type of an existing setting allows a value.

    Raises:
        OmegaConfBaseException: If it does not.
    """
    if find_type(schema, key) is bool and type(value) is int and value not in (0, 1):  # OmegaConf takes 2 for true
        raise ValidationError(f"Value '{value}' is not true or false")
    group, _, name = key.rpartition(".")
    owner = settings_class(find_type(schema, group) if group else schema)
    if owner is not None:
        OmegaConf.merge(OmegaConf.structured(owner), {name: value})


def describe_type(hint: Any) -> str:
    """Describe the values of a type in a phrase with an example, such as "a whole number, such as 4"."""
    options = [one for one in _options(hint) if one is not types.NoneType]
    nullable = ", or null" * (len(options) < len(_options(hint)))
    phrases = {
        bool: "true or false",
        int: "a whole number, such as 10",
        float: "a number, such as 0.1",
        str: "a text",
    }
    if len(options) == 1 and options[0] in phrases:
        return phrases[options[0]] + nullable
    if len(options) == 1 and get_origin(options[0]) is list:
        items = {float: "numbers, such as [0.9, 0.95]", str: 'texts, such as ["One", "Two"]'}
        found = items.get(get_args(options[0])[0], "values in brackets: [...]")
        if dataclasses.is_dataclass(get_args(options[0])[0]):
            found = "mappings, such as [{path: a.txt, weight: 1}]"
        return f"a list of {found}{nullable}"
    if len(options) == 1 and settings_class(options[0]) is not None:
        names = ", ".join(get_type_hints(options[0]))
        return f"a group of settings, which are set one by one: {names}{nullable}"
    if len(options) == 1 and get_origin(options[0]) is dict:
        return f"a mapping, such as {{name: value}}{nullable}"
    if set(options) == {bool, str}:
        return f"true or false, or a word such as auto{nullable}"
    return ", or ".join(phrases.get(one, "a mapping").partition(",")[0] for one in options) + nullable


def nearest_settings(key: str, schema: type) -> list[str]:
    """Return the settings whose names are most like an unknown one, the best first."""
    names = _setting_names(schema)
    last = key.rpartition(".")[2]
    same = same_names(last, schema)
    other = [name for word in (key, last) if (name := OTHER_NAMES.get(word.lower().replace("-", "_"))) in names]
    if same or other:
        group = key.rpartition(".")[0]
        inside = [] if same else [f"{group}.{name}" for name in nearest(last, names_within(key, schema))]
        return list(dict.fromkeys([*same, *inside, *other]))[:MAX_NEAREST]
    likeness = {name: max(_likeness(key, name), _likeness(last, name.rpartition(".")[2])) for name in names}
    best = max(likeness.values())
    found = [
        name
        for name, value in likeness.items()
        if value >= max(LEAST_LIKENESS, best - 0.05) and not key.startswith(f"{name}.")  # not the group of a setting in it
    ]
    return sorted(found, key=lambda name: -_likeness(key, name))[:MAX_NEAREST]


def same_names(last: str, schema: type) -> list[str]:
    """Return the settings whose last name is a word. Less deeply nested ones win: optimizer.lr, not optimizer.matrices.lr."""
    same = [name for name in _setting_names(schema) if name.rpartition(".")[2] == last]
    least = min((name.count(".") for name in same), default=0)
    return [name for name in same if name.count(".") == least]


def names_within(key: str, schema: type) -> list[str]:
    """Return the names of the settings in the group around a dotted name, or an empty list if there is no such group."""
    try:
        found = settings_class(find_type(schema, key.rpartition(".")[0])) if "." in key else None
    except KeyError:
        return []
    return [] if found is None else list(get_type_hints(found))


def nearest(name: str, choices: list[str]) -> list[str]:
    """Return the choices that are most like a name, the best first."""
    likeness = {one: 1.0 if _is_part(name.lower(), one) else _likeness(name, one) for one in choices if name}
    best = max([LEAST_LIKENESS, *likeness.values()])
    found = [one for one, value in likeness.items() if value >= max(LEAST_LIKENESS, best - 0.05)]
    return sorted(found, key=lambda one: -likeness[one])[:MAX_NEAREST]


@cache
def group_options(group: str, folders: tuple[Path, ...] = (CONF,)) -> list[str]:
    """Return the options of a group of conf/ in alphabetical order, or an empty list if there is no such group."""
    return sorted({file.stem for folder in folders for file in (folder / group).glob("*.y*ml")})


@cache
def script_groups(script: str) -> list[str]:
    """Return the groups in a script's defaults list.

    Raises:
        UserError: If the file with the list cannot be read, or lacks the list or its entry for the file's own settings.
    """
    file = CONF / f"{script}.yaml"
    try:
        defaults = read_yaml(file).get("defaults")
    except (OSError, DamagedFileError):
        defaults = None
    if not isinstance(defaults, list):
        missing = "the list `defaults:` is missing, which names the groups of settings. Restore it."
        raise UserError(f"{file}: {reading_problem(file) or missing}")
    if "_self_" not in defaults:
        raise UserError(f"{file}: the list `defaults:` lacks `- _self_`, which stands for the settings below it. Restore it.")
    entries = [next(iter(one)) for one in defaults if isinstance(one, dict)]
    return [str(entry) for entry in entries if not str(entry).startswith("override ")]


def _setting_names(schema: type) -> list[str]:
    """Return the names of all settings and of the groups that are not in another group."""
    names = [name for name, hint in all_types(schema) if "." not in name or settings_class(hint) is None]
    return [*names, "hydra.run.dir", "hydra.sweep.dir", "sweep_resume"]


def _is_part(name: str, choice: str) -> bool:
    """Return whether a choice begins with a name, or contains it as a word, as warmup_cosine contains cosine."""
    return choice.startswith(name) or name in choice.split("_")


def _likeness(name: str, other: str) -> float:
    return difflib.SequenceMatcher(None, name.lower(), other).ratio() if len(name) <= MAX_NAME else 0.0


def _options(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (types.UnionType, typing.Union) else (hint,)


def settings_class(hint: Any) -> type | None:
    """Return the dataclass in the type of a group of settings. Return None for the type of a single setting."""
    return next((one for one in _options(hint) if dataclasses.is_dataclass(one) and isinstance(one, type)), None)
