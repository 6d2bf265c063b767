"""Restore the settings of a resumed run, with the overrides that are allowed."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from gpt_pretrain.config.checkpoint_settings import admit_settings, forgotten_options, read_stored_settings
from gpt_pretrain.config.conversion import to_settings
from gpt_pretrain.config.custom_parts import placeholder, resume_custom_parts
from gpt_pretrain.config.interpolation import escape_interpolation
from gpt_pretrain.config.overrides import is_within
from gpt_pretrain.config.rules import as_typed_value
from gpt_pretrain.config.schema import TrainSettings
from gpt_pretrain.errors import UserError
from gpt_pretrain.system.terminal import escape_line
from gpt_pretrain.system.urls import hide_secrets
from gpt_pretrain.training.start.edited_settings import warn_of_edited_settings

# Settings that belong to this start. The settings of the user's own callbacks are not stored.
NOT_RESTORED = ("run_dir", "plan", "resume", "resume_force", "callbacks.custom", "custom", "trainer.devices", "trainer.num_nodes")
# Their product is the number of windows in an optimizer step.
STEP_SETTINGS = ("data.batch_size", "trainer.accumulate_grad_batches", "trainer.devices", "trainer.num_nodes")
# Settings that give the saved state its meaning. The location of the text is not among them, since its content is compared.
STATE_SETTINGS = {
    *("model", "tokenizer", "seed", "optimizer.name", "optimizer.decay"),
    *("data.batch_size", "data.train_ratio", "data.stride", "data.shift_windows", "data.respect_documents"),
    *("trainer.accumulate_grad_batches", "trainer.limit_train_batches", "trainer.precision"),
}
CHOSEN_BY_THE_RUN = ("data.batch_size", "tokenizer.vocab_size")  # chosen if the setting is null

log = logging.getLogger(__name__)

Changes = dict[str, tuple[Any, Any]]  # the old and the new value of each setting


def restore_settings(
    settings: TrainSettings, config: dict[str, Any], overridden: Set[str], *, own: bool, path: Path
) -> tuple[TrainSettings, list[str]]:
    """Return the settings of a checkpoint with the overrides applied.

    Args:
        settings: The settings of this start.
        config: The settings in the checkpoint, checked by `read_resumable`.
        overridden: The settings and groups that the user overrides.
        own: Whether the checkpoint has this user's signature.
        path: The checkpoint.

    Returns:
        The settings, and the changes that give the saved state another meaning.

    Raises:
        UserError: If an override changes the architecture, or the checkpoint names paths or URLs that the user must type.
    """
    stored, now = read_stored_settings(config, own=own, origin=str(path)), dataclasses.asdict(settings)
    # Naming a custom part again does not override the built-in settings of its group.
    named_again = {group for group in settings.custom if isinstance(config.get("custom"), dict) and group in config["custom"]}
    overridden = overridden - named_again
    admitted = admit_settings(
        stored,
        now,
        is_typed=lambda key: is_within(key, overridden) or bool(overridden & {"experiment", "debug"}),
        own=own,
        origin=escape_line(str(path)),
        folder=Path(settings.run_dir),
    )
    changes: Changes = {}
    merged = _merge(admitted.settings, now, overridden, changes)
    parts, missing, other_classes = resume_custom_parts(
        config.get("custom"), settings.custom, own=own, origin=escape_line(str(path))
    )
    _use_custom_parts(merged, parts)
    refused = _keep_step_size(merged, stored, overridden, changes)
    texts = _describe_changes(changes)
    if problems := [*admitted.problems, *missing, *_architecture_problems(texts)]:
        raise UserError(problems)
    refused += [text for key, text in texts.items() if is_within(key, STATE_SETTINGS)]
    refused += [*other_classes, *_missing_callbacks(config, settings)]
    changed = [f"Changed since the checkpoint: {text}" for key, text in texts.items() if not is_within(key, STATE_SETTINGS)]
    _report_restored([*admitted.notices, *changed], forgotten_options(config, now))
    warn_of_edited_settings(Path(settings.run_dir), stored, lambda key: is_within(key, overridden | set(NOT_RESTORED)))
    return to_settings(OmegaConf.create(escape_interpolation(merged)), TrainSettings), refused


def state_change_problems(changes: list[str], *, path: Path, force: bool) -> list[str]:
    """Return a problem that lists the changes that give the saved state another meaning. With `force`, only warn of them."""
    if not changes:
        return []
    if not force:
        return [
            f"{path} was made with other settings: {'; '.join(changes)}. Use the same settings again, start a new run from its "
            "weights with init_from=, or resume anyway with resume_force=true."
        ]
    for change in changes:
        log.warning("Changed since the checkpoint, as resume_force=true allows: %s", change)
    return []


def _use_custom_parts(merged: dict[str, Any], parts: Mapping[str, Mapping[str, Any]]) -> None:
    """Put the user's own parts into the settings of a resumed run."""
    merged["custom"] = {group: dict(fields) for group, fields in parts.items()}
    for group, fields in parts.items():
        if group != "data":  # The batch size may have been adapted to the devices.
            merged[group] |= placeholder(group, fields)


def _merge(
    stored: Mapping[str, Any], now: dict[Any, Any], overridden: Set[str], changes: Changes, prefix: str = ""
) -> dict[str, Any]:
    """Take overridden settings from `now` and all others from `stored`, and note the differences in `changes`."""
    merged = {}
    for name, value in now.items():
        key = f"{prefix}{name}"
        if key in NOT_RESTORED or name not in stored:
            merged[name] = value
        elif isinstance(value, dict) and isinstance(stored[name], dict):
            merged[name] = _merge(stored[name], value, overridden, changes, f"{key}.")
        elif _is_another(key, value, stored[name]) and (is_within(key, overridden) or overridden & {"experiment", "debug"}):
            merged[name] = value
            changes[key] = (stored[name], value)
        else:
            merged[name] = stored[name]
    return merged


