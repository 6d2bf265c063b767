"""The user's own parts: groups of settings that name a class to build, and its arguments.

A group with a `_target_` has no schema. Its fields move to the setting `custom`, and the group keeps what the rest of the program
needs to know. A checkpoint stores the name of the class as a text, and the arguments as plain data. They are used only after the
user has named the same class again.
"""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Mapping
from typing import Any, get_type_hints

from omegaconf import DictConfig, OmegaConf, open_dict

from gpt_pretrain.errors import UserError
from gpt_pretrain.model.config import CUSTOM_KIND
from gpt_pretrain.system.shown_values import short_repr

CUSTOM_GROUPS = ("model", "data", "optimizer", "scheduler")  # groups that may name a class of the user's own
TARGET, CUSTOM = "_target_", "custom"
DOTTED_NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)+")
MAX_NAME = 200  # characters of a class's name
DEFAULT_CONTEXT = 256  # tokens of a window, unless the user or the class of the model states another number
OF_THE_LOADER = 0  # the batch size that stands for the batch size of the user's own loader
# The fields that a group gets in place of the user's.
PLACEHOLDERS: dict[str, dict[str, Any]] = {
    "model": {
        **{"kind": CUSTOM_KIND, "context_length": DEFAULT_CONTEXT, "emb_dim": 1, "n_heads": 1, "n_layers": 1, "drop_rate": 0.0},
        **{"qkv_bias": False, "tie_embeddings": True, "init": "gpt2", "gelu_approximate": "tanh", "n_kv_heads": None},
        **{"value_embeddings": False, "bigram_rows": 0},
    },
    "optimizer": {"name": CUSTOM, "lr": 1e-3, "weight_decay": 0.0, "betas": [0.9, 0.999], "eps": 1e-8, "decay": CUSTOM},
    "scheduler": {"name": CUSTOM, "warmup_steps": 0, "decay_steps": 0, "min_lr": 0.0},
    "data": {
        **{"name": CUSTOM, "path": None, "url": None, "sha256": None, "cache_dir": None, "stride": None},
        **{"batch_size": OF_THE_LOADER, "train_ratio": 0.9, "num_workers": 0},
    },
}
# The user's fields that keep their value in the group, since they mean the same there.
STATED = {"model": ("context_length",), "optimizer": ("lr", "weight_decay"), "data": ("batch_size", "num_workers")}


def open_schema(schema: type) -> type:
    """Return a schema for composing, in which the groups for the user's own parts accept any fields.

    The options in conf/ include the types of their group. The user's own options need not.
    """
    groups = [name for name in CUSTOM_GROUPS if name in get_type_hints(schema)]
    fields: list[Any] = [(name, dict[str, Any], dataclasses.field(default_factory=dict)) for name in groups]
    return dataclasses.make_dataclass(f"Open{schema.__name__}", fields, bases=(schema,))


def take_custom_parts(config: DictConfig) -> DictConfig:
    """Return a composed config with the fields of the user's own parts moved to the setting `custom`.

    Raises:
        UserError: If a group cannot name a class, or does not name one.
    """
    groups = [group for group in CUSTOM_GROUPS if group in config and isinstance(config[group], DictConfig)]
    parts = {group: config[group] for group in groups if TARGET in list(config[group].keys())}
    if not parts:
        return config
    problems = [problem for group, fields in parts.items() if (problem := _target_problem(group, fields)) is not None]
    if problems:
        raise UserError(problems)
    taken = copy.deepcopy(config)
    with open_dict(taken):
        for group, fields in parts.items():
            plain: Any = OmegaConf.to_container(fields, resolve=True)
            taken[group] = placeholder(group, plain)
            taken[CUSTOM] = {**(taken.get(CUSTOM) or {}), group: plain}
    return taken


def named_model(fields: Any) -> dict[str, Any] | None:
    """Return the class, and its arguments, that the user names for weights of their own model. Return None if none is named.

    Raises:
        UserError: If the fields name something else than a class.
    """
    if not fields:
        return None
    if not isinstance(fields, Mapping) or fields.get(TARGET) is None:
        raise UserError(
            f"model=: weights of a built-in model describe their own architecture. Name only a class of your own: model.{TARGET}="
            "package.Class"
        )
    if (problem := _target_problem("model", OmegaConf.create(dict(fields)))) is not None:
        raise UserError(problem)
    return dict(fields)


