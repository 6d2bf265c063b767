"""Tables of text for the terminal, for files and for pipes."""

from __future__ import annotations

import io
from collections.abc import Sequence

from gpt_pretrain.system.formatting import shorten_middle

MAX_CELL = 1000  # characters


def format_table(rows: Sequence[Sequence[str]]) -> str:
    """Return rows of text as aligned columns without borders. Columns of numbers are aligned to the right.

    No cell is wrapped, even in a narrow terminal. Control characters in cells are escaped, and far too long cells are cut.

    Args:
        rows: The heading first. All rows have the same length.
    """
    from rich.console import Console  # rich takes a tenth of a second to load
    from rich.table import Table
    from rich.text import Text

    from gpt_pretrain.system.terminal import escape_line

    heading, *body = [[escape_line(shorten_middle(cell, MAX_CELL)) for cell in row] for row in rows]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name, *cells in zip(heading, *body, strict=True):
        table.add_column(Text(name), no_wrap=True, justify="right" if all(map(_is_number, cells)) else "left")
    for row in body:
        table.add_row(*map(Text, row))
    console = Console(file=io.StringIO(), width=1_000_000, color_system=None)
    with console.capture() as captured:
        console.print(table)
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


def _is_number(text: str) -> bool:
    try:
        float(text.replace(",", ""))
    except ValueError:
        return text == "-"
    return True