def _is_another(key: str, value: Any, stored: Any) -> bool:
    """Return True if a value differs from the stored one, and does not leave the choice to the run."""
    return value not in (stored, "auto") and not (value is None and key in CHOSEN_BY_THE_RUN)


def _keep_step_size(merged: dict[str, Any], stored: Mapping[str, Any], overridden: Set[str], changes: Changes) -> list[str]:
    """Adapt batch size and gradient accumulation to the number of devices. An optimizer step keeps its number of windows.

    Returns:
        Problems with the overrides or the number of devices that make this impossible.
    """
    before, data, trainer = _step_windows(stored), merged["data"], merged["trainer"]
    adaptable = not overridden & {"trainer.accumulate_grad_batches", "data.batch_size"}
    if _step_windows(merged) != before and adaptable and before % (n_ranks := trainer["devices"] * trainer["num_nodes"]) == 0:
        size = math.gcd(data["batch_size"], before // n_ranks)  # a divisor of the old size keeps an epoch in whole batches
        merged["eval_iter"] = math.ceil(merged["eval_iter"] * data["batch_size"] / size)  # as many windows as before
        data["batch_size"], trainer["accumulate_grad_batches"] = size, before // n_ranks // size
        log.info(
            "An optimizer step takes the same %s windows as before: data.batch_size=%d trainer.accumulate_grad_batches=%d",
            f"{before:,}",
            size,
            trainer["accumulate_grad_batches"],
        )
    now = _step_windows(merged)
    if now == before:
        for key in STEP_SETTINGS:
            changes.pop(key, None)
        return _keep_epoch_limits(merged, stored, overridden)
    devices_before, devices_now = (
        int(config["trainer"]["devices"]) * int(config["trainer"]["num_nodes"]) for config in (stored, merged)
    )
    if devices_before == devices_now:
        return []  # the changed settings themselves are reported
    return [
        f"an optimizer step took {before} windows on {devices_before} devices, and takes {now} on {devices_now} now "
        "(data.batch_size and trainer.accumulate_grad_batches can make up for it)"
    ]


def _keep_epoch_limits(merged: dict[str, Any], stored: Mapping[str, Any], overridden: Set[str]) -> list[str]:
    """Adapt an epoch's limits so that they cover as many windows as before. The limits count batches.

    Returns:
        The limits for which this is impossible.
    """
    before, now = (
        int(config["data"]["batch_size"]) * int(config["trainer"]["devices"]) * int(config["trainer"]["num_nodes"])
        for config in (stored, merged)
    )
    refused = []
    for name in ("limit_train_batches", "limit_val_batches"):
        limit = merged["trainer"][name]
        if limit is None or before == now or is_within(f"trainer.{name}", overridden):
            continue
        if limit * before % now:
            refused.append(
                f"trainer.{name}={limit} was {limit * before} windows, which is not a multiple of the {now} windows that a "
                "batch of all devices now has"
            )
        merged["trainer"][name] = max(1, limit * before // now)
    return refused


def _step_windows(config: Mapping[str, Any]) -> int:
    return math.prod(map(int, step_numbers(config)))


def step_numbers(config: Mapping[str, Any]) -> list[Any]:
    """Return the values of STEP_SETTINGS in a config, None for a missing one."""
    return [config.get(group, {}).get(name) for group, name in (key.split(".") for key in STEP_SETTINGS)]


def _describe_changes(changes: Changes) -> dict[str, str]:
    """Return each changed setting with its old and its new value as a text that is safe to print."""
    return {
        key: hide_secrets(escape_line(f"{key} was {as_typed_value(old)}, is {as_typed_value(new)} now"))
        for key, (old, new) in changes.items()
    }


def _architecture_problems(texts: Mapping[str, str]) -> list[str]:
    """Return a problem that lists the changes of the model's architecture, if there are any."""
    changed = [text for key, text in texts.items() if key.startswith("model.") and key != "model.drop_rate"]
    return [f"The checkpoint has another architecture: {'; '.join(changed)}. Remove these overrides."] if changed else []


def _missing_callbacks(config: Mapping[str, Any], settings: TrainSettings) -> list[str]:
    """List the user's own callbacks that the checkpoint's run had and this start lacks."""
    callbacks = config.get("callbacks")
    custom = callbacks.get("custom") if isinstance(callbacks, dict) else None
    known = custom.items() if isinstance(custom, dict) else ()
    named = [(escape_line(str(name)), escape_line(str(target))) for name, target in known]
    return [
        f"callbacks.custom.{name[:100]} ({target[:100]}) is missing, and checkpoints do not store callbacks"
        for name, target in named
        if name not in settings.callbacks.custom
    ]


def _report_restored(notices: Sequence[str], forgotten: Sequence[str]) -> None:
    """Log the changed settings of a resumed run, and the options of its file system that are not restored."""
    for notice in notices:
        log.info("%s", notice)
    if forgotten:
        log.warning(
            "data.remote.options are never restored, since they may hold a key, or send one elsewhere. This run had %s. If its "
            "data needs them, type them again, for example: +data.remote.options.%s=VALUE",
            ", ".join(forgotten),
            forgotten[0],
        )
