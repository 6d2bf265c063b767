"""What is said of a corpus once it is complete."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gpt_pretrain.prepare.corpus_folder import REJECTED
from gpt_pretrain.prepare.items import DAMAGED_ARCHIVE
from gpt_pretrain.prepare.pieces import Counts
from gpt_pretrain.prepare.rejects import told
from gpt_pretrain.system.formatting import count, scaled


def print_summary(manifest: dict[str, Any], counts: Counts, folder: Path) -> None:
    """Print how large the parts are, and what was left out."""
    for name, part in manifest["parts"].items():
        size = f"{scaled(part['bytes'], 'B')} of text in {count(len(part['shards']), 'shard')}"
        print(f"{name:5}  {count(part['documents'], 'document')}, {count(part['tokens'], 'token')}, {size}")
    if not manifest["parts"]["val"]["tokens"]:
        print("There is no validation part: all is one text, or val_fraction is 0. document_separator= divides a file.")
    if counts.empty:
        print(f"Left out: {count(counts.empty, 'record')} without text.")
    if manifest["duplicates"]:
        print(f"Left out: {count(manifest['duplicates'], 'document')} whose text came before.")
    if counts.rejected:
        file = folder / REJECTED
        print(f"Left out: {count(counts.rejected, 'record')} that cannot be used. {told(file)} All are in {file}.")
    if damaged := counts.by_reason.get(DAMAGED_ARCHIVE):
        print(f"{count(damaged, 'file')} could not be read to the end: what stands behind the damage is missing from the corpus.")
    print(f"The corpus is complete: {folder}")
