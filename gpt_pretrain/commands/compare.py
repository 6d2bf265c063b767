"""Plot the loss curves of runs over one another, and print how the runs differ.

Usage: gpt-pretrain compare RUN RUN ... [out=compare.png]

  RUN  run folder, checkpoint in one, or latest for the newest run in outputs/
  out  picture to write: .png, .pdf or .svg (default: compare.png); an earlier comparison there is replaced, other files are not

The curves are drawn over the tokens seen, so that runs with different batch sizes can be compared. The losses and the settings
that differ are printed. If the tokenizers or the texts differ, the losses cannot be compared: a warning says so, and the picture
shows bits per byte.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from gpt_pretrain.commands.command_line.arguments import parse_arguments
from gpt_pretrain.config.command_schema import CompareSettings
from gpt_pretrain.errors import UserError
from gpt_pretrain.runs.folder import display_path, find_run_folder
from gpt_pretrain.runs.metadata import OF_VALIDATION, has_different_texts
from gpt_pretrain.runs.reader import RunContents, differing_names, lowest_bits_per_byte, read_run, run_results
from gpt_pretrain.system.environment import user_path
from gpt_pretrain.system.formatting import format_count, format_number
from gpt_pretrain.system.shell import quote_word
from gpt_pretrain.system.tables import format_table
from gpt_pretrain.system.terminal import print_escaped

FORMATS = (".png", ".pdf", ".svg")
CREATOR, MARKED_BYTES = "gpt-pretrain compare", 100_000  # at the start of a picture, or at the end of a PDF
IGNORED_SETTINGS = ("run_dir", "resume", "resume_force", "data.cache_dir")  # they do not affect the result
# The metrics that are compared; of several, the first one that a run has.
VALIDATION, TRAINING, BITS = ("val/loss", "eval/val_loss"), ("eval/train_loss", "train/loss"), "val/bits_per_byte"
MAX_CELL_CHARACTERS = 40
MAX_LEGEND_SETTINGS = 3
MAX_SETTINGS = 500  # rows of the table; a run has fewer than 200 settings, but a stranger's run may have any number


def compare_command(arguments: list[str]) -> None:
    """Compare runs."""
    settings = parse_arguments(arguments, CompareSettings, usage=__doc__ or "", positional="runs")
    out = user_path(settings.out)
    runs = _read_runs(settings.runs, out)
    warnings = comparison_warnings(runs)
    for warning in warnings:
        print_escaped(f"warning: {warning}", file=sys.stderr)
    print_escaped(format_comparison(runs))
    if any(run.metrics for run in runs):
        _draw(runs, out, bits_per_byte=bool(warnings) and any(run.series(BITS) for run in runs))
        print_escaped(f"\nCurves: {display_path(out)}")
    else:
        print("\nNo run has a metrics.csv, so there are no curves to draw.")


def format_comparison(runs: Sequence[RunContents]) -> str:
    """Format the runs, the settings and facts that differ, and the results as tables."""
    numbers = [str(number) for number in range(1, len(runs) + 1)]
    folders = [
        [number, display_path(run.folder), str(run.metadata.get("state", "unknown"))]
        for number, run in zip(numbers, runs, strict=True)
    ]
    differing = differing_settings(runs)
    settings = [[key, *(_shorten(run.config.get(key, "-")) for run in runs)] for key in differing[:MAX_SETTINGS]]
    if len(differing) > MAX_SETTINGS:
        settings.append([f"and {len(differing) - MAX_SETTINGS:,} more", *("" for _ in runs)])
    facts = [[name, *values] for name, values in _facts(runs).items() if _differ(values)]
    results = [[name, *values] for name, values in _results(runs).items() if set(values) != {"-"}]
    tables = [
        [["run", "folder", "state"], *folders],
        [["", *numbers], *(settings or [["no setting differs", *("" for _ in runs)]]), *facts],
        [["", *numbers], *results],
    ]
    return "\n\n".join(map(format_table, tables))


def differing_settings(runs: Sequence[RunContents]) -> list[str]:
    """Return the settings that differ between runs, by dotted key."""
    return [key for key in differing_names([run.config for run in runs]) if key not in IGNORED_SETTINGS]


def comparison_warnings(runs: Sequence[RunContents]) -> list[str]:
    """List the reasons why the losses of the runs cannot be compared."""
    warnings = []
    if _differ([_tokenizer(run) for run in runs]):
        warnings.append(
            "the runs have different tokenizers. A loss per token depends on the length of the tokens; compare bits per byte."
        )
    if _differ(_texts(runs)) or any(_differ([run.config.get(key) for run in runs]) for key in OF_VALIDATION):
        warnings.append(
            "the runs are validated on different texts, or on different parts of one text, and some texts are easier to predict "
            "than others. Bits per byte are the closest comparison; for a fair one, validate the runs on the same text."
        )
    return warnings


def _read_runs(names: list[str], out: Path) -> list[RunContents]:
    """Read the runs with these names.

    Raises:
        UserError: If there are fewer than two runs, a run cannot be read, or out is not a picture file. It lists all problems.
    """
    problems, folders = [], []
    if len(names) < 2:
        problems.append(f"{format_count(len(names), 'run')} given, but a comparison needs at least two. --help shows the usage.")
    if out.suffix.lower() not in FORMATS:
        problems.append(f"out={out}: must end in one of {', '.join(FORMATS)}.")
    elif out.is_file() and not _is_own_picture(out):
        problems.append(
            f"out={out}: this file exists already, and is not marked as a comparison of runs (those of earlier versions have no "
            "mark). Choose another name, or delete it."
        )
    for name in names:
        try:
            folders.append(find_run_folder(name))
        except UserError as error:
            problems += error.problems
    runs = [read_run(folder, columns=[*VALIDATION, *TRAINING, BITS]) for folder in folders]
    problems += [_explain_no_run(run.folder) for run in runs if not (run.metadata or run.config or run.metrics)]
    if problems:
        raise UserError(problems)
    return runs


def _explain_no_run(folder: Path) -> str:
    """Return the message about a folder without the files of a run. In the folder of a sweep, it names two of its runs."""
    if jobs := list(islice((quote_word(display_path(file.parent)) for file in folder.glob("*/run.json")), 2)):
        return f"{folder}: this folder holds runs, each of which is named by itself, such as {' '.join(sorted(jobs))}"
    return f"{folder}: this folder holds no run: run.json, config.yaml and metrics.csv are missing or unreadable."


def _is_own_picture(file: Path) -> bool:
    """Return whether this command has written a picture. An unreadable picture counts as somebody else's."""
    try:
        with open(file, "rb") as stream:
            start = stream.read(MARKED_BYTES)
            stream.seek(max(0, file.stat().st_size - MARKED_BYTES))
            return CREATOR.encode() in start + b" " + stream.read()
    except OSError:
        return False


