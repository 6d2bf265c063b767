"""Parse a report page and check that it is self-contained."""

import base64
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

from gpt_pretrain.commands.report import write_report

MAX_BYTES = 2_000_000
VOID = {"meta", "link", "img", "br"}


class Page(HTMLParser):
    """The elements of a page, their attributes, and the text of each section."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.sections: dict[str, str] = {}
        self.text = ""
        self._open: list[tuple[str, str]] = []
        self.source = file.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()
        assert not self._open, "an element is not closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self._open.append((tag, dict(attrs).get("id") or ""))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        if not any(tag == "style" for tag, _ in self._open):
            self.text += data
            for tag, name in self._open:
                if tag == "section":
                    self.sections[name] = self.sections.get(name, "") + data

    def values(self, name: str, tag: str | None = None) -> list[str]:
        return [value for kind, attribute, value in self.attributes if attribute == name and tag in (None, kind)]


def check_self_contained(page: Page) -> None:
    """Check that a page loads nothing and runs nothing."""
    assert not {"script", "iframe", "object", "embed", "form", "base", "svg"} & set(page.tags)
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    for source in page.values("src"):
        assert source.startswith("data:image/svg+xml;base64,")
        tree = ET.fromstring(base64.b64decode(source.partition(",")[2]))
        used = {value for element in tree.iter() for name, value in element.attrib.items() if name.endswith("href")}
        assert all(value.startswith("#") for value in used)
    for link in page.values("href"):
        assert link.startswith(("./", "data:,")), link
    assert not re.search(r"url\(|@import|https?://", page.source)
    (policy,) = [value for value in page.values("content") if "default-src" in value]
    assert "default-src 'none'" in policy and "script-src" not in policy
    assert all(page.values("alt", "img"))


def report(folder: Path) -> Page:
    """Write the report page of a folder, and read it."""
    file = write_report(folder)
    assert file == folder / "report.html"
    assert file.stat().st_size < MAX_BYTES
    page = Page(file)
    check_self_contained(page)
    return page
