"""What is said of a corpus once it is complete."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gpt_pretrain.prepare.corpus_folder import REJECTED
from gpt_pretrain.prepare.items import DAMAGED_ARCHIVE
from gpt_pretrain.prepare.pieces import Counts
from gpt_pretrain.prepare.rejects import told
from gpt_pretrain.system.formatting import format_count, format_si


def print_summary(manifest: dict[str, Any], counts: Counts, folder: Path) -> None:
    """Print how large the parts are, and what was left out."""
    for name, part in manifest["parts"].items():
        size = f"{format_si(part['bytes'], 'B')} of text in {format_count(len(part['shards']), 'shard')}"
        print(f"{name:5}  {format_count(part['documents'], 'document')}, {format_count(part['tokens'], 'token')}, {size}")
    if not manifest["parts"]["val"]["tokens"]:
        print("There is no validation part: all is one text, or val_fraction is 0. document_separator= divides a file.")
    if counts.empty:
        print(f"Left out: {format_count(counts.empty, 'record')} without text.")
    if manifest["duplicates"]:
        print(f"Left out: {format_count(manifest['duplicates'], 'document')} whose text came before.")
    if counts.rejected:
        file = folder / REJECTED
        print(f"Left out: {format_count(counts.rejected, 'record')} that cannot be used. {told(file)} All are in {file}.")
    if damaged := counts.by_reason.get(DAMAGED_ARCHIVE):
        print(
            f"{format_count(damaged, 'file')} could not be read to the end: what stands behind the damage is "
            f"missing from the corpus."
        )
    print(f"The corpus is complete: {folder}")
