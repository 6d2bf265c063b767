"""What the pages of runs and sweeps share: safe text, parts of one form, and the templates that put them together."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from gpt_pretrain.runs.charts.drawing import data_uri
from gpt_pretrain.runs.folder import EXPORTED
from gpt_pretrain.runs.metadata import FAILED, FINISHED, INTERRUPTED, PRUNED, RUNNING
from gpt_pretrain.system.formatting import format_si

FILES = 40  # listed at most
CONTROLS = {code: "\ufffd" for code in [*range(0x20), *range(0x7F, 0xA0)] if chr(code) not in "\n\t"}
STATES = {
    FINISHED: "finished",
    FAILED: "failed",
    INTERRUPTED: "interrupted",
    PRUNED: "pruned",
    RUNNING: "running, or killed before it could say so",
}
PURPOSES = {
    "losses.png": "the loss curve",
    "losses.pdf": "the loss curve, for print",
    "samples.txt": "all samples",
    "metrics.csv": "every metric by step",
    "train.log": "what was printed",
    "config.yaml": "all settings",
    "run.json": "this page's facts, for programs",
    "summary.csv": "the ranked jobs, as a table",
    "summary.png": "one plot for each swept setting",
    "multirun.yaml": "what the sweep was started with",
    "study.journal": "the trials of the search",
    "last.ckpt": "weights and optimizer of the last step saved",
    "best.ckpt": "those with the lowest validation loss",
    EXPORTED: "the weights, for transformers",
}


@dataclass(frozen=True)
class Picture:
    """A figure on a page.

    Args:
        uri: the image itself.
        title: what stands above it.
        alt: what it shows, for those who do not see it.
        look: "half" or "wide" of the page; "panels" beside one another, to be scrolled sideways on a phone.
    """

    uri: str
    title: str
    alt: str
    look: str = "half"


@dataclass(frozen=True)
class File:
    """A file on a page: where it is from here, its name, its size and what it is."""

    href: str
    name: str
    size: str
    purpose: str


def picture(figure: Figure, title: str, alt: str, *, look: str = "half") -> Picture:
    """A figure, ready for a page."""
    return Picture(data_uri(figure), title, alt, look)


def visible(text: object) -> str:
    """A text with signs that a page cannot hold, control characters and halves of surrogate pairs, replaced."""
    return str(text).encode("utf-8", errors="replace").decode().translate(CONTROLS)


def shorten(text: object, most: int) -> str:
    """A text of at most so many characters, which says how many it had."""
    whole = str(text)
    return visible(whole) if len(whole) <= most else f"{visible(whole[:most])} ... (cut here; {len(whole):,} characters in all)"


def facts_table(*rows: tuple[str, object]) -> list[tuple[str, str]]:
    """Names and values, without those that are not known."""
    known = [(name, shorten(value, 2_000)) for name, value in rows if value is not None]
    return [(name, value) for name, value in known if value.strip() not in ("", "-")]


def href(*parts: str) -> str:
    """The address of a file from the page's folder; a name with a colon is not taken for another protocol."""
    return "./" + "/".join(quote(part, errors="surrogateescape") for part in parts)


def listed(folder: Path) -> list[File]:
    """The files of a folder that a reader may want, those with a known purpose first."""
    found = [path for path in folder.iterdir() if path.is_file() or path.name == EXPORTED]
    found = [path for path in found if not path.name.startswith(".") and path.name != "report.html"]
    found += sorted((folder / "checkpoints").glob("*.ckpt"), reverse=True)
    order = list(PURPOSES)
    found.sort(key=lambda path: (order.index(path.name) if path.name in order else len(order), path.name))
    return [_file(path, folder) for path in found[:FILES]]


def findings(record: dict[str, Any], *, most: int = 50, text: int = 600) -> list[dict[str, str]]:
    """What the doctor has noted in a record: sign, step and text of each.

    Args:
        most: of them.
        text: characters of each.
    """
    noted = record.get("findings")
    found = [entry for entry in noted if isinstance(entry, dict)] if isinstance(noted, list) else []
    return [{name: shorten(entry.get(name, ""), text) for name in ("sign", "step", "text")} for entry in found[:most]]


def state_words(state: str) -> str:
    """A state in words."""
    return STATES.get(state, "of unknown state")


def ending(record: dict[str, Any]) -> str:
    """What ended a run that did not come to its end."""
    return str(record.get("error") or "")


def render(template: str, **parts: Any) -> str:
    """A page from its template; whatever the parts hold is text, and never markup."""
    environment = Environment(
        loader=PackageLoader("gpt_pretrain.runs.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    source, _, _ = environment.loader.get_source(environment, "style.css")  # type: ignore[union-attr]
    return environment.get_template(template).render(style=Markup(source), **parts)


def _file(path: Path, folder: Path) -> File:
    parts = path.relative_to(folder).parts
    purpose = PURPOSES.get(path.name, "")
    if path.name.startswith("events.out.tfevents"):
        purpose = "every metric, for TensorBoard"
    elif path.suffix == ".ckpt" and not purpose:
        purpose = "an earlier checkpoint"
    try:
        measured = format_si(path.stat().st_size, "B") if path.is_file() else "folder"
    except OSError:
        measured = ""
    return File(href(*parts), shorten("/".join(parts), 200), measured, purpose)


def joined(words: Iterable[object]) -> str:
    """Words beside one another, in the order given, none twice."""
    return ", ".join(dict.fromkeys(visible(word) for word in words if word not in (None, "", "-")))
