"""The formats of token shards that can be read. A new format needs a file like `nanogpt` and one line in FORMATS."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from gpt_pretrain.data.files import Files, LocalFiles
from gpt_pretrain.data.shards.bare_tokens import MAX_LOOKED_AT, explain_bare_tokens
from gpt_pretrain.data.shards.corpus import TokenCorpus
from gpt_pretrain.data.shards.llmc import find_llama3_shard, is_llmc, open_llmc
from gpt_pretrain.data.shards.manifest import explain_missing_manifest, has_manifest, open_prepared
from gpt_pretrain.data.shards.nanogpt import is_nanogpt, open_nanogpt
from gpt_pretrain.data.shards.numpy_shards import is_numpy, open_numpy
from gpt_pretrain.errors import UserError
from gpt_pretrain.system.reading_cost import explained_by_size
from gpt_pretrain.texts.left_out import LeftOut
from gpt_pretrain.texts.recognition import recognize_file


@dataclass(frozen=True)
class CorpusFormat:
    """A format of token shards.

    Args:
        matches: Returns whether a folder is in this format.
        open: Describes a folder in this format.
    """

    matches: Callable[[Files], bool]
    open: Callable[[Files], TokenCorpus]


# The values of data.format. With data.format=auto the first match counts.
FORMATS = {
    "gpt_pretrain": CorpusFormat(has_manifest, open_prepared),
    "llmc": CorpusFormat(is_llmc, open_llmc),
    "nanogpt": CorpusFormat(is_nanogpt, open_nanogpt),
    "numpy": CorpusFormat(is_numpy, open_numpy),
}


def open_corpus(files: Files, *, format_name: str = "auto") -> TokenCorpus:
    """Open a folder of token shards.

    Args:
        format_name: A key of FORMATS, or "auto" to detect it.

    Raises:
        UserError: If the folder holds no shards, or the corpus is unfinished.
    """
    with explained_by_size(files.location):
        return _open_corpus(files, format_name=format_name)


def _open_corpus(files: Files, *, format_name: str) -> TokenCorpus:
    if format_name != "auto":
        return FORMATS[format_name].open(files)
    for candidate in FORMATS.values():
        if candidate.matches(files):
            return candidate.open(files)
    if (name := find_llama3_shard(files)) is not None:
        raise UserError(
            f"data.path={files.location}: {name} is an llm.c shard for Llama 3, and this program has no tokenizer for Llama 3. "
            "Prepare the text with gpt-pretrain prepare."
        )
    explained = explain_missing_manifest(files) or explain_bare_tokens(files)
    raise UserError(
        f"data.path={files.location}: there are no token shards that can be read.{_describe_contents(files)}{explained} Give a "
        "folder with manifest.json (made by gpt-pretrain prepare), nanoGPT's train.bin and val.bin, llm.c's *_train_*.bin and "
        "*_val_*.bin, or *train*.npy and *val*.npy."
    )


def _describe_contents(files: Files) -> str:
    """Return what a local folder contains instead of shards, with the command for text."""
    if not isinstance(files, LocalFiles):
        denial = getattr(files, "denial", "")
        return f" {denial}" if denial else " For text files use data=text."
    contained, any_text = LeftOut(), False
    for name in files.names()[:MAX_LOOKED_AT]:
        try:
            kind = recognize_file(str(files.folder / name))
        except OSError:
            continue
        contained.add(kind, name)
        any_text = any_text or kind.is_read
    use = f" To train on the text: data=text data.path={files.location}" if any_text else ""
    return f" It contains{contained.described()}.{use}" if contained.described() else ""
