"""Resume a run: find its newest valid checkpoint, and restore its settings with the overrides that are allowed."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from gpt_pretrain.checkpoints.checkpoint_file import copy_checkpoint, newest_readable, read_checkpoint
from gpt_pretrain.checkpoints.checksum import same_checksum
from gpt_pretrain.checkpoints.pretrained import open_weights
from gpt_pretrain.checkpoints.sharded import ShardReader
from gpt_pretrain.config.checkpoint_settings import (
    admit_settings,
    forgotten_options,
    has_signed_settings,
    read_stored_settings,
)
from gpt_pretrain.config.conversion import to_settings
from gpt_pretrain.config.custom_parts import placeholder, resume_custom_parts
from gpt_pretrain.config.interpolation import escape_interpolation
from gpt_pretrain.config.rules import as_typed_value
from gpt_pretrain.config.schema import TrainSettings
from gpt_pretrain.errors import UserError, describe_damage
from gpt_pretrain.model.config import GPTConfig
from gpt_pretrain.runs.folder import BEST, LAST, checkpoint_dir
from gpt_pretrain.system.files import remove_scratch_files
from gpt_pretrain.system.terminal import escape_line
from gpt_pretrain.system.urls import hide_secrets
from gpt_pretrain.training.distributed import ranks
from gpt_pretrain.training.stored_state import check_training_state

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


def newest_checkpoint(run_dir: Path, *, only: Path | None = None, read_only: bool = False) -> tuple[Path, dict[str, Any]]:
    """Return a run's newest valid checkpoint and its content. Warn of damaged ones, and clean up after a killed process.

    Args:
        only: A checkpoint to use instead.
        read_only: Leave the run's folder as it is.

    Raises:
        UserError: If the run has no valid checkpoint.
    """
    read_only = read_only or not ranks.is_main()
    for folder in () if read_only else (run_dir, checkpoint_dir(run_dir)):
        remove_scratch_files(folder)
    if only is not None:
        path, content = only, read_resumable(only)
    else:
        path, content = newest_readable(str(run_dir), lambda path: (path, _read_of_run(path, run_dir)))
    # If the user has named a link, nothing is copied through it: the folder may be somebody else's.
    read_only = read_only or path.is_symlink()
    is_best = path.name == LAST and content["callbacks"]["SaveRun"]["best_step"] == content["global_step"] - 1
    if is_best and not read_only:
        best = path.with_name(BEST)
        # The process may have been killed after it wrote last.ckpt and before it copied it to best.ckpt.
        if not best.is_file() or not same_checksum(path, best):
            copy_checkpoint(path, best)
    return path, content


def _read_of_run(path: Path, run_dir: Path) -> dict[str, Any]:
    if not path.resolve().is_relative_to(run_dir.resolve()):
        raise UserError(
            f"{path} is a link that leads out of the run's folder, to {path.resolve()}. Replace it with a copy of its target, or "
            "name the target itself."
        )
    return read_resumable(path)


def read_resumable(path: Path) -> dict[str, Any]:
    """Read a checkpoint, and check that it holds everything that resuming needs.

    The tensors of a sharded checkpoint are not read here, since many ranks may share a machine. The first rank verifies the
    checksums of its files.

    Raises:
        UserError: If something is missing, or the tensors have another architecture than the settings.
    """
    content = read_checkpoint(path, resumable=True, assemble=False)
    if "shards" in content:
        ShardReader(path, content, check=ranks.is_main())
        architecture = GPTConfig.from_dict(content["architecture"]).to_dict()
    else:
        architecture = open_weights(path).config.to_dict()
    try:
        # The ranks must agree, and only the first one may have the key.
        own = not ranks.is_main() or has_signed_settings(content)
        stored = read_stored_settings(content["config"], own=own, origin=escape_line(str(path)))
        settings = {name: stored["model"][name] for name in architecture if name != "vocab_size"}
        check_training_state(content, optimizer=stored["optimizer"])
        int(content["callbacks"]["SaveRun"]["best_step"])
    except UserError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RuntimeError, IndexError) as error:
        problem = escape_line(describe_damage(error))[:200]
        raise UserError(
            f"{path} is not a complete checkpoint: {problem}. Copy it again, use another checkpoint of the run, or start from "
            "its weights with init_from=."
        ) from error
    if settings != {name: architecture[name] for name in settings}:
        raise UserError(f"{path} is not a valid checkpoint: its settings describe another model than its tensors.")
    if not all(isinstance(number, int) and number >= 1 for number in _step_numbers(stored)):
        raise UserError(f"{path} is not a valid checkpoint: its {', '.join(STEP_SETTINGS)} must be at least 1.")
    return content


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
        is_typed=lambda key: _is_within(key, overridden) or bool(overridden & {"experiment", "debug"}),
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
    texts = {
        key: hide_secrets(escape_line(f"{key} was {as_typed_value(old)}, is {as_typed_value(new)} now"))
        for key, (old, new) in changes.items()
    }
    refused += [text for key, text in texts.items() if _is_within(key, STATE_SETTINGS)]
    refused += other_classes
    problems = [*admitted.problems, *missing]
    if architecture := [text for key, text in texts.items() if key.startswith("model.") and key != "model.drop_rate"]:
        problems.append(f"The checkpoint has another architecture: {'; '.join(architecture)}. Remove these overrides.")
    if problems:
        raise UserError(problems)
    refused += _missing_callbacks(config, settings)
    changed = [f"Changed since the checkpoint: {text}" for key, text in texts.items() if not _is_within(key, STATE_SETTINGS)]
    _report_restored([*admitted.notices, *changed], forgotten_options(config, now))
    return to_settings(OmegaConf.create(escape_interpolation(merged)), TrainSettings), refused


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


def _use_custom_parts(merged: dict[str, Any], parts: Mapping[str, Mapping[str, Any]]) -> None:
    """Put the user's own parts into the settings of a resumed run."""
    merged["custom"] = {group: dict(fields) for group, fields in parts.items()}
    for group, fields in parts.items():
        if group != "data":  # The batch size may have been adapted to the devices.
            merged[group] |= placeholder(group, fields)


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


def _step_windows(config: Mapping[str, Any]) -> int:
    return math.prod(map(int, _step_numbers(config)))


def _step_numbers(config: Mapping[str, Any]) -> list[Any]:
    return [config.get(group, {}).get(name) for group, name in (key.split(".") for key in STEP_SETTINGS)]


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
        if limit is None or before == now or _is_within(f"trainer.{name}", overridden):
            continue
        if limit * before % now:
            refused.append(
                f"trainer.{name}={limit} was {limit * before} windows, which is not a multiple of the {now} windows that a "
                "batch of all devices now has"
            )
        merged["trainer"][name] = max(1, limit * before // now)
    return refused


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
        elif _is_another(key, value, stored[name]) and (_is_within(key, overridden) or overridden & {"experiment", "debug"}):
            merged[name] = value
            changes[key] = (stored[name], value)
        else:
            merged[name] = stored[name]
    return merged


def _is_another(key: str, value: Any, stored: Any) -> bool:
    """Return True if a value differs from the stored one, and does not leave the choice to the run."""
    return value not in (stored, "auto") and not (value is None and key in CHOSEN_BY_THE_RUN)


def _is_within(key: str, keys: Set[str]) -> bool:
    """Return True if keys holds this setting or a group around it."""
    parts = key.split(".")
    return any(".".join(parts[: n + 1]) in keys for n in range(len(parts)))
