"""From measurements to rows, tables and the page in docs/."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from statistics import median

import psutil
import torch

from benchmarks.cases import Case
from benchmarks.measure import Measurement

PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
BEGIN, END = "<!-- written by python -m benchmarks --update-docs -->", "<!-- end -->"
COLUMNS = ("", "precision", "time", "spread", "tokens/s", "rate", "memory", "ours is", "same precision", "of the limit", "MFU")
PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}  # FLOP/s, dense bf16, by NVIDIA's data sheets; of no other device


@dataclass
class Row:
    """A subject of a case over all rounds.

    Args:
        seconds: median of the rounds' medians.
        spread: lowest and highest of them.
        tokens_per_second: None where that says nothing.
        peak_bytes: highest of the rounds.
        ratio: how many times as long it takes as ours; the median of the rounds, each of which measured both.
        same_precision: the same beside ours in its own precision, where there is such a row.
        share_of_limit: of the measured rate of products or memory that it reaches.
        notes: what else the last round told.
        mfu: of the device's peak by its data sheet, where it is one of `PEAKS`.
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


Rounds = Mapping[str, list[Measurement | None]]  # of each subject, one a round; None where it failed


def rows(name: str, case: Case, rounds: Rounds) -> list[Row]:
    """What each subject of a case reached."""
    return [_row(name, case, rounds, subject) for subject in case.subjects if _whole(rounds, subject)]


def _whole(rounds: Rounds, subject: str) -> list[Measurement]:
    return [one for one in rounds.get(subject, []) if one is not None]


def _row(name: str, case: Case, rounds: Rounds, subject: str) -> Row:
    measured, limit = _whole(rounds, subject), subject.startswith("limit: ")
    times = [median(one.seconds) for one in measured]
    seconds = median(times)
    precision = "/".join(dict.fromkeys(str(one.notes["precision"]) for one in measured if "precision" in one.notes))
    peaks = [one.peak_bytes for one in measured if one.peak_bytes is not None]
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
        notes=measured[-1].notes,
    )


def _ours_in(rounds: Rounds, precision: str) -> list[str]:
    """The row of ours in that precision, if there is one."""
    ours = [subject for subject in rounds if subject.startswith("ours")]
    return [one for one in ours if any(each.notes.get("precision") == precision for each in _whole(rounds, one))][:1]


def _ratio(rounds: Rounds, subject: str, ours: str = "") -> float | None:
    pairs = zip(rounds[subject], rounds.get(ours, []), strict=False)
    ratios = [median(theirs.seconds) / median(own.seconds) for theirs, own in pairs if theirs and own]
    return median(ratios) if ratios else None


def _share(case: Case, rounds: Rounds, seconds: float, precision: str) -> float | None:
    """Of the rate of matrix products in the same precision, or of reading memory."""
    short = "bf16" if precision.startswith("bf16") else "fp32"
    for subject, note, used in (
        (f"limit: products, {short}", "flops_per_second", case.product_flops),
        ("limit: memory", "bytes_per_second", case.weights * (2 if short == "bf16" else 4)),
    ):
        if used and _whole(rounds, subject):
            rate = median(float(one.notes[note]) for one in _whole(rounds, subject))
            return used / seconds / rate
    return None


def _mfu(flops: float, seconds: float) -> float | None:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return next((flops / seconds / peak for name, peak in PEAKS.items() if name in device), None)


def table(found: list[Row]) -> list[list[str]]:
    """Rows as texts, under `COLUMNS`, without columns that are empty."""
    texts = [[*COLUMNS]] + [_texts(row) for row in found]
    full = [number for number in range(len(COLUMNS)) if number == 0 or any(line[number] for line in texts[1:])]
    return [[line[number] for number in full] for line in texts]


def _texts(row: Row) -> list[str]:
    return [
        row.subject,
        row.precision,
        duration(row.seconds),
        f"{duration(row.spread[0])} to {duration(row.spread[1])}" if row.rounds > 1 else "",
        "" if row.tokens_per_second is None else f"{row.tokens_per_second:,.0f}",
        _rate(row.notes),
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
    """Three digits and a unit."""
    for unit, factor in (("s", 1.0), ("ms", 1e3), ("us", 1e6)):
        if seconds * factor >= 1 or unit == "us":
            return f"{seconds * factor:.3g} {unit}"
    raise AssertionError


def machine() -> str:
    """This machine and what runs on it, in a few words."""
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else _processor()
    packages = ", ".join(f"{package} {version(package)}" for package in ("torch", "lightning", "transformers"))
    memory = f"{psutil.virtual_memory().total / 2**30:.0f} GiB"
    system = f"{platform.system()}; Python {platform.python_version()}"
    return f"{where}, {torch.get_num_threads()} threads, {memory}, {system}, {packages}"


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
    """Put the tables into docs/performance.md, between its two marks; cases that were not measured keep what they have."""
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
        sections[title] = f"{title}\n\n{date.today()}, {machine()}. {case.note}\n\n{grid}\n"
    body = "".join(f"\n### {part.rstrip()}\n" for part in sections.values())
    PAGE.write_text(f"{head}{BEGIN}\n{body}\n{END}{tail}", encoding="utf-8")
