"""Check that each part of the training state in a checkpoint has the types, sizes and ranges that this program writes.

Libraries do not check what they are given: a generator accepts any state, an optimizer any tensor, a schedule any attribute.
Without these checks, a wrong part would end the run with an error of a library, perhaps only after some steps.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from typing import Any

import torch
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from packaging.version import Version
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from gpt_pretrain.checkpoints.sharded import REFERENCE_KEY
from gpt_pretrain.checkpoints.weight_averages import EMA, TRAINED
from gpt_pretrain.config.checkpoint_settings import MAX_INTEGER
from gpt_pretrain.config.custom_parts import CUSTOM
from gpt_pretrain.config.schema import OptimizerSettings
from gpt_pretrain.model.build import empty_model
from gpt_pretrain.model.config import CUSTOM_KIND, GPTConfig
from gpt_pretrain.training.monitoring.health_monitor import MAX_FINDINGS
from gpt_pretrain.training.optimization.custom_schedule import OWN_STATE
from gpt_pretrain.training.optimization.optimizer import build_optimizer

CUDA_STATE_BYTES = 16  # seed and offset
AVERAGES = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer")  # AdamW's and Muon's, each as large as its parameter
MAX_DEPTH = 10  # levels of containers in the state of the user's own optimizer or schedule
MAX_TEXT = 2000  # characters of a finding, which run.json repeats; those of this program have about 500
MAX_GROUP_VALUES = 50  # settings in a group of an optimizer; AdamW has 13, Muon 9


def check_training_state(content: Mapping[str, Any], *, optimizer: Mapping[str, Any]) -> None:
    """Check all parts of a checkpoint that resuming uses, besides the settings and the tensors of the model.

    Args:
        content: A checkpoint, with all its fields.
        optimizer: The `optimizer` settings. Its name and decay decide the order of the optimizer's parameters.

    Raises:
        ValueError: If a part is not as this program writes it; the message names it. Missing parts raise a KeyError, and some
            wrong types a TypeError, AttributeError, OverflowError or RuntimeError.
    """
    _require("the version of Lightning", isinstance(Version(content["pytorch-lightning_version"]), Version))
    _require("global_step or tokens_seen", _is_count(content["global_step"]) and _is_count(content["tokens_seen"]))
    _require("lr_scale", 0 < content["lr_scale"] <= 1)
    _require("skipped", all(_is_pair(pair) for pair in content["skipped"]))
    for name in ("epoch", "windows", "epoch_windows"):
        _require(f"TextDataModule.{name}", _is_count(content["TextDataModule"][name]))
    lists = [content[name] for name in ("train_losses", "val_losses", "track_tokens_seen", "eval_steps")]
    _require("the evaluated losses", all(map(_is_numbers, lists[:2])) and all(map(_is_counts, lists[2:])))
    _require("the evaluated losses", len({len(values) for values in lists}) == 1)
    _check_progress(content["loops"])
    own_model = content["architecture"].get("kind") == CUSTOM_KIND
    if optimizer["name"] == CUSTOM or own_model:  # Its own class restores the state.
        _require("the optimizer's state", _is_plain_state(content["optimizer_states"]))
    else:
        _check_optimizer(content["optimizer_states"], GPTConfig.from_dict(content["architecture"]), optimizer)
    _check_schedule(content["lr_schedulers"])
    if "ema" in content:
        shapes = {name: value.shape for name, value in content["state_dict"].items()} if own_model else None
        _check_average(
            content["ema"], shapes or _weight_shapes(GPTConfig.from_dict(content["architecture"])), whole=not own_model
        )
    if (scaler := content.get("MixedPrecision")) is not None:
        _require("the scale of the gradients", isinstance(scaler, dict) and _is_numbers(list(scaler.values())))
    for name, state in content["callbacks"].items():
        check = CALLBACK_CHECKS.get(name.partition("{")[0])
        if check is not None:
            check(state)


def _check_progress(loops: Any) -> None:
    """Check Lightning's counts of epochs and batches."""
    _require("loops", all(isinstance(loop, dict) for loop in loops.values()))
    waiting = [*loops.values()]
    while waiting:
        node = waiting.pop()
        _require("loops", isinstance(node, dict) or type(node) is bool or _is_count(node))
        waiting += node.values() if isinstance(node, dict) else ()
    fit = loops["fit_loop"]
    for progress in (fit["epoch_progress"], fit["epoch_loop.batch_progress"]):
        for name in ("total", "current"):
            _require("loops", all(_is_count(progress[name][state]) for state in ("ready", "started", "processed", "completed")))


