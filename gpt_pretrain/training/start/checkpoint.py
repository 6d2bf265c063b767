"""Find the newest valid checkpoint of a run, and check that it holds everything that resuming needs."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from gpt_pretrain.checkpoints.checkpoint_file import copy_checkpoint, newest_readable, read_checkpoint
from gpt_pretrain.checkpoints.pretrained import open_weights
from gpt_pretrain.checkpoints.serialization.checksum import same_checksum
from gpt_pretrain.checkpoints.sharded import ShardReader
from gpt_pretrain.config.checkpoint_settings import has_signed_settings, read_stored_settings
from gpt_pretrain.errors import UserError, describe_damage
from gpt_pretrain.model.config import GPTConfig
from gpt_pretrain.runs.folder import BEST, LAST, checkpoint_dir
from gpt_pretrain.system.files import remove_scratch_files
from gpt_pretrain.system.terminal import escape_line
from gpt_pretrain.training.distributed import ranks
from gpt_pretrain.training.start.restored_settings import STEP_SETTINGS, step_numbers
from gpt_pretrain.training.start.stored_state import check_training_state

log = logging.getLogger(__name__)


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
    if not all(isinstance(number, int) and number >= 1 for number in step_numbers(stored)):
        raise UserError(f"{path} is not a valid checkpoint: its {', '.join(STEP_SETTINGS)} must be at least 1.")
    return content
