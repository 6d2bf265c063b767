"""The folder of a run: its paths, the search for it by name, and the check that it can be written to without harm.

Importing this module loads no heavy library.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from gpt_pretrain.errors import UserError
from gpt_pretrain.system.checkout import script_command
from gpt_pretrain.system.environment import user_path
from gpt_pretrain.system.files import break_hard_links, linked_paths
from gpt_pretrain.system.shell import quote_word
from gpt_pretrain.system.typed_paths import nearest_path

OUTPUTS = Path("outputs")
LAST, BEST = "last.ckpt", "best.ckpt"
METRICS = "metrics.csv"
REPORT = "report.html"
EXPORTED = "huggingface"
WEIGHTS = ("*.safetensors", "*.bin", "*.pth", "*.pt")  # files of weights beside which there is no run
WRITTEN_BY_EVALUATIONS = ("results.json", "evaluation.html")
RUN_LOGS = ("config.yaml", "train.log", "generate.log")  # each run.json has one of them beside it
FILES_OF_RUNS = (
    *("run.json", "config.yaml", METRICS, "samples.txt", "train.log", "generate.log", REPORT, "losses.png"),
    *("tokenizer.json", "tokenizer_config.json", "tokenizer_table.json", "losses.pdf", ".lock", "mlflow.db", ".tracking"),
)
FOLDERS_OF_RUNS = (".hydra", "checkpoints", EXPORTED)
# Everything that a run writes to its folder. Loggers write "wandb", ".wandb", "mlruns" and "mlflow.db".
WRITTEN_BY_RUNS = (
    *FILES_OF_RUNS,
    *(*FOLDERS_OF_RUNS, "wandb", ".wandb", "mlruns"),
    *(".hydra/config.yaml", ".hydra/hydra.yaml", ".hydra/overrides.yaml"),
)


def display_path(path: Path) -> str:
    """Return a path relative to the working directory if it lies below it, and unchanged otherwise."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative


def checkpoint_dir(run_dir: Path) -> Path:
    """Return the folder of a run's checkpoints."""
    return run_dir / "checkpoints"


def find_run(name: str) -> Path:
    """Return the folder of a run that has a checkpoint.

    Args:
        name: A run's folder, its folder of checkpoints, a checkpoint in it, or "latest": the run below outputs/ with the newest
            checkpoint.

    Raises:
        UserError: If the folder does not exist or contains no checkpoint.
    """
    run_dir = find_run_folder(name)
    if not list_checkpoints(run_dir):
        if run := next((file.parent.parent for file in run_dir.glob("*/checkpoints/*.ckpt")), None):
            raise UserError(f"{name}: this folder holds runs, of which one is needed, such as {run}. `latest` is the newest one.")
        if weights := next((file.name for pattern in WEIGHTS for file in run_dir.glob(pattern)), None):
            raise UserError(
                f"{name}: this folder holds weights ({weights}), but no run. To use them, type pretrained={quote_word(name)}; to "
                f"train them further, type init_from={quote_word(name)}."
            )
        raise UserError(f"{name}: this folder holds no checkpoint of a run yet. A run writes its first one after an epoch.")
    return run_dir


def find_run_folder(name: str) -> Path:
    """Return the folder of a run, with or without a checkpoint. Accept the same names as `find_run`.

    Raises:
        UserError: If the folder does not exist.
    """
    if name == "latest":
        folder = _latest_run()
    else:
        path = user_path(name)
        folder = path.parent.parent if path.is_file() and path.parent.name == "checkpoints" else path
        if path.name == "checkpoints" and any(path.glob("*.ckpt")):
            folder = path.parent
        if folder.exists() and not folder.is_dir():
            remedy = f" Name {path.parent} instead." if list_checkpoints(path.parent) else ""
            raise UserError(f"{name} is a file, but the folder of a run is needed, or a file in its folder checkpoints.{remedy}")
        if not folder.is_dir() and path.suffix == ".ckpt":
            raise UserError(f"{name}: there is no such checkpoint.{_checkpoints_beside(path)}")
        if not folder.is_dir():
            other = _explain_missing(name) or "`latest` is the newest."
            raise UserError(f"{name}: no such run folder. Runs are folders below {OUTPUTS}/. {other}")
    return folder


def _explain_missing(name: str) -> str:
    """Return a sentence that names the run or checkpoint that a name probably means, or "" if none is found."""
    path = user_path(name)
    checkpoint = f"{name.removesuffix('.ckpt')}.ckpt"
    close = [nearest_path(path), nearest_path(OUTPUTS / name)]
    named = (OUTPUTS / name, path.parent / f"{path.name}.ckpt", *map(Path, filter(None, close)))
    if checkpoint in (LAST, BEST):
        with suppress(UserError):
            named = (checkpoint_dir(_latest_run()) / checkpoint, *named)
    found = next((one for one in named if os.path.isdir(one) or (one.suffix == ".ckpt" and one.is_file())), None)
    return f"Did you mean {quote_word(display_path(found))}?" if found else ""


def _checkpoints_beside(path: Path) -> str:
    """Return a sentence that names a run's existing checkpoints, since one is missing."""
    if not (found := list_checkpoints(path.parent.parent)):
        return f" Check the path; the checkpoints of a run are in the folder checkpoints of its folder below {OUTPUTS}/."
    return f" This folder has {', '.join(file.name for file in found[:5])}{' and more' * (len(found) > 5)}."