def _check_optimizer(states: Any, config: GPTConfig, optimizer: Mapping[str, Any]) -> None:
    """Check that the optimizer's averages have the shapes of their parameters, and that its groups have the expected sizes."""
    name, decay = optimizer["name"], optimizer["decay"]
    settings = OptimizerSettings(name=name, lr=1e-3, weight_decay=0.1, betas=[0.9, 0.999], eps=1e-8, decay=decay)
    groups = build_optimizer(empty_model(config), settings, fused=False).param_groups
    shapes = [parameter.shape for group in groups for parameter in group["params"]]
    _require("the optimizer's state", isinstance(states, list) and len(states) == 1)
    stored = states[0]["param_groups"]
    _require("the optimizer's groups", isinstance(stored, list) and len(stored) == len(groups))
    for group, expected in zip(stored, groups, strict=True):
        numbers = group["params"]
        _require("the optimizer's groups", _is_counts(numbers) and len(numbers) == len(expected["params"]))
        others = {name: value for name, value in group.items() if name != "params"}
        _require("the optimizer's groups", len(others) <= MAX_GROUP_VALUES and all(isinstance(name, str) for name in others))
        # This program's settings are numbers, pairs of numbers, True, False or None.
        known = {name: others[name] for name in others.keys() & expected.keys()}
        _require("the optimizer's groups", all(_is_setting(value, pair=name == "betas") for name, value in known.items()))
    numbers = [number for group in stored for number in group["params"]]
    _require("the optimizer's groups", sorted(numbers) == list(range(len(shapes))))
    by_number = dict(zip(numbers, shapes, strict=True))
    for number, values in states[0]["state"].items():
        _require("the optimizer's state", type(number) is int and number in by_number)
        for name, value in values.items():
            fits = _is_scalar(value) if name == "step" else name in AVERAGES and _is_average_of(value, by_number[number])
            _require("the optimizer's state", fits)


def _is_plain_state(states: Any) -> bool:
    """Return whether an optimizer's state is one table of states and groups, of plain data and tensors."""
    if not (isinstance(states, list) and len(states) == 1 and states[0].keys() == {"state", "param_groups"}):
        return False
    return _is_plain(states[0]) and all(_is_counts(group["params"]) for group in states[0]["param_groups"])


def _is_plain(value: Any, depth: int = 0) -> bool:
    """Return whether a value is plain data or a tensor, and is not nested too deeply."""
    if isinstance(value, dict):
        names = all(type(name) in (str, int) for name in value)
        return names and depth < MAX_DEPTH and all(_is_plain(part, depth + 1) for part in value.values())
    if isinstance(value, list | tuple):
        return depth < MAX_DEPTH and all(_is_plain(part, depth + 1) for part in value)
    return value is None or isinstance(value, Tensor) or type(value) in (bool, str, float) or _is_numbers([value])


def _is_average_of(value: object, shape: torch.Size) -> bool:
    if isinstance(value, Mapping):
        return REFERENCE_KEY in value  # The rows of this tensor are in other files.
    return isinstance(value, Tensor) and value.shape == shape and value.is_floating_point()


def _weight_shapes(config: GPTConfig) -> dict[str, torch.Size]:
    return {f"model.{name}": weight.shape for name, weight in empty_model(config).named_parameters()}


def _check_average(average: Any, shapes: Mapping[str, torch.Size], *, whole: bool) -> None:
    """Check that the moving average of the weights has tensors of their shapes. With `whole`, each weight must have one."""
    _require("the moving average of the weights", isinstance(average, dict) and average.keys() <= shapes.keys())
    _require("the moving average of the weights", not whole or average.keys() == shapes.keys())
    _require("the moving average of the weights", all(_is_average_of(value, shapes[name]) for name, value in average.items()))


def _check_schedule(states: Any) -> None:
    """Check a schedule's state. It becomes attributes of the schedule, and must not hide a method."""
    _require("the schedule's state", isinstance(states, list) and len(states) == 1)
    state = states[0]
    _require("the schedule's state", _is_count(state["last_epoch"]) and _is_numbers(state["base_lrs"]))
    _require("the schedule's state", all(one is None for one in state["lr_lambdas"]))
    _require("the schedule's state", state["base_lrs"][0] > 0 and state["_last_lr"][0] >= 0)
    for name, value in state.items():
        if name == OWN_STATE:
            _require(
                "the schedule's state", isinstance(value, dict) and _is_numbers(value["rates"]) and _is_plain(value["state"])
            )
            continue
        plain = name == "lr_lambdas" or (_is_numbers(value) if name in ("base_lrs", "_last_lr") else _is_setting(value))
        _require("the schedule's state", plain and name != "optimizer" and not callable(getattr(LambdaLR, name, None)))


