"""Going on with a run: its newest whole checkpoint, its own settings, and which of them may be changed on the way."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Set
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from gpt_pretrain.checkpoints.checkpoint_file import copy_checkpoint, first_readable, nested_dicts, read_checkpoint
from gpt_pretrain.checkpoints.checksum import same_checksum
from gpt_pretrain.checkpoints.pretrained import open_weights
from gpt_pretrain.checkpoints.sharded import ShardReader
from gpt_pretrain.config.conversion import escape_interpolation, to_settings
from gpt_pretrain.config.schema import TrainSettings
from gpt_pretrain.errors import UserError
from gpt_pretrain.model.config import GPTConfig
from gpt_pretrain.runs.folder import BEST, LAST, checkpoint_dir, find_checkpoints
from gpt_pretrain.system.files import remove_scratch_files
from gpt_pretrain.training.distributed import ranks

# Never taken from the checkpoint.
OF_THIS_START = ("run_dir", "plan", "resume", "resume_force", "callbacks.custom", "trainer.devices", "trainer.num_nodes")
STEP = ("data.batch_size", "trainer.accumulate_grad_batches", "trainer.devices", "trainer.num_nodes")  # its windows multiplied
# What gives the saved state its meaning. Which text `data` names is not here: its content counts.
MEANING = {
    *("model", "tokenizer", "seed", "data.batch_size", "data.train_ratio", "data.stride", "data.respect_documents"),
    *("trainer.accumulate_grad_batches", "trainer.limit_train_batches", "trainer.precision"),
    *("optimizer.name", "optimizer.decay"),
}

log = logging.getLogger(__name__)


def newest_checkpoint(run_dir: Path, *, only: Path | None = None, looking: bool = False) -> tuple[Path, dict[str, Any]]:
    """A run's newest whole checkpoint, damaged ones reported, what a killed process left behind removed.

    Args:
        only: a checkpoint to take instead.
        looking: leave the run's folder as it is.

    Raises:
        UserError: when the run has none.
    """
    looking = looking or not ranks.is_main()
    for folder in () if looking else (run_dir, checkpoint_dir(run_dir)):
        remove_scratch_files(folder)
    path, content = first_readable(
        [only] if only is not None else find_checkpoints(str(run_dir)), lambda path: (path, resumable(path))
    )
    if not looking and path.name == LAST and content["callbacks"]["SaveRun"]["best_step"] == content["global_step"] - 1:
        best = path.with_name(BEST)
        if not best.is_file() or not same_checksum(path, best):  # killed between the two
            copy_checkpoint(path, best)
    return path, content


def resumable(path: Path) -> dict[str, Any]:
    """A checkpoint with all that resuming reads of it, whose tensors make the model that it says.

    Of one in pieces these are not read, but for their checksums, by the first rank alone: there may be many ranks on a machine.

    Raises:
        UserError: when that is not so.
    """
    content = read_checkpoint(path, resumable=True, assemble=False)
    if "shards" in content:
        ShardReader(path, content, check=ranks.is_main())
        architecture = GPTConfig.from_dict(content["architecture"]).to_dict()
    else:
        architecture = open_weights(path).config.to_dict()
    try:
        int(content["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"])
        int(content["callbacks"]["SaveRun"]["best_step"])
        int(content["TextDataModule"]["windows"]), int(content["TextDataModule"]["epoch_windows"])
        model = content["config"]["model"]
        told = {name: model[name] for name in architecture if name != "vocab_size"}
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is no whole checkpoint: its {error} is missing or odd.") from error
    if told != {name: architecture[name] for name in told}:
        raise UserError(f"{path} is no whole checkpoint: its settings tell of another model than its tensors make.")
    return content


def as_before(settings: TrainSettings, stored: dict[str, Any], overridden: Set[str]) -> tuple[TrainSettings, list[str]]:
    """The settings that a checkpoint was made with, except for what was typed now.

    Args:
        stored: the settings in the checkpoint.
        overridden: settings and groups.

    Returns:
        The settings, and what was typed that would change the meaning of the saved state.
    """
    if any("_target_" in table for table in nested_dicts(stored)):
        raise UserError("The checkpoint's settings hold a _target_, which could run anything; this program stores none.")
    changes: dict[str, tuple[Any, Any]] = {}
    merged = _merge(stored, dataclasses.asdict(settings), overridden, changes)
    refused = _same_step(merged, stored, overridden, changes)
    told = {key: f"{key} was {old}, is {new} now" for key, (old, new) in changes.items()}
    refused += [text for key, text in told.items() if _within(key, MEANING)]
    if unloadable := [text for key, text in told.items() if key.startswith("model.") and key != "model.drop_rate"]:
        raise UserError(f"The checkpoint has another architecture: {'; '.join(unloadable)}. Leave that as it was.")
    had = stored.get("callbacks", {}).get("custom", {})
    gone = {name: kind for name, kind in had.items() if name not in settings.callbacks.custom}
    refused += [f"callbacks.custom.{name} ({kind}) was there, and a checkpoint brings none" for name, kind in gone.items()]
    for key, text in told.items():
        if not _within(key, MEANING):
            log.info("Changed since the checkpoint: %s", text)
    return to_settings(OmegaConf.create(escape_interpolation(merged)), TrainSettings), refused


def _same_step(
    merged: dict[str, Any], stored: dict[str, Any], overridden: Set[str], changes: dict[str, tuple[Any, Any]]
) -> list[str]:
    """Have an optimizer step take as many windows as before, by accumulating more or fewer batches where others share them now.

    Returns:
        What was typed, or given, that makes it impossible.
    """

    def windows(config: dict[str, Any]) -> int:
        return math.prod(int(config[group][name]) for group, name in (key.split(".") for key in STEP))

    before, data, trainer = windows(stored), merged["data"], merged["trainer"]
    free = not overridden & {"trainer.accumulate_grad_batches", "data.batch_size"}
    if windows(merged) != before and free and before % (ranks := trainer["devices"] * trainer["num_nodes"]) == 0:
        size = math.gcd(data["batch_size"], before // ranks)  # so that an epoch is in whole batches still
        merged["eval_iter"] = math.ceil(merged["eval_iter"] * data["batch_size"] / size)  # of the same windows
        data["batch_size"], trainer["accumulate_grad_batches"] = size, before // ranks // size
        log.info(
            "An optimizer step takes the same %d windows as before: data.batch_size=%d trainer.accumulate_grad_batches=%d",
            before,
            size,
            trainer["accumulate_grad_batches"],
        )
    now = windows(merged)
    if now == before:
        for key in STEP:
            changes.pop(key, None)
        return _same_limits(merged, stored, overridden)
    devices = [math.prod(int(config["trainer"][name]) for name in ("devices", "num_nodes")) for config in (stored, merged)]
    if devices[0] == devices[1]:
        return []  # the settings that differ are told
    return [
        f"an optimizer step took {before} windows on {devices[0]} devices, and takes {now} on {devices[1]} now "
        "(data.batch_size and trainer.accumulate_grad_batches can make up for that)"
    ]


def _same_limits(merged: dict[str, Any], stored: dict[str, Any], overridden: Set[str]) -> list[str]:
    """Have an epoch's limits, which count batches, be of as many windows as before.

    Returns:
        What makes it impossible.
    """
    before, now = (
        int(config["data"]["batch_size"]) * int(config["trainer"]["devices"]) * int(config["trainer"]["num_nodes"])
        for config in (stored, merged)
    )
    refused = []
    for name in ("limit_train_batches", "limit_val_batches"):
        limit = merged["trainer"][name]
        if limit is None or before == now or _within(f"trainer.{name}", overridden):
            continue
        if limit * before % now:
            refused.append(f"trainer.{name}={limit} was {limit * before} windows, and {now} are taken at once now")
        merged["trainer"][name] = max(1, limit * before // now)
    return refused


def changes_problems(changes: list[str], *, path: Path, force: bool) -> list[str]:
    """Changes of meaning as a problem, or, where the user insists on them, as warnings."""
    if not changes:
        return []
    if not force:
        return [
            f"{path} would mean something else: {'; '.join(changes)}. Leave that as it was, begin a new run from its weights "
            "with init_from=, or go on all the same with resume_force=true."
        ]
    for change in changes:
        log.warning("Changed since the checkpoint, as resume_force=true allows: %s", change)
    return []


def _merge(
    stored: dict[str, Any], now: dict[Any, Any], overridden: Set[str], changes: dict[str, tuple[Any, Any]], prefix: str = ""
) -> dict[str, Any]:
    merged = {}
    for name, value in now.items():
        key = f"{prefix}{name}"
        if key in OF_THIS_START or name not in stored:
            merged[name] = value
        elif isinstance(value, dict) and isinstance(stored[name], dict):
            merged[name] = _merge(stored[name], value, overridden, changes, f"{key}.")
        elif value not in (stored[name], "auto") and (_within(key, overridden) or overridden & {"experiment", "debug"}):
            merged[name] = value
            changes[key] = (stored[name], value)
        else:
            merged[name] = stored[name]
    return merged


def _within(key: str, keys: Set[str]) -> bool:
    """Whether a setting, or a group that it is in, is among keys."""
    parts = key.split(".")
    return any(".".join(parts[: n + 1]) in keys for n in range(len(parts)))
