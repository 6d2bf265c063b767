"""The folder that a corpus is written to: what is there already, and who may write."""

from __future__ import annotations

FORMAT, VERSION = "gpt-pretrain shards", 1


MANIFEST = "manifest.json"
