"""Lay the loss curves of runs over one another, and say what differs between the runs.

Usage: gpt-pretrain compare RUN RUN ... [out=compare.png]

  RUN  a run's folder, a checkpoint in one, or latest: the newest run below outputs/
  out  the picture to write; its ending tells the format: png, pdf, svg

The curves go by tokens seen, so that batch sizes compare. Printed are the settings that differ and the losses. Where losses
cannot be compared, because the tokenizers or the texts differ, that is said, and the picture shows bits per byte.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from gpt_pretrain.commands.arguments import parse_arguments
from gpt_pretrain.config.command_schema import CompareSettings
from gpt_pretrain.errors import UserError
from gpt_pretrain.runs.folder import display_path, find_run_folder
from gpt_pretrain.runs.reader import RunContents, read_run, run_results
from gpt_pretrain.sweeps.results import aligned_table
from gpt_pretrain.system.formatting import format_count, format_number

FORMATS = (".png", ".pdf", ".svg")
OWN_TO_EACH = ("run_dir", "resume", "resume_force", "data.cache_dir")  # which say nothing about the training
CELL = 40  # characters of a value in the table
IN_LEGEND = 3  # settings at most


def compare_command(arguments: list[str]) -> None:
    """Compare the runs that the settings name."""
    settings = parse_arguments(arguments, CompareSettings, usage=__doc__ or "", positional="runs")
    out = Path(settings.out).expanduser()
    runs = _runs(settings.runs, out)
    problems = incomparable(runs)
    for problem in problems:
        print(f"warning: {problem}", file=sys.stderr)
    print(comparison(runs))
    if any(run.metrics for run in runs):
        _draw(runs, out, bits_per_byte=bool(problems) and any(run.series("val/bits_per_byte") for run in runs))
        print(f"\nCurves: {display_path(out)}")
    else:
        print("\nNone of the runs has a metrics.csv, so there are no curves to draw.")


def comparison(runs: Sequence[RunContents]) -> str:
    """What the runs are, in which settings and facts they differ, and what came out, as aligned text."""
    names = [str(place_of) for place_of in range(1, len(runs) + 1)]
    heads = aligned_table([["run", "folder", "state"], *([name, *_about(run)] for name, run in zip(names, runs, strict=True))])
    differing = [[key, *(_short(value) for value in values)] for key, values in differences(runs).items()]
    facts = [[name, *values] for name, values in _facts(runs).items() if _differ(values)]
    rows = [["", *names], *(differing or [["no setting differs", *("" for _ in runs)]]), *facts]
    results = [["", *names], *([name, *values] for name, values in _results(runs).items() if set(values) != {"-"})]
    return "\n\n".join([heads, aligned_table(rows), aligned_table(results)])


def differences(runs: Sequence[RunContents]) -> dict[str, list[str]]:
    """The settings that are not the same in all runs, by dotted key, and their values; "-" where a run does not tell."""
    keys = dict.fromkeys(key for run in runs for key in run.config if key not in OWN_TO_EACH)
    values = {key: [run.config.get(key, "-") for run in runs] for key in keys}
    return {key: found for key, found in values.items() if len(set(found)) > 1}


def incomparable(runs: Sequence[RunContents]) -> list[str]:
    """Why the losses of runs cannot be compared, in words; empty where they can."""
    problems = []
    if _differ([_tokenizer(run) for run in runs]):
        problems.append(
            "the runs have different tokenizers. A loss in nats a token depends on how long tokens are; compare bits per byte."
        )
    if _differ(_texts(runs)) or _differ([run.config.get("data.train_ratio") for run in runs]):
        problems.append(
            "the runs are validated on different texts, or different parts of one, of which some may be easier than others. Bits "
            "per byte come nearest to a comparison; for a fair one validate them on the same text."
        )
    return problems


def _runs(names: list[str], out: Path) -> list[RunContents]:
    """The runs that a user names.

    Raises:
        UserError: with everything that is wrong.
    """
    problems, folders = [], []
    if len(names) < 2:
        problems.append(f"{format_count(len(names), 'run')} named, and a comparison takes at least two; --help tells more.")
    if out.suffix.lower() not in FORMATS:
        problems.append(f"out={out}: must end in one of {', '.join(FORMATS)}.")
    for name in names:
        try:
            folders.append(find_run_folder(name))
        except UserError as error:
            problems += error.problems
    runs = [read_run(folder) for folder in folders]
    problems += [
        f"{run.folder}: this folder holds no run: neither run.json nor config.yaml nor metrics.csv can be read there."
        for run in runs
        if not (run.record or run.config or run.metrics)
    ]
    if problems:
        raise UserError(problems)
    return runs


def _draw(runs: Sequence[RunContents], out: Path, *, bits_per_byte: bool) -> None:
    """Write the picture of the curves.

    Raises:
        UserError: when it cannot be written.
    """
    from gpt_pretrain.runs.charts import curves, drawing

    labels = [f"{number_of}  {_legend(run, runs)}" for number_of, run in enumerate(runs, start=1)]
    if bits_per_byte:
        panels = {"validation": [run.series("val/bits_per_byte") for run in runs]}
        figure = curves.overlay(panels, labels, unit="bits per byte")
    else:
        validation = [run.series("val/loss", "eval/val_loss") for run in runs]
        training = [run.series("eval/train_loss", "train/loss") for run in runs]
        figure = curves.overlay({"validation": validation, "training": training}, labels)
    try:
        drawing.write(figure, out)
    except OSError as error:
        raise UserError(f"out={out}: this file cannot be written ({error.strerror or error}).") from error


def _legend(run: RunContents, runs: Sequence[RunContents]) -> str:
    """What sets a run apart, in a few words; its folder's name where nothing does, or too much."""
    keys = list(differences(runs))
    if not 0 < len(keys) <= IN_LEGEND:
        return run.folder.resolve().name
    return ", ".join(f"{key}={run.config.get(key, '-')}" for key in keys)


