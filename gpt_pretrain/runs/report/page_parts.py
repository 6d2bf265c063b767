"""The common parts of report pages: safe text, pictures, lists of files, and the templates."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from gpt_pretrain.runs.charts.drawing import to_data_uri
from gpt_pretrain.runs.folder import EXPORTED, REPORT
from gpt_pretrain.runs.metadata import FAILED, FINISHED, INTERRUPTED, PRUNED, RUNNING
from gpt_pretrain.system.formatting import format_si

SHARED_TEMPLATES = "gpt_pretrain.runs.report"
MAX_FILES = 40
CONTROL_CHARACTERS = {code: "\ufffd" for code in [*range(0x20), *range(0x7F, 0xA0)] if chr(code) not in "\n\t"}
STATES = {
    FINISHED: "finished",
    FAILED: "failed",
    INTERRUPTED: "interrupted",
    PRUNED: "pruned",
    RUNNING: "running, or killed",
}


@dataclass(frozen=True)
class Picture:
    """A figure on a page.

    Args:
        uri: The image as a data URI.
        title: The caption above it.
        alt: A description for readers who cannot see it.
        width: "half" or "wide"; "panels" for several plots in a row. On a phone, these scroll sideways.
    """

    uri: str
    title: str
    alt: str
    width: str = "half"


@dataclass(frozen=True)
class ListedFile:
    """A file in the list of files of a page."""

    href: str
    name: str
    size: str
    purpose: str


def make_picture(figure: Figure, title: str, alt: str, *, width: str = "half") -> Picture:
    """Convert a figure to a picture."""
    return Picture(to_data_uri(figure), title, alt, width)


def printable(text: object) -> str:
    """Replace the characters that an HTML page cannot contain: control characters and unpaired surrogates."""
    return str(text).encode("utf-8", errors="replace").decode().translate(CONTROL_CHARACTERS)


def shorten(text: object, limit: int) -> str:
    """Return a printable text, cut after `limit` characters with a note of its full length."""
    full = str(text)
    return printable(full) if len(full) <= limit else f"{printable(full[:limit])} ... (cut; {len(full):,} characters in total)"


def facts_table(*rows: tuple[str, object]) -> list[tuple[str, str]]:
    """Return the names and values that are known."""
    known = [(name, shorten(value, 2_000)) for name, value in rows if value is not None]
    return [(name, value) for name, value in known if value.strip() not in ("", "-")]


def file_href(*parts: str) -> str:
    """Return a relative link to a file. It starts with "./", so that a name with a colon is not taken for a URL scheme."""
    return "./" + "/".join(quote(part, errors="surrogateescape") for part in parts)


def list_files(folder: Path, purposes: dict[str, str]) -> list[ListedFile]:
    """List the files in a folder. Files with a known purpose come first, in the order of `purposes`."""
    found = [path for path in folder.iterdir() if path.is_file() or path.name == EXPORTED]
    found = [path for path in found if not path.name.startswith(".") and path.name != REPORT]
    if (checkpoints := folder / "checkpoints").resolve().is_relative_to(folder.resolve()):
        found += sorted(checkpoints.glob("*.ckpt"), reverse=True)
    order = list(purposes)
    found.sort(key=lambda path: (order.index(path.name) if path.name in order else len(order), path.name))
    return [_list_file(path, folder, purposes) for path in found[:MAX_FILES]]


def read_findings(metadata: dict[str, Any], *, limit: int = 50, text_limit: int = 600) -> list[dict[str, str]]:
    """Return the findings of the health monitor: the sign, the step and the text of each.

    Args:
        limit: Number of findings.
        text_limit: Characters of each text.
    """
    stored = metadata.get("findings")
    found = [entry for entry in stored if isinstance(entry, dict)] if isinstance(stored, list) else []
    return [{name: shorten(entry.get(name, ""), text_limit) for name in ("sign", "step", "text")} for entry in found[:limit]]


def describe_state(state: str) -> str:
    """Return a state in words."""
    return STATES.get(state, "unknown state")


def join_distinct(texts: Iterable[object]) -> str:
    """Return the known texts in the order given, without repetitions, separated by commas."""
    return ", ".join(dict.fromkeys(printable(text) for text in texts if text not in (None, "", "-")))


def render_page(template: str, *, package: str = SHARED_TEMPLATES, **values: Any) -> str:
    """Render a page from a template. The values are inserted as text, never as markup.

    Args:
        template: The file name of the template.
        package: The package whose folder `templates` holds it. The shared templates of this package can be included too.
    """
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(package), PackageLoader(SHARED_TEMPLATES)]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style, _, _ = environment.loader.get_source(environment, "style.css")  # type: ignore[union-attr]
    return environment.get_template(template).render(style=Markup(style), **values)


def _list_file(path: Path, folder: Path, purposes: dict[str, str]) -> ListedFile:
    parts = path.relative_to(folder).parts
    purpose = purposes.get(path.name, "")
    if path.name.startswith("events.out.tfevents"):
        purpose = "all metrics, for TensorBoard"
    elif path.suffix == ".ckpt" and not purpose:
        purpose = "an earlier checkpoint"
    try:
        size = "link" if path.is_symlink() else format_si(path.stat().st_size, "B") if path.is_file() else "folder"
    except OSError:
        size = ""
    return ListedFile(file_href(*parts), shorten("/".join(parts), 200), size, purpose)
