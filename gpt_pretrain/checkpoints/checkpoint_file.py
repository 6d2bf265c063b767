"""Write and read this program's own checkpoints. A complete one always exists, and reading one runs nothing in it."""

from __future__ import annotations

import logging
import pickle
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, TypeVar, cast

import torch

from gpt_pretrain.checkpoints.serialization.checksum import SummedStream, has_checksum
from gpt_pretrain.checkpoints.serialization.tensor_files import check_tensor_sizes, load_plain, read_torch_file
from gpt_pretrain.checkpoints.sharded import assemble_shards
from gpt_pretrain.errors import UserError
from gpt_pretrain.runs.folder import BEST, LAST, METRICS, find_checkpoints, without_repetitions
from gpt_pretrain.runs.metrics_rows import read_rows
from gpt_pretrain.system.environment import user_path
from gpt_pretrain.system.files import clone_file, replacing
from gpt_pretrain.system.reading_cost import explained_by_own_size
from gpt_pretrain.system.shown_values import describe_value

Result = TypeVar("Result")

MODEL_FIELDS = {"state_dict": dict, "architecture": dict, "tokenizer": str}
RESUME_FIELDS = {
    "loops": dict,
    "optimizer_states": list,
    "global_step": int,
    "tokens_seen": int,
    "train_losses": list,
    "config": dict,
    "callbacks": dict,
    "lr_schedulers": list,
    "lr_scale": float,
    "skipped": list,
    "text_sha256": str,
}
STEP = re.compile(r"[0-9]{1,15}")  # in metrics.csv
PERIODIC = re.compile(r"step-[0-9]{1,15}\.ckpt")
MAX_SETTINGS = 2000  # nodes in the stored settings; a run has fewer than 200

log = logging.getLogger(__name__)


class NoSuchWeightsError(UserError):
    """A checkpoint is intact, but has no weights of the kind that was asked for."""


def write_checkpoint(content: dict[str, Any], target: Path) -> None:
    """Write a checkpoint with its checksum beside its target, flush it to disk, and only then rename it to the target.

    Raises:
        OSError: If any of these steps fails. The target is unchanged.
        UserError: If the content could not be loaded again.
    """
    with replacing(target) as scratch:
        _save(content, scratch)


def copy_checkpoint(source: Path, target: Path) -> None:
    """Give a checkpoint a second name, as safely as `write_checkpoint`. The names may share a file, which never changes."""
    with replacing(target) as scratch:
        clone_file(source, scratch)


def first_readable(paths: Iterable[Path], read: Callable[[Path], Result]) -> Result:
    """Return the result of `read` for the first file that it accepts, with a warning for each file it rejects before.

    Raises:
        UserError: If `read` rejects all files. It is the error of the first file. Unless that file is intact, it also says that
            the others cannot be used.
    """
    first: UserError | None = None
    rejected: list[str] = []  # The errors themselves may hold the contents of the files.
    for path in without_repetitions(paths):
        try:
            result = read(path)
        except UserError as error:
            first = first or error
            rejected.append(str(error))
            continue
        for problem in rejected:
            log.warning("%s The newest intact checkpoint is %s.", problem, path)
        return result
    assert first is not None
    if len(rejected) == 1 or isinstance(first, NoSuchWeightsError):
        raise first
    *problems, last = first.problems
    none = "No other checkpoint of this run can be read either. Copy the run again if you have a copy, or start a new run."
    raise UserError([*problems, f"{last} {none}"]) from first


def newest_readable(name: str, read: Callable[[Path], Result]) -> Result:
    """Return the result of `first_readable` for the checkpoints of a name, with a warning if the run's last.ckpt is missing.

    Args:
        name: As in `find_checkpoints`.

    Raises:
        UserError: If there is no checkpoint, or `read` rejects all of them.
    """
    paths = find_checkpoints(name)
    path, result = first_readable(_newest_first(paths), lambda path: (path, read(path)))
    if not user_path(name).is_file() and (paths[0].name == BEST or paths[0].name.startswith("step-")):
        _warn_of_missing_last(path)
    return result


