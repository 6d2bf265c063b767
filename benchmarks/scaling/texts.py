"""The texts of the study: manuals, code, another language, a play and prose, from files in packages."""

from __future__ import annotations

import gzip
import random
import re
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.learn import python_documentation

HELD_OUT_BYTES = 60_000  # at most a tenth of a text
MANUALS = Path("/usr/share/man")  # has a folder for each language, from manpages-fr and other packages
FORTUNES = Path("/usr/share/games/fortunes")  # of the package fortunes
EDITOR = Path("/usr/share/vim")  # of the package vim-runtime
PERL = Path("/usr/share/perl")  # of the package perl-modules
NPM = Path("/usr/lib/node_modules")
HEADERS = Path("/usr/include/linux")  # of the package linux-libc-dev
MARKUP = re.compile(r"^\.\\\".*\n|^\.[A-Za-z]+ ?|\\f[A-Z]|\\&|\\(?=-)", re.MULTILINE)


@dataclass(frozen=True)
class StudyText:
    """A text with a held-out end."""

    name: str
    text: str
    held_out: str

    def training(self, n_bytes: int) -> str:
        """Return this many bytes of the beginning.

        Raises:
            ValueError: If there are fewer.
        """
        content = self.text.encode()
        if len(content) < n_bytes:
            raise ValueError(f"{self.name} has {len(content):,} bytes to train on, not {n_bytes:,}")
        return content[:n_bytes].decode(errors="ignore")


def split_text(name: str, text: str) -> StudyText:
    """Hold out the end of a text."""
    content = text.replace("\r\n", "\n").replace("<|endoftext|>", "").encode()
    cut = len(content) - min(HELD_OUT_BYTES, len(content) // 10)
    return StudyText(name, content[:cut].decode(errors="ignore"), content[cut:].decode(errors="ignore"))


def load_texts(files: dict[str, Path]) -> dict[str, StudyText]:
    """Return the texts that are available on this machine, and the texts in given files."""
    own = {
        "manual": python_documentation(),
        "code": python_code(),
        "german": manual_pages("de"),
        "french": manual_pages("fr"),
        "quotes": quotations(),
        "vim": editor_manual(),
        "perl": source_files(PERL, "*.p[mo]*"),
        "script": source_files(NPM, "*.js"),
        "headers": source_files(HEADERS, "*.h"),
    }
    return {
        name: split_text(name, text)
        for name, text in (own | {name: file.read_text() for name, file in files.items()}).items()
        if text
    }


def python_code(n_bytes: int = 2_500_000) -> str:
    """Return source files of the standard library, in a fixed random order."""
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    return _shuffled((file.read_text(encoding="utf-8", errors="ignore") for file in files), n_bytes)


def manual_pages(language: str, n_bytes: int = 2_500_000) -> str:
    """Return the text of manual pages with little of their markup; empty if this machine has none."""
    files = sorted((MANUALS / language).glob("man*/*.gz"))
    return _shuffled((MARKUP.sub("", gzip.decompress(file.read_bytes()).decode(errors="ignore")) for file in files), n_bytes)


def quotations(n_bytes: int = 2_600_000) -> str:
    """Return the quotations of `fortune`; empty if this machine has none."""
    files = [file for file in sorted(FORTUNES.glob("*")) if not file.suffix]
    return _shuffled((one for file in files for one in file.read_text(encoding="utf-8", errors="ignore").split("\n%\n")), n_bytes)


def editor_manual(n_bytes: int = 9_500_000) -> str:
    """Return the manual of Vim; empty if this machine has none."""
    files = sorted(EDITOR.glob("vim*/doc/*.txt"))
    return _shuffled((file.read_text(encoding="utf-8", errors="ignore") for file in files), n_bytes)


def source_files(folder: Path, pattern: str, n_bytes: int = 1_000_000) -> str:
    """Return source files of a folder, which repeat licenses and other passages; empty if this machine has none."""
    files = sorted(file for file in folder.rglob(pattern) if file.is_file())
    return _shuffled((file.read_text(encoding="utf-8", errors="ignore") for file in files), n_bytes)


def _shuffled(pieces: Iterable[str], n_bytes: int) -> str:
    chosen = sorted(set(pieces))
    random.Random(1).shuffle(chosen)
    return "\n\n".join(chosen).encode()[:n_bytes].decode(errors="ignore")
