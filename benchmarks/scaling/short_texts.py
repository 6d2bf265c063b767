"""Short texts of the study: single documents, or their beginnings, of 16 to 35 kB, from files of the system."""

from __future__ import annotations

import gzip
import itertools
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from benchmarks.scaling.texts import FORTUNES, MANUALS, MARKUP, StudyText

PARTS, HELD_OUT = 10, 0.2  # parts of a text whose ends are held out, and the share of each
MOST_CHARACTERS = 25_000  # of a text, except the license, which is read whole
LICENSES, CODES = Path("/usr/share/common-licenses"), Path("/usr/share/iso-codes/json")
GIVEN = ("story", "genesis")


def short_texts(files: dict[str, Path]) -> dict[str, StudyText]:
    """Return the short texts that are available on this machine, and those of the given files that are short texts."""
    paths = {
        "license": LICENSES / "GPL-3",
        "de-page": MANUALS / "de/man1/xz.1.gz",
        "configparser": Path(sysconfig.get_path("stdlib")) / "configparser.py",
        "countries": CODES / "iso_3166-1.json",
        "lesser": LICENSES / "LGPL-2.1",
        "fr-page": MANUALS / "fr/man1/dpkg.1.gz",
        "literature": FORTUNES / "literature",
        "languages": CODES / "iso_639-2.json",
        "textwrap": Path(sysconfig.get_path("stdlib")) / "textwrap.py",
    } | {name: files[name] for name in GIVEN if name in files}
    texts = {name: _content(path) for name, path in paths.items() if path.is_file()}
    return {name: _in_parts(name, text if name == "license" else text[:MOST_CHARACTERS]) for name, text in texts.items()}


def _content(path: Path) -> str:
    if path.suffix == ".gz":
        return MARKUP.sub("", gzip.decompress(path.read_bytes()).decode(errors="ignore"))
    return path.read_text(encoding="utf-8", errors="ignore")


def _in_parts(name: str, text: str) -> StudyText:
    """Hold out the end of each part of a text. The end of the text alone may be about something else."""
    return StudyText(name, *("".join(pieces) for pieces in zip(*_pieces(text), strict=True)))


def _pieces(text: str) -> Iterator[tuple[str, str]]:
    ends = [round(n * len(text) / PARTS) for n in range(PARTS + 1)]
    for start, end in itertools.pairwise(ends):
        cut = end - round((end - start) * HELD_OUT)
        yield text[start:cut], text[cut:end]