def _check_randomness(state: Any) -> None:
    """Check the states of the random generators, by restoring them in generators that nothing uses."""
    _require("the random states", isinstance(state["ranks"], list) and len(state["ranks"]) > 0)
    for own in state["ranks"]:
        version, internal, gauss = own["python"]
        _require("the random states", gauss is None or _is_numbers([gauss]))
        random.Random().setstate((version, tuple(internal), gauss))
        _require("the random states", _is_bytes(own["torch"]))
        torch.Generator().set_state(own["torch"].cpu())
        if "cuda" in own:
            _require("the random states", _is_bytes(own["cuda"]) and own["cuda"].numel() == CUDA_STATE_BYTES)


def _check_saved_run(state: Any) -> None:
    best = (state["best_step"], state["best_epoch"])
    _require("SaveRun", state.get("best_weights", TRAINED) in (TRAINED, EMA))
    _require("SaveRun", _is_numbers([state["best_loss"]]) and all(number == -1 or _is_count(number) for number in best))


def _check_metrics(state: Any) -> None:
    nats, tokens = (state["loss"], state["batches"]) if "batches" in state else (state["nats"], state["tokens"])
    _require("TrainMetrics", _is_numbers([nats]) and _is_count(tokens))


def _check_warning_signs(state: Any) -> None:
    _require("WarningSigns", len(state["findings"]) <= MAX_FINDINGS)
    for finding in state["findings"]:
        _require("WarningSigns", set(finding) == {"sign", "step", "text"} and _is_numbers([finding["step"]]))
        _require("WarningSigns", _is_text(finding["sign"]) and _is_text(finding["text"]))
    _require("WarningSigns", all(isinstance(sign, str) for sign in state["lasting"]))
    _require("WarningSigns", _is_numbers(state["numbers"]) and len(state["numbers"]) == 6)
    _require("WarningSigns", all(_is_numbers(line) and len(line) == 3 for line in state["lines"]))
    _require("WarningSigns", _is_numbers(state["losses"]) and _is_numbers(state["norms"]) and _is_count(state["left_out"]))


def _check_early_stopping(state: Any) -> None:
    _require("EarlyStopping", _is_count(state["wait_count"]) and _is_count(state["stopped_epoch"]))
    _require("EarlyStopping", isinstance(state["best_score"], Tensor) and _is_scalar(state["best_score"]))
    EarlyStoppingReason(state.get("stopping_reason", EarlyStoppingReason.NOT_STOPPED.value))
    _require("EarlyStopping", isinstance(state.get("stopping_reason_message"), str | None))


def _check_held_out(state: Any) -> None:
    _require("HeldOutEvaluation", state["steps"] == -1 or _is_count(state["steps"]))


CALLBACK_CHECKS: dict[str, Callable[[Any], None]] = {
    "Randomness": _check_randomness,
    "SaveRun": _check_saved_run,
    "TrainMetrics": _check_metrics,
    "WarningSigns": _check_warning_signs,
    "EarlyStopping": _check_early_stopping,
    "HeldOutEvaluation": _check_held_out,
}


def _require(name: str, fits: bool) -> None:
    if not fits:
        raise ValueError(f"{name} is missing or has the wrong type")


def _is_text(value: object) -> bool:
    return isinstance(value, str) and len(value) <= MAX_TEXT


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < MAX_INTEGER


def _is_counts(values: object) -> bool:
    return isinstance(values, list) and all(map(_is_count, values))


def _is_pair(value: object) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2 and all(map(_is_count, value))


def _is_numbers(values: object) -> bool:
    """Return whether a value is a list of ordinary numbers."""
    return isinstance(values, list | tuple) and all(
        isinstance(value, float) or (isinstance(value, int) and abs(value) < MAX_INTEGER) for value in values
    )


def _is_setting(value: object, *, pair: bool = False) -> bool:
    return _is_numbers(value) if pair else value is None or _is_numbers([value])


def _is_scalar(value: object) -> bool:
    if isinstance(value, Tensor):
        return value.ndim == 0 and value.is_floating_point()
    return _is_numbers([value]) and math.isfinite(value)  # type: ignore[arg-type]


def _is_bytes(value: object) -> bool:
    return isinstance(value, Tensor) and value.ndim == 1 and value.dtype == torch.uint8