def find_checkpoints(name: str) -> list[Path]:
    """Return the checkpoint that a name refers to, or all checkpoints of a run, the newest first.

    Args:
        name: A checkpoint file, or a name for `find_run`.

    Raises:
        UserError: If there is no checkpoint.
    """
    path = user_path(name)
    if name != "latest" and path.is_file():
        return [path]
    if name != "latest" and not path.exists() and path.suffix != ".ckpt":
        other = _explain_missing(name) or f"`latest` is the newest run below {OUTPUTS}/."
        raise UserError(f"checkpoint={name}: no such file or run folder. {other}")
    return list_checkpoints(find_run(name))


def list_checkpoints(run_dir: Path) -> list[Path]:
    """Return a run's checkpoints: last.ckpt, then the ones named after a step, the newest first, then best.ckpt.

    Raises:
        OSError: If the folder cannot be read. `glob` would take it for empty.
    """
    try:
        names = os.listdir(checkpoint_dir(run_dir))
    except (FileNotFoundError, NotADirectoryError, ValueError):  # no such folder, or a name that cannot be one
        return []
    files = (checkpoint_dir(run_dir) / name for name in names if name.endswith(".ckpt"))
    found = [file for file in files if file.is_file()]
    return sorted(found, key=lambda file: (file.name == LAST, file.name != BEST, file.name), reverse=True)


def has_checkpoint(run_dir: Path) -> bool:
    """Return True if a run has a checkpoint, or if its drive does not answer, since it may have one there."""
    try:
        return bool(list_checkpoints(run_dir))
    except OSError:
        return True


def written_at(file: Path) -> int:
    """Return the time at which a file was last written here, in nanoseconds, to find the newest file.

    An archive can set the modification time of its files to the future. A folder from somebody else would then always be the
    newest. An archive cannot set the change time, so that time counts: the file was then unpacked, renamed, or got another mode.
    """
    status = file.stat()
    return min(status.st_mtime_ns, status.st_ctime_ns)


def check_folder_name(folder: Path) -> None:
    """Check that no part of a folder's path looks like an interpolation. Hydra would replace it, and write to another folder.

    Hydra 1.3 keeps a job's folder unescaped in its config, and resolves it again at each access.

    Raises:
        UserError: If the path contains one.
    """
    if "${" in (path := str(folder.absolute())):
        from gpt_pretrain.system.terminal import escape_line  # rich takes a tenth of a second to load

        raise UserError(f"{escape_line(path)}: the path contains ${{, which Hydra would replace. Rename the folder.")


def without_repetitions(files: Iterable[Path]) -> Iterator[Path]:
    """Yield files, but each file only once. A small archive may give one file thousands of names by links of both kinds."""
    return without_shared_files(files, ("",))


def without_shared_files(folders: Iterable[Path], names: Sequence[str]) -> Iterator[Path]:
    """Yield folders, but leave out each in which a file of these names is another name of a file in an earlier folder."""
    seen = set[str | tuple[int, int]]()
    for folder in folders:
        found = _identities(folder / name for name in names)
        if seen.isdisjoint(found):
            yield folder
        seen |= found


def _identities(files: Iterable[Path]) -> set[str | tuple[int, int]]:
    """Return what identifies files under all their names: the paths without links, and numbers if there are hard links.

    The reader of a missing file explains it.
    """
    found = set[str | tuple[int, int]]()
    for file in files:
        with suppress(OSError):
            status = file.stat()
            found.add(os.path.realpath(file))
            if status.st_nlink > 1:
                found.add((status.st_dev, status.st_ino))
    return found


def is_written_by_runs(names: Iterable[str]) -> bool:
    """Return whether the files of a folder belong to a run or a sweep."""
    found = set(names)
    return "multirun.yaml" in found or ("run.json" in found and not found.isdisjoint(RUN_LOGS))


def check_no_links(folder: Path, names: Iterable[str] = WRITTEN_BY_RUNS) -> None:
    """Check that no path to be written in a folder is a link. A link may lead to any file of the user.

    The folder itself may be a link, since the user has named it. A file that has other names is replaced by a copy. A folder in
    place of a file is refused as well, and so is a file in place of a folder.

    Args:
        names: The paths in the folder that will be written.

    Raises:
        UserError: If some of them are links, folders in place of files, or files in place of folders. It lists all of a kind.
        OSError: If a file with other names cannot be replaced.
    """
    if links := linked_paths(folder, names):
        raise UserError(
            f"{link} is a link to {os.readlink(link)}, and nothing is written through a link: a folder from somebody else may "
            "hold links to any of your files. Remove the link, or replace it with a copy of its target."
            for link in links
        )
    files = [folder / name for name in names if Path(name).name in FILES_OF_RUNS]
    files += [folder / name / file for name in names if Path(name).name == "checkpoints" for file in (LAST, BEST)]
    if folders := [file for file in files if file.is_dir() and not file.is_symlink()]:
        raise UserError(
            f"{one} is a folder, but a run writes a file of this name. Remove it, or move it away." for one in folders
        )
    kept = [folder / name for name in names if Path(name).name in FOLDERS_OF_RUNS]
    if misnamed := [one for one in kept if one.exists() and not one.is_dir()]:
        raise UserError(f"{one} is a file, but a run has a folder of this name. Remove it, or move it away." for one in misnamed)
    break_hard_links(folder / name for name in names)


def _latest_run() -> Path:
    patterns = ("*/checkpoints/*.ckpt", "multirun/*/*/checkpoints/*.ckpt")
    found = [file for pattern in patterns for file in OUTPUTS.glob(pattern) if file.is_file()]
    if not found:
        raise UserError(
            f"`latest`: no run below {OUTPUTS.resolve()} has a checkpoint. Train a model first: "
            f"{script_command('train.py')} model=tiny"
        )
    return max(found, key=written_at).parent.parent
