"""Turn measurements into rows, tables and a page in docs/."""

from __future__ import annotations

import platform
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from statistics import median

import psutil
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.cases import Case
from benchmarks.measure import Measurement
from gpt_pretrain.generation.decoding import PRECISIONS
from gpt_pretrain.system.formatting import format_count

PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
BEGIN, END = "<!-- written by python -m benchmarks --update-docs -->", "<!-- end -->"
COLUMNS = (
    "",
    "precision",
    "time",
    "spread",
    "tokens/s",
    "rate",
    "result",
    "memory",
    "ours is",
    "same precision",
    "of the limit",
    "MFU",
)
PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}  # FLOP/s of dense bf16 in NVIDIA's data sheets; no guesses
PAGE_WIDTH = 140  # characters of a line of prose


@dataclass
class Row:
    """The results of one subject of a case over all rounds.

    Args:
        seconds: Median of the rounds' medians.
        spread: Lowest and highest median of a round.
        tokens_per_second: Throughput, or None if not meaningful.
        peak_bytes: Highest peak memory of the rounds.
        ratio: Time relative to ours, as the median over rounds that measured both.
        same_precision: Time relative to ours in the same precision, if there is such a row.
        share_of_limit: Fraction of the measured limit of matrix products or memory.
        mfu: Fraction of the device's peak, if the device is in `PEAKS`.
        notes: Notes of the last round.
    """

    case: str
    subject: str
    precision: str
    seconds: float
    spread: tuple[float, float]
    tokens_per_second: float | None
    peak_bytes: int | None
    ratio: float | None
    same_precision: float | None
    share_of_limit: float | None
    mfu: float | None
    rounds: int
    notes: dict[str, float | str]


Rounds = Mapping[str, list[Measurement | None]]  # by subject, one measurement per round, None if it failed


def rows(name: str, case: Case, rounds: Rounds) -> list[Row]:
    """Return a row for each measured subject of a case."""
    return [_row(name, case, rounds, subject) for subject in case.subjects if _measured(rounds, subject)]


def _measured(rounds: Rounds, subject: str) -> list[Measurement]:
    return [measurement for measurement in rounds.get(subject, []) if measurement is not None]


def _row(name: str, case: Case, rounds: Rounds, subject: str) -> Row:
    measurements, limit = _measured(rounds, subject), subject.startswith("limit: ")
    times = [median(m.seconds) for m in measurements]
    seconds = median(times)
    precision = "/".join(dict.fromkeys(str(m.notes["precision"]) for m in measurements if "precision" in m.notes))
    peaks = [m.peak_bytes for m in measurements if m.peak_bytes is not None]
    peer = case.compared and not limit and not subject.startswith("ours")
    return Row(
        case=name,
        subject=subject,
        precision=precision,
        seconds=seconds,
        spread=(min(times), max(times)),
        tokens_per_second=case.tokens / seconds if case.tokens and not limit else None,
        peak_bytes=max(peaks) if peaks else None,
        ratio=_ratio(rounds, subject, "ours") if peer else None,
        same_precision=_ratio(rounds, subject, *_ours_in(rounds, precision)) if peer else None,
        share_of_limit=None if limit else _share(case, rounds, seconds, precision),
        mfu=_mfu(case.flops, seconds) if case.flops and not limit else None,
        rounds=len(times),
        notes=measurements[-1].notes,
    )


def _ours_in(rounds: Rounds, precision: str) -> list[str]:
    """Return our subject in this precision, if there is one."""
    ours = [subject for subject in rounds if subject.startswith("ours")]
    same = [subject for subject in ours if any(m.notes.get("precision") == precision for m in _measured(rounds, subject))]
    return same[:1]


def _ratio(rounds: Rounds, subject: str, ours: str = "") -> float | None:
    pairs = zip(rounds[subject], rounds.get(ours, []), strict=False)
    ratios = [median(theirs.seconds) / median(own.seconds) for theirs, own in pairs if theirs and own]
    return median(ratios) if ratios else None


def _share(case: Case, rounds: Rounds, seconds: float, precision: str) -> float | None:
    """Return the fraction of the measured limit of matrix products in the same precision, or of memory reads."""
    short = "bf16" if precision.startswith("bf16") else "fp32"
    for subject, note, used in (
        (f"limit: products, {short}", "flops_per_second", case.product_flops),
        ("limit: memory", "bytes_per_second", case.weights * PRECISIONS.get(precision, torch.float32).itemsize),
    ):
        if used and _measured(rounds, subject):
            rate = median(float(m.notes[note]) for m in _measured(rounds, subject))
            return used / seconds / rate
    return None