def _about(run: RunContents) -> list[str]:
    return [display_path(run.folder), str(run.record.get("state", "unknown"))]


def _facts(runs: Sequence[RunContents]) -> dict[str, list[str]]:
    """What the records say about a run, beside its settings."""
    return {
        "text": [_short(text or "-") for text in _texts(runs)],
        "parameters": [format_number(run.part("model").get("parameters"), ",d") for run in runs],
        "precision used": [str(run.record.get("precision") or "-") for run in runs],
        "device": [str(run.part("machine").get("device") or "-") for run in runs],
        "git": [str(run.part("program").get("git") or "-") for run in runs],
        "torch": [str(run.part("versions").get("torch") or "-") for run in runs],
    }


def _results(runs: Sequence[RunContents]) -> dict[str, list[str]]:
    found = [run_results(run) for run in runs]
    bits = [run.series("val/bits_per_byte").values for run in runs]
    return {
        "best validation loss": [format_number(one.get("best_val_loss"), ".4f") for one in found],
        "at step": [format_number(one.get("best_step"), ",d") for one in found],
        "last validation loss": [format_number(one.get("val_loss"), ".4f") for one in found],
        "last training loss": [format_number(one.get("train_loss"), ".4f") for one in found],
        "best bits per byte": [format_number(min(values, default=None), ".4f") for values in bits],
        "steps": [format_number(one.get("steps"), ",d") for one in found],
        "tokens seen": [format_number(one.get("tokens_seen"), ",d") for one in found],
        "tokens/s": [format_number(one.get("tokens_per_second"), ",.0f") for one in found],
    }


def _texts(runs: Sequence[RunContents]) -> list[str | None]:
    """What tells the texts apart: the beginning of their SHA-256, or where they were read if some run does not tell that."""
    hashes = [run.part("data").get("sha256") for run in runs]
    if all(hashes):
        return [str(one)[:12] for one in hashes]
    return [run.config.get("data.path" if run.config.get("data.path") not in (None, "null") else "data.name") for run in runs]


def _tokenizer(run: RunContents) -> str | None:
    return run.record.get("tokenizer") or run.config.get("tokenizer.name")


def _differ(values: Sequence[str | None]) -> bool:
    """Whether a fact is known to be another in some of the runs."""
    return len(set(values) - {None, "-"}) > 1


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= CELL else text[: CELL - 3] + "..."
