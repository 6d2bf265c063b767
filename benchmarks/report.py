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
COLUMNS = ("", "precision", "time", "spread", "tokens/s", "memory", "ours is", "same precision", "of the limit", "MFU")
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


Rounds = Mapping[str, list[Measurement]]  # of each subject, one a round


def rows(name: str, case: Case, rounds: Rounds) -> list[Row]:
    """What each subject of a case reached."""
    return [_row(name, case, rounds, subject) for subject in case.subjects if rounds.get(subject)]


def _row(name: str, case: Case, rounds: Rounds, subject: str) -> Row:
    measured = rounds[subject]
    times = [median(one.seconds) for one in measured]
    seconds, limit = median(times), subject in case.limits
    precision = str(measured[-1].notes.get("precision", ""))
    peaks = [one.peak_bytes for one in measured if one.peak_bytes is not None]
    same = [other for other in rounds if other.startswith("ours") and rounds[other][-1].notes.get("precision") == precision]
    return Row(
        case=name,
        subject=subject,
        precision=precision,
        seconds=seconds,
        spread=(min(times), max(times)),
        tokens_per_second=case.tokens / seconds if case.tokens and not limit else None,
        peak_bytes=max(peaks) if peaks else None,
        ratio=None if limit or subject.startswith("ours") else _ratio(times, rounds.get("ours", [])),
        same_precision=None if limit or subject.startswith("ours") or not same else _ratio(times, rounds[same[0]]),
        share_of_limit=None if limit else _share(case, rounds, seconds, precision),
        mfu=_mfu(case.flops, seconds) if case.flops and not limit else None,
        rounds=len(times),
    )


def _ratio(times: list[float], ours: list[Measurement]) -> float | None:
    pairs = zip(times, (median(one.seconds) for one in ours), strict=False)
    ratios = [theirs / own for theirs, own in pairs]
    return median(ratios) if ratios else None


def _share(case: Case, rounds: Rounds, seconds: float, precision: str) -> float | None:
    """Of the rate of matrix products in the same precision, or of reading memory."""
    short = "bf16" if precision.startswith("bf16") else "fp32"
    for subject, note, used in (
        (f"limit: products, {short}", "flops_per_second", case.flops),
        ("limit: memory", "bytes_per_second", case.weights * (2 if short == "bf16" else 4)),
    ):
        if used and rounds.get(subject):
            rate = median(float(one.notes[note]) for one in rounds[subject])
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
        _time(row.seconds),
        f"{_time(row.spread[0])} to {_time(row.spread[1])}" if row.rounds > 1 else "",
        "" if row.tokens_per_second is None else f"{row.tokens_per_second:,.0f}",
        "" if row.peak_bytes is None else f"{row.peak_bytes / 1e9:.2f} GB",
        "" if row.ratio is None else f"{row.ratio:.2f} x as fast",
        "" if row.same_precision is None else f"{row.same_precision:.2f} x",
        "" if row.share_of_limit is None else f"{row.share_of_limit:.0%}",
        "" if row.mfu is None else f"{row.mfu:.0%}",
    ]


def _time(seconds: float) -> str:
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
        sections[case.title] = f"{case.title}\n\n{date.today()}, {machine()}. {case.note}\n\n{grid}\n"
    body = "".join(f"\n### {part.rstrip()}\n" for part in sections.values())
    PAGE.write_text(f"{head}{BEGIN}\n{body}\n{END}{tail}", encoding="utf-8")
