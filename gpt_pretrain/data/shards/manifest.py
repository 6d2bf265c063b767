"""This program's own format of token shards: a manifest.json beside the files that it lists."""

from __future__ import annotations

import logging
import re
from typing import Any

from gpt_pretrain.data.files import FILE_NAME, Files
from gpt_pretrain.data.shards.bare_tokens import explain_lost_manifest
from gpt_pretrain.data.shards.corpus import MAX_COUNT, CorpusPart, TokenCorpus
from gpt_pretrain.data.token_stream import Shard
from gpt_pretrain.errors import UserError, describe_damage
from gpt_pretrain.system.formatting import format_count
from gpt_pretrain.system.json_files import parse_json
from gpt_pretrain.system.reading import DamagedFileError
from gpt_pretrain.system.reading_cost import add_size
from gpt_pretrain.system.shown_values import short_repr
from gpt_pretrain.system.terminal import escape_line

FORMAT, VERSION = "gpt-pretrain shards", 1
MANIFEST = "manifest.json"
MAX_MANIFEST = 100_000_000  # bytes; a shard takes 400
PLAN = ".work/plan.json"  # exists until the corpus is complete

log = logging.getLogger(__name__)


def has_manifest(files: Files) -> bool:
    """Return whether a folder holds a complete corpus of this format."""
    return files.size(MANIFEST) is not None


def open_prepared(files: Files) -> TokenCorpus:
    """Read the manifest of a corpus.

    Raises:
        UserError: If the manifest is missing, damaged or of another version.
    """
    size = files.size(MANIFEST)
    if size is None:
        denial = getattr(files, "denial", "")
        reason = f" {denial}" if denial else explain_missing_manifest(files)
        raise UserError(f"data.path={files.location}: {MANIFEST} is missing.{reason}")
    try:
        if size > MAX_MANIFEST:
            raise DamagedFileError(f"it has more than {MAX_MANIFEST:,} bytes")
        add_size(MANIFEST, size)
        content = parse_json(files.read(MANIFEST, 0, size))
        corpus = _describe_corpus(files, content)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"data.path={files.location}: {MANIFEST} is damaged: {describe_damage(error)}. Copy it again, or prepare the "
            "corpus again."
        ) from error
    if isinstance(failed := content.get("failed_files"), list) and failed:
        log.warning(
            "%s: the corpus is incomplete. %s could not be read to the end when it was prepared; %s lists them.",
            escape_line(files.location),
            format_count(len(failed), "file"),
            MANIFEST,
        )
    return corpus


def _describe_corpus(files: Files, content: Any) -> TokenCorpus:
    """Return the corpus that the content of a manifest describes. A damaged manifest may raise any exception.

    Raises:
        UserError: If the manifest is of another version.
    """
    if (content["format"], content["version"]) != (FORMAT, VERSION):
        raise UserError(
            f"data.path={files.location}: {MANIFEST} has format {short_repr(content['format'])}, version "
            f"{short_repr(content['version'])}, but this program reads {FORMAT!r}, version {VERSION}. "
            "Prepare the corpus again with gpt-pretrain prepare."
        )
    itemsize = {2: 2, 4: 4}[content["itemsize"]]
    parts = {name: _read_part(files, part, itemsize) for name, part in content["parts"].items()}
    train, val, tokenizer = parts["train"], parts.get("val"), content["tokenizer"]
    if val is not None and not any(shard.count for shard in val.shards):
        val = None
    name, sha256 = str(tokenizer["name"]), str(tokenizer["sha256"])
    return TokenCorpus(files, "gpt_pretrain", train, val, tokenizer=name, tokenizer_sha256=sha256)


def explain_missing_manifest(files: Files) -> str:
    """Return a sentence about an unfinished or incomplete corpus of this format, or an empty string if there is none."""
    if files.size(PLAN) is not None:
        return " The corpus is unfinished: its manifest is written last. Run the command that prepares it again to resume."
    has_shards = any(re.match(r"\.?(train|val)-\d+\.(bin|idx)", name) for name in files.names())
    return explain_lost_manifest(files, MANIFEST) if has_shards else ""


def _read_part(files: Files, part: dict[str, Any], itemsize: int) -> CorpusPart:
    shards = [
        Shard(files, str(entry["file"]), int(entry["tokens"]), itemsize, sha256=str(entry["sha256"])) for entry in part["shards"]
    ]
    if any(FILE_NAME.fullmatch(shard.name) is None or not 0 <= shard.count < MAX_COUNT for shard in shards):
        raise ValueError("a shard has an invalid name or length")
    documents, n_bytes = int(part["documents"]), int(part["bytes"])
    if not 0 <= documents < MAX_COUNT or not 0 <= n_bytes < MAX_COUNT:
        raise ValueError("an invalid number of documents or bytes")
    return CorpusPart(tuple(shards), documents=documents, n_bytes=n_bytes)
