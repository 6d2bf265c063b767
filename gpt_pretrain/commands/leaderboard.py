"""Rank runs on the same text by their bits per byte on held-out text.

Usage: gpt-pretrain leaderboard [FILE ...] [out=results.json]

  FILE  results file from someone else, or a folder with runs, to rank together with the runs below outputs/
  out   results file to write (.json), with all runs that are shown; others can rank their runs beside yours

There is a table for each text, which is recognized by its hash, and for each held-out part of a text. A results file contains the
results, the size and the settings of runs and the name of the machine's processor, but no paths and nothing of the text.
Its content is not verified.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from gpt_pretrain.commands.command_line.arguments import parse_arguments
from gpt_pretrain.config.command_schema import LeaderboardSettings
from gpt_pretrain.errors import UserError
from gpt_pretrain.runs.folder import OUTPUTS, display_path
from gpt_pretrain.runs.leaderboard import Entry, find_entries, group_by_text, letter_machines, merge, this_machine
from gpt_pretrain.runs.metadata import FINISHED
from gpt_pretrain.runs.results_file import read_results, write_results
from gpt_pretrain.system.checkout import script_command
from gpt_pretrain.system.environment import user_path
from gpt_pretrain.system.formatting import format_count, format_duration, format_si, shorten_middle
from gpt_pretrain.system.tables import format_table
from gpt_pretrain.system.terminal import escape_line, print_escaped

MAX_SETTINGS_SHOWN, MAX_NAME_SHOWN = 80, 48  # characters
MAX_ROWS, MAX_TABLES = 50, 50  # rows of a table; tables

Column = tuple[str, Callable[[Entry], str]]


def leaderboard_command(arguments: list[str]) -> None:
    """Print the leaderboard of each text. Write a results file if one is named."""
    settings = parse_arguments(arguments, LeaderboardSettings, usage=__doc__ or "", positional="sources")
    out = None if settings.out is None else user_path(settings.out)
    entries, unknown = _collect(settings.sources, out)
    if unknown:
        print_escaped(
            f"{format_count(unknown, 'run')} left out, because no bits per byte were recorded. Either the vocabulary lacks parts "
            "of the text, or an earlier version made the run. Such a run is measured by "
            f"{script_command('evaluate.py')} checkpoint=RUN.",
            file=sys.stderr,
        )
    if not entries:
        start = f"{script_command('train.py')} data.path=book.txt"
        print_escaped(f"No run below {OUTPUTS}/ has bits per byte yet. Train one: {start}")
        return
    print_escaped(format_leaderboard(entries, own_machine=this_machine()))
    if out is not None:
        write_results(entries, out)
        print_escaped(f"\n{format_count(len(entries), 'run')} in {display_path(out)}")


def format_leaderboard(entries: Sequence[Entry], *, own_machine: str) -> str:
    """Format a ranking of the runs on each text, and the list of machines.

    Args:
        own_machine: The beginning of this machine's name.
    """
    groups = group_by_text(entries)
    used = {entry.machine for group in groups[:MAX_TABLES] for entry in group[:MAX_ROWS]}
    shown = [entry for entry in entries if entry.machine in used]
    machines = letter_machines(sorted(shown, key=lambda one: not one.machine.startswith(own_machine)))
    lines = []
    for group in groups[:MAX_TABLES]:
        lines += [_describe_part(group[0]), format_table(_rows(group, machines)), *_notes(group), ""]
    if len(groups) > MAX_TABLES:
        lines += [f"{format_count(len(groups) - MAX_TABLES, 'more text')} not shown.", ""]
    for machine, letter in machines.items():
        own = " (this one)" if machine and machine.startswith(own_machine) else ""
        lines.append(f"machine {letter}{own}: {escape_line(machine) or 'unknown'}")
    return "\n".join(lines)


def _collect(names: Sequence[str], out: Path | None) -> tuple[list[Entry], int]:
    """Return the entries of all sources, and the number of runs without bits per byte.

    Raises:
        UserError: If a source is missing or cannot be read, or out is not a JSON file. It lists all problems together.
    """
    problems = []
    if out is not None and out.suffix.lower() != ".json":
        problems.append(f"out={out}: must end in .json.")
    entries, unknown = find_entries(OUTPUTS)
    for name in names:
        path = user_path(name)
        try:
            if path.is_dir():
                found, without = find_entries(path)
                if not found and not without:
                    print_escaped(f"{name}: there is no trained run in this folder.", file=sys.stderr)
                # A folder below outputs/ is searched anyway, so naming it adds nothing.
                is_searched = path.resolve().is_relative_to(OUTPUTS.resolve())
                entries, unknown = entries + found, unknown + (0 if is_searched else without)
            elif not path.exists():
                problems.append(f"{name}: no such file or folder. Give results files (.json) or folders with runs.")
            else:
                entries += read_results(path)
        except UserError as error:
            problems += error.problems
    if problems:
        raise UserError(problems)
    return merge(entries), unknown


def _describe_part(entry: Entry) -> str:
    """Describe the text of a table and its held-out part."""
    name, digest = escape_line(entry.text_name) or "a text", escape_line(entry.text_sha256[:12])
    facts = [f"{entry.text_characters:,} characters"] if entry.text_characters else []
    facts += [f"SHA-256 {digest}"] if digest else ["its hash is unknown, so it may be several texts"]
    held_out = "" if entry.train_ratio is None else f", validated on the last {1 - entry.train_ratio:.3g} of it"
    return f"{name} ({', '.join(facts)}){held_out}"


def _rows(group: Sequence[Entry], machines: dict[str, str]) -> list[list[str]]:
    """Return the ranking of a text as rows of text, with the heading first. Columns without information are left out."""
    columns: list[Column] = [
        ("bits per byte", lambda one: f"{one.bits_per_byte:.4f}"),
        ("validated on", lambda one: "-" if one.validated is None else f"{one.validated:.0%}"),
        ("time", lambda one: "-" if one.seconds is None else format_duration(one.seconds)),
        ("budget", lambda one: one.budget or "-"),
        ("parameters", lambda one: _amount(one.parameters)),
        ("tokens seen", lambda one: _amount(one.tokens_seen)),
        ("vocabulary", lambda one: shorten_middle(one.tokenizer or "-", MAX_NAME_SHOWN)),
        ("machine", lambda one: machines[one.machine]),
        ("began with", lambda one: one.init_from or "-"),
        ("state", lambda one: one.state or "-"),
        ("from", lambda one: one.source or "-"),
        ("run", lambda one: shorten_middle(one.run, MAX_NAME_SHOWN)),
        ("settings", lambda one: shorten_middle(" ".join(one.settings) or "-", MAX_SETTINGS_SHOWN)),
    ]
    plain = {"validated on": "100%", "budget": "-", "began with": "-", "state": FINISHED, "from": "-"}
    shown = group[:MAX_ROWS]
    cells = {name: [describe(entry) for entry in shown] for name, describe in columns}
    kept = [name for name in cells if any(cell != plain.get(name) for cell in cells[name])]
    ranks = [str(1 + sum(other.bits_per_byte < entry.bits_per_byte for other in group)) for entry in shown]
    return [["rank", *kept], *([rank, *(cells[name][n] for name in kept)] for n, rank in enumerate(ranks))]


def _notes(group: Sequence[Entry]) -> list[str]:
    """Return notes on comparing the runs of a text."""
    notes = []
    if len(group) > MAX_ROWS:
        notes.append(f"{format_count(len(group) - MAX_ROWS, 'more run')} not shown.")
    if any(entry.validated != 1.0 for entry in group):
        notes.append(
            "Runs that validated on only a part of the held-out text have estimates. To compare them on all of it: "
            f"{script_command('evaluate.py')} 'models=[RUN,RUN2]'"
        )
    if any(entry.init_from is not None for entry in group):
        notes.append("Weights that a run began with may have seen the held-out text.")
    return notes


def _amount(number: int | None) -> str:
    return "-" if number is None else format_si(number, "").strip()