def _mfu(flops: float, seconds: float) -> float | None:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return next((flops / seconds / peak for name, peak in PEAKS.items() if name in device), None)


def table(table_rows: list[Row]) -> list[list[str]]:
    """Return the table's cells under `COLUMNS`, without empty columns."""
    texts = [[*COLUMNS]] + [_texts(row) for row in table_rows]
    full = [number for number in range(len(COLUMNS)) if number == 0 or any(line[number] for line in texts[1:])]
    return [[line[number] for number in full] for line in texts]


def show(console: Console, case: Case, found: list[Row]) -> None:
    """Print the table of a case."""
    if not found:
        return
    head, *lines = table(found)
    shown = Table(title=case.title, caption=case.note, title_justify="left", caption_justify="left")
    for number, column in enumerate(head):
        shown.add_column(column, justify="left" if number == 0 else "right", no_wrap=True)
    for line in lines:
        shown.add_row(*line)
    console.print(shown)


def _texts(row: Row) -> list[str]:
    return [
        row.subject,
        row.precision,
        duration(row.seconds),
        f"{duration(row.spread[0])} to {duration(row.spread[1])}" if row.rounds > 1 else "",
        "" if row.tokens_per_second is None else f"{row.tokens_per_second:,.0f}",
        _rate(row.notes),
        str(row.notes.get("result", "")),
        "" if row.peak_bytes is None else f"{row.peak_bytes / 1e9:.2f} GB",
        "" if row.ratio is None else f"{row.ratio:.2f} x as fast",
        "" if row.same_precision is None else f"{row.same_precision:.2f} x",
        "" if row.share_of_limit is None else f"{row.share_of_limit:.0%}",
        "" if row.mfu is None else f"{row.mfu:.0%}",
    ]


def _rate(notes: dict[str, float | str]) -> str:
    if "flops_per_second" in notes:
        return f"{float(notes['flops_per_second']) / 1e9:,.0f} GFLOP/s"
    return f"{float(notes['bytes_per_second']) / 1e9:.1f} GB/s" if "bytes_per_second" in notes else ""


def duration(seconds: float) -> str:
    """Format seconds with three digits and a unit."""
    for unit, factor in (("s", 1.0), ("ms", 1e3), ("us", 1e6)):
        if seconds * factor >= 1 or unit == "us":
            return f"{seconds * factor:.3g} {unit}"
    raise AssertionError


def machine() -> str:
    """Describe this machine and the versions of its packages."""
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else _processor()
    packages = ", ".join(f"{package} {version(package)}" for package in ("torch", "lightning", "transformers"))
    memory = f"{psutil.virtual_memory().total / 2**30:.0f} GiB"
    system = f"{platform.system()}; Python {platform.python_version()}"
    return f"{where}, {format_count(torch.get_num_threads(), 'thread')}, {memory}, {system}, {packages}"


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return platform.processor()
    lines = path.read_text().split("\n\n")[0].splitlines()
    fields = {key.strip(): value.strip() for key, colon, value in (line.partition(":") for line in lines) if colon}
    kinds = [kind for kind in ("avx512f", "avx512_bf16", "amx_bf16") if kind in fields.get("flags", "").split()]
    family, model = fields.get("cpu family", "?"), fields.get("model", "?")
    return f"{fields.get('model name', platform.machine())} (family {family}, model {model}, {' '.join(kinds)})"


def update_page(cases: Mapping[str, Case], found: Mapping[str, list[Row]]) -> None:
    """Write the tables between the two marks of docs/performance.md. Other cases keep their tables."""
    text = PAGE.read_text(encoding="utf-8")
    head, rest = text.split(BEGIN)
    old, tail = rest.split(END)
    sections = {part.split("\n", 1)[0]: part for part in old.split("\n### ")[1:]}
    for name, case_rows in found.items():
        case = cases[name]
        lines = table(case_rows)
        marks = [["---"] * len(lines[0])]
        grid = "\n".join("| " + " | ".join(line) + " |" for line in [lines[0], *marks, *lines[1:]])
        title = case.title + (f" ({torch.cuda.get_device_name()})" if torch.cuda.is_available() else "")
        about = textwrap.fill(f"{date.today()}, {machine()}. {case.note}", PAGE_WIDTH, break_on_hyphens=False)
        sections[title] = f"{title}\n\n{about}\n\n{grid}\n"
    body = "".join(f"\n### {part.rstrip()}\n" for part in sections.values())
    PAGE.write_text(f"{head}{BEGIN}\n{body}\n{END}{tail}", encoding="utf-8")