def placeholder(group: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that a group gets in place of the user's."""
    stated = {name: fields[name] for name in STATED.get(group, ()) if _is_amount(fields.get(name))}
    return copy.deepcopy(PLACEHOLDERS[group]) | stated


def _is_amount(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < float("inf")


def _target_problem(group: str, fields: DictConfig) -> str | None:
    if OmegaConf.is_missing(fields, TARGET):
        return f"{group}={CUSTOM} is your own class, which has no name yet. Add {group}._target_=package.Class"
    target = fields[TARGET]
    if not isinstance(target, str) or not DOTTED_NAME.fullmatch(target):
        return f"{group}._target_={short_repr(target)}: must be the dotted name of a class or function, such as package.Class."
    return None


def storable_parts(custom: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the user's parts as a checkpoint stores them, without any `_target_`.

    If an argument names a further class, the arguments are left out.
    """
    return {
        group: {
            "class": str(fields.get(TARGET)),
            "arguments": None if _names_a_class(rest := _arguments(fields)) else rest,
        }
        for group, fields in custom.items()
    }


def resume_custom_parts(
    stored: Any, named: Mapping[str, Mapping[str, Any]], *, own: bool, origin: str
) -> tuple[dict[str, dict[str, Any]], list[str], list[str]]:
    """Return the user's parts of a resumed run: the classes that are named now. The checkpoint adds arguments that are not typed.

    Args:
        stored: The result of `storable_parts`, as the checkpoint has it.
        named: The parts that this start names.
        own: Whether the checkpoint has this user's signature. If it has not, its arguments must be typed.
        origin: The file, for messages.

    Returns:
        The parts, the problems, and messages about changes that give the saved state another meaning.
    """
    from gpt_pretrain.config.override_messages import describe_override, explain_locations  # heavy, so not loaded for --help

    before = stored if isinstance(stored, dict) else {}
    parts = {group: dict(fields) for group, fields in named.items()}
    problems, changes = [], []
    for group in CUSTOM_GROUPS:
        found, now = before.get(group), parts.get(group)
        if not isinstance(found, dict):
            continue
        name, arguments = found.get("class"), found.get("arguments")
        if now is None:
            problems.append(_unnamed(group, name, own=own, origin=origin))
            continue
        if now[TARGET] != name:
            changes.append(f"{group}._target_ was {_shown(name)}, is {_shown(now[TARGET])} now")
        elif isinstance(arguments, dict) and own:
            parts[group] = {**arguments, **now}
            changes += _changed_model(arguments, now) if group == "model" else []
        elif isinstance(arguments, dict) and (others := [key for key in arguments if key not in now]):
            asked = [describe_override(f"{group}.{key}", arguments[key]) for key in others]
            problems.append(explain_locations(asked, origin=origin))
    return parts, problems, changes


def _changed_model(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """List the arguments of a model that differ from those of its weights. The weights may mean something else with them."""
    typed = {name: value for name, value in _arguments(now).items() if name != "context_length"}
    changed = [name for name, value in typed.items() if name not in before or before[name] != value]
    return [f"model.{name} was {_shown(before.get(name, 'not given'))}, is {_shown(now[name])} now" for name in changed]


def _unnamed(group: str, name: object, *, own: bool, origin: str) -> str:
    from gpt_pretrain.config.override_messages import UNSIGNED  # heavy, so not loaded for --help

    typed = f"{group}.{TARGET}={name if _is_class_name(name) else ''}"
    if not own:
        return (
            f"{origin}, {UNSIGNED}, names a class for its {group}: {_shown(name)}. A checkpoint never decides which code runs. "
            f"Typing the name runs the code of its module, whether it is installed or in the current folder. If you trust that "
            f"code, add {typed}, or the option of {group}= that names it."
        )
    again = f"Name it again: {typed}" if _is_class_name(name) else f"Name it again with {typed}"
    return (
        f"The {group} of this run is the user's own, {_shown(name)}. A checkpoint never decides which code runs. {again}, or "
        f"with the option of {group}= that names it."
    )


def _is_class_name(name: object) -> bool:
    return isinstance(name, str) and len(name) <= MAX_NAME and name.isascii() and DOTTED_NAME.fullmatch(name) is not None


def _shown(name: object) -> str:
    from gpt_pretrain.system.terminal import escape_line  # heavy, so not loaded for --help

    return escape_line(str(name)[:MAX_NAME])


def _arguments(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if not name.startswith("_")}


def _names_a_class(value: Any) -> bool:
    if isinstance(value, dict):
        return TARGET in value or any(map(_names_a_class, value.values()))
    return isinstance(value, list) and any(map(_names_a_class, value))


def naming_overrides(custom: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the overrides that name the user's parts again. Arguments are added if a checkpoint does not store them."""
    words = []
    for group, fields in custom.items():
        words.append(f"{group}.{TARGET}={fields[TARGET]}")
        if _names_a_class(rest := _arguments(fields)):
            words += [word for name, value in rest.items() for word in _argument_overrides(f"{group}.{name}", value)]
    return words


def callback_overrides(callbacks: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the overrides that name the user's own callbacks again. A checkpoint does not store callbacks."""
    return [
        override
        for name, fields in callbacks.items()
        for key, value in fields.items()
        for override in _argument_overrides(f"callbacks.custom.{name}.{key}", value)
    ]


def _argument_overrides(key: str, value: Any) -> list[str]:
    from gpt_pretrain.config.override_messages import write_value

    if isinstance(value, dict) and value:
        return [word for name, part in value.items() for word in _argument_overrides(f"{key}.{name}", part)]
    is_name = isinstance(value, str) and DOTTED_NAME.fullmatch(value) is not None
    return [f"{key}={value if is_name else write_value(value)}"]