def _newest_first(paths: Sequence[Path]) -> Iterator[Path]:
    """Yield checkpoints in their order, but best.ckpt before those of earlier steps; it is read only after last.ckpt."""
    best = next((path for path in paths if path.name == BEST), None)
    if best is None or len(paths) == 1:
        yield from paths
        return
    others = [path for path in paths if path is not best]
    if others[0].name == LAST:
        yield others.pop(0)
    steps = _stored_steps(best)
    is_older = [PERIODIC.fullmatch(path.name) is not None and int(path.stem[5:]) < steps for path in others]
    at = is_older.index(True) if True in is_older else len(others)
    yield from [*others[:at], best, *others[at:]]


def _stored_steps(path: Path) -> int:
    """Return the number of optimizer steps that a checkpoint states; -1 if it cannot be read."""
    try:
        content = read_torch_file(path)
    except UserError:
        return -1
    steps = content.get("global_step") if isinstance(content, dict) else None
    return steps if isinstance(steps, int) else -1


def _warn_of_missing_last(used: Path) -> None:
    steps, metrics = _stored_steps(used), used.parent.parent / METRICS
    reached = max((int(row["step"]) for row in read_rows(metrics) if STEP.fullmatch(row.get("step", ""))), default=None)
    if steps < 0 or reached is None:
        lost = "What the run learned after it is lost."
    elif reached >= steps:
        lost = f"It is of step {steps - 1:,}, and {metrics} goes up to step {reached:,}: {reached + 1 - steps:,} steps are lost."
    else:
        return
    log.warning(
        "%s is missing, so %s is used. %s If you have a copy of %s, put it back first.", used.with_name(LAST), used, lost, LAST
    )


@explained_by_own_size
def read_checkpoint(path: Path, *, resumable: bool = False, assemble: bool = True) -> dict[str, Any]:
    """Read a checkpoint, with its tensors mapped from the file into memory.

    Only plain containers and tensors are read. A file that needs anything else is rejected, and nothing in it is run.

    Args:
        resumable: Require the training state as well as the weights.
        assemble: Read the tensors of a sharded checkpoint from its other files.

    Raises:
        UserError: If the file is missing, damaged, hostile or not a checkpoint of a GPTModel.
    """
    content = read_torch_file(path)
    if not has_checksum(path):
        raise UserError(f"{path} is damaged or was not written by this program: it has no checksum.")
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a checkpoint of this program: it holds {describe_value(content)}.")
    required = MODEL_FIELDS | (RESUME_FIELDS if resumable else {})
    missing = [name for name, kind in required.items() if not isinstance(content.get(name), kind)]
    if missing:
        raise UserError(f"{path} is not a complete checkpoint of this program: it lacks {', '.join(missing)}.")
    check_tensor_sizes(content, path)
    return assemble_shards(content, path) if "shards" in content and assemble else content


def nested_dicts(settings: Any) -> list[dict[Any, Any]]:
    """Return all dicts within stored settings.

    Raises:
        UserError: If there are far more parts than settings have, as in a container that contains itself.
    """
    found, waiting, n_nodes = [], [settings], 0
    while waiting:
        n_nodes += 1
        if n_nodes > MAX_SETTINGS:
            raise UserError(f"The stored settings have far too many parts: more than {MAX_SETTINGS:,}. The file is damaged.")
        node = waiting.pop()
        if isinstance(node, dict):
            found.append(node)
            waiting += node.values()
        elif isinstance(node, list | tuple):
            waiting += node
    return found


def _save(content: dict[str, Any], path: Path) -> None:
    """Write content with the checksum of the whole file, and check that it can be loaded as plain data.

    The tensors are not read back: right after the write they would come from memory, not from the disk. Every reader verifies
    the checksum.
    """
    with open(path, "xb") as stream:
        summed = SummedStream(stream)
        try:
            torch.save(content, cast(IO[bytes], summed))
        # PyTorch raises a RuntimeError when a write fails.
        except RuntimeError as error:
            raise OSError("PyTorch could not write the whole file; the disk may be full") from error
        summed.finish()
    try:
        load_plain(path, mapped=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            "The checkpoint would hold more than tensors and plain data, and could never be loaded. The state_dict() of your "
            "own callbacks must return only numbers, strings, lists and dicts "
            f"({str(error).strip().splitlines()[-1][:200]})."
        ) from error