def _draw(runs: Sequence[RunContents], out: Path, *, bits_per_byte: bool) -> None:
    """Draw the curves of the runs.

    Raises:
        UserError: If the picture cannot be written.
    """
    from gpt_pretrain.runs.charts import curves, drawing

    differing = differing_settings(runs)
    labels = [f"{number}  {_legend(run, differing)}" for number, run in enumerate(runs, start=1)]
    if bits_per_byte:
        panels = {"validation": [run.series(BITS) for run in runs]}
        figure = curves.overlay_figure(panels, labels, unit="bits per byte")
    else:
        validation = [run.series(*VALIDATION) for run in runs]
        training = [run.series(*TRAINING) for run in runs]
        figure = curves.overlay_figure({"validation": validation, "training": training}, labels)
    try:
        drawing.save_figure(figure, out, creator=CREATOR)
    except OSError as error:
        raise UserError(f"out={out}: this file cannot be written ({error.strerror or error}). Choose another path.") from error


def _legend(run: RunContents, differing: Sequence[str]) -> str:
    """Return a run's values of the settings that differ, or its folder's name if there are none or too many."""
    if not 0 < len(differing) <= MAX_LEGEND_SETTINGS:
        return run.folder.resolve().name
    return ", ".join(f"{key}={run.config.get(key, '-')}" for key in differing)


def _facts(runs: Sequence[RunContents]) -> dict[str, list[str]]:
    """Return the facts in the run metadata that are not settings."""
    return {
        "text": [_shorten(text or "-") for text in _texts(runs)],
        "parameters": [format_number(run.section("model").get("parameters"), ",d") for run in runs],
        "precision used": [str(run.metadata.get("precision") or "-") for run in runs],
        "device": [str(run.section("machine").get("device") or "-") for run in runs],
        "git": [str(run.section("program").get("git") or "-") for run in runs],
        "torch": [str(run.section("versions").get("torch") or "-") for run in runs],
    }


def _results(runs: Sequence[RunContents]) -> dict[str, list[str]]:
    found = [run_results(run) for run in runs]
    return {
        "best validation loss": [format_number(result.get("best_val_loss"), ".4f") for result in found],
        "at step": [format_number(result.get("best_step"), ",d") for result in found],
        "last validation loss": [format_number(result.get("val_loss"), ".4f") for result in found],
        "last training loss": [format_number(result.get("train_loss"), ".4f") for result in found],
        "best bits per byte": [format_number(lowest_bits_per_byte(run.metrics), ".4f") for run in runs],
        "steps": [format_number(result.get("steps"), ",d") for result in found],
        "tokens seen": [format_number(result.get("tokens_seen"), ",d") for result in found],
        "tokens/s": [format_number(result.get("tokens_per_second"), ",.0f") for result in found],
    }


def _texts(runs: Sequence[RunContents]) -> list[str | None]:
    """Return the start of the SHA-256 of each run's text, the same for shards of one text with different vocabularies.

    If a hash is unknown, return the paths or names of the texts.
    """
    hashes = [run.section("data").get("sha256") for run in runs]
    if all(hashes):
        differ = has_different_texts(run.metadata for run in runs)
        return [str(digest)[:12] for digest in (hashes if differ else hashes[:1] * len(runs))]
    return [run.config.get("data.path" if run.config.get("data.path") not in (None, "null") else "data.name") for run in runs]


def _tokenizer(run: RunContents) -> str | None:
    stored = run.metadata.get("tokenizer")
    return str(stored) if stored else run.config.get("tokenizer.name")


def _differ(values: Sequence[str | None]) -> bool:
    """Return whether the known values differ."""
    return len(set(values) - {None, "-"}) > 1


def _shorten(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= MAX_CELL_CHARACTERS else text[: MAX_CELL_CHARACTERS - 3] + "..."
