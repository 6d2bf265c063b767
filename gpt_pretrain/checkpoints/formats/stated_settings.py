"""Read the settings that other programs store beside weights, and find those that GPT-2 cannot follow."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from gpt_pretrain.system.shown_values import short_repr

# GPT-2's forms of GELU by transformers' names for them.
HF_GELUS = {"gelu_new": "tanh", "gelu_pytorch_tanh": "tanh", "gelu": "none"}
# Further names of the same functions. They are read, but never written.
READ_GELUS = HF_GELUS | {"gelu_fast": "tanh", "gelu_accurate": "tanh", "gelu_python_tanh": "tanh", "gelu_python": "none"}
# The plain name "gelu" is clear only in transformers.
CLEAR_GELUS = {name: form for name, form in READ_GELUS.items() if name != "gelu"}
CLEAR_GELUS |= {"gelu_tanh": "tanh", "new_gelu": "tanh", "newgelu": "tanh", "gelu_exact": "none"}
LAYER_NORM_EPS = 1e-5
HEAD_COUNTS = ("n_head", "n_heads", "num_heads", "num_attention_heads", "nhead")
# Settings of any program that change what a model computes, by their names.
ACTIVATION_NAMES = ("activation", "activation_function", "activation_fn", "hidden_act", "act", "act_fn")
NORM_EPS_NAME = re.compile(r"(layer_?norm|norm|ln|rms_?norm|rms)_eps(ilon)?")
OTHER_MODEL_NAME = re.compile(r"(use_)?(rope|rotary)|(\w+_)?soft_?cap(ping)?")
WINDOW_NAMES = ("window_size", "sliding_window", "sliding_window_size", "attention_window")
KV_HEAD_NAMES = ("n_kv_head", "n_kv_heads", "num_key_value_heads")
NUMBER = re.compile(r"[-+]?\d{1,18}(\.\d{0,18})?(e[-+]?\d{1,3})?", re.IGNORECASE)
LARGEST = 1 << 53


def as_number(value: Any) -> Any:
    """Return the number that a setting states as a text. PyYAML reads 1e-5 as one. Anything else is returned unchanged."""
    return float(value) if isinstance(value, str) and NUMBER.fullmatch(value.strip()) else value


def as_count(value: Any) -> Any:
    """Return the whole number that a setting states as a text or with a decimal point. Return anything else unchanged."""
    number = as_number(value)
    return int(number) if isinstance(number, float) and number.is_integer() and abs(number) < LARGEST else value


def stated_gelu(values: Mapping[Any, Any]) -> str | None:
    """Return the form of GELU that settings name, or None if they name none."""
    named = [values[name] for name in ACTIVATION_NAMES if isinstance(values.get(name), str)]
    return next((CLEAR_GELUS[value.lower()] for value in named if value.lower() in CLEAR_GELUS), None)


def other_settings(values: Mapping[Any, Any], *, context_length: int | None = None) -> Iterator[str]:
    """Yield the reasons why GPTModel cannot be a model with these settings. They may be of any program.

    Args:
        context_length: The model's context length, if it is known. A local window of this size changes nothing.
    """
    whole = context_length or math.inf
    heads = as_count(next((values[name] for name in HEAD_COUNTS if name in values), None))
    for name, value in values.items():
        if not isinstance(name, str) or not isinstance(value, str | int | float):
            continue
        number = as_number(value)
        stated = f"{name}={short_repr(value)}"
        if name in ACTIVATION_NAMES and isinstance(value, str) and value.lower() not in {*CLEAR_GELUS, "gelu"}:
            yield f"its settings have {stated}, but this program's GPT-2 has GELU."
        elif NORM_EPS_NAME.fullmatch(name) and number != LAYER_NORM_EPS:
            yield f"its settings have {stated}, but this program's GPT-2 always has {LAYER_NORM_EPS}."
        elif OTHER_MODEL_NAME.fullmatch(name) and number:
            yield f"its settings have {stated}, which GPT-2 does not have."
        # The settings of a data loader may have a window too, but no heads.
        elif name in WINDOW_NAMES and heads is not None and isinstance(number, int | float) and 0 < number < whole:
            yield f"its settings have {stated}, but GPT-2 attends to all earlier tokens."
        elif name in KV_HEAD_NAMES and heads is not None and as_count(value) != heads:
            yield f"its settings have {stated}, but GPT-2 has one for each of its {short_repr(heads)} heads."
