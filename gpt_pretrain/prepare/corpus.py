"""What a corpus is made of: where its items come from, and what tells it from another."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt_pretrain.config.command_schema import PrepareSettings
from gpt_pretrain.prepare.items import Item, ReadPosition
from gpt_pretrain.prepare.reading import Reading, read
from gpt_pretrain.prepare.sources import InputFile, find_sources
from gpt_pretrain.prepare.tables import describe_dataset, read_dataset

ESCAPES = {"\\n": "\n", "\\t": "\t", "\\r": "\r"}  # in a separator


@dataclass(frozen=True)
class CorpusInputs:
    """What is to be read.

    Args:
        reader: gives all items from a place on.
        source: what was read, as the manifest has it.
        stamps: the same, with what tells whether it was changed meanwhile.
        size: bytes to be read; None where nobody knows.
        files: what is read, in order; none of a data set.
        reading: how they are read.
    """

    reader: Callable[[ReadPosition], Iterator[Item]]
    source: list[dict[str, Any]]
    stamps: list[dict[str, Any]]
    size: int | None
    files: list[InputFile]
    reading: Reading


def find_corpus(settings: PrepareSettings, *, out: Path) -> CorpusInputs:
    """The corpus that the settings name.

    Raises:
        UserError: when something of it is not there.
    """
    reading = Reading(settings.text_field, unescaped(settings.document_separator))
    if settings.dataset is not None:
        named = (settings.dataset, settings.dataset_config, settings.dataset_split)
        about, stamp = describe_dataset(*named)
        return CorpusInputs(lambda place: read_dataset(*named, settings.text_field, place), [about], [stamp], None, [], reading)
    sources = find_sources(settings.inputs, out=out)
    source = [{"path": one.path, "bytes": one.size} for one in sources]
    stamps = [{"path": one.path, "bytes": one.size, "changed": one.changed} for one in sources]
    size = sum(one.size for one in sources)
    return CorpusInputs(lambda place: read(sources, reading, start=place), source, stamps, size, sources, reading)


def unescaped(separator: str | None) -> str | None:
    """A separator whose line ends may be typed as \\n."""
    for escape, character in ESCAPES.items():
        separator = separator and separator.replace(escape, character)
    return separator
