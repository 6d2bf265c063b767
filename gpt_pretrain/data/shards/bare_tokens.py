"""Explain how to train on files of token ids without a header.

Such a file states neither the size of an id nor the vocabulary. A wrong guess would go unnoticed, since ids that are read wrongly
look like ids too. So the user states what they are, by giving the files nanoGPT's names.
"""

from __future__ import annotations

from pathlib import PurePath

from gpt_pretrain.data.files import Files, LocalFiles
from gpt_pretrain.system.recognition.file_kinds import TOKENS
from gpt_pretrain.system.shell import quote_word
from gpt_pretrain.texts.recognition import recognize_file

MAX_LOOKED_AT = 1000  # files of a folder that are looked at
BARE_SUFFIXES = (".bin", ".npy", ".ds", ".tok", ".tokens", ".u16", ".uint16")


def explain_bare_tokens(files: Files) -> str:
    """Return how to train on token ids without a header in a local folder, or an empty string if there are none."""
    suffixes = {PurePath(name).suffix: None for name in files.names()[:MAX_LOOKED_AT] if _is_bare(files, name)}
    if not suffixes:
        return ""
    assert isinstance(files, LocalFiles)
    patterns = " ".join(f"{quote_word(str(files.folder))}/*{suffix}" for suffix in suffixes)
    return (
        " Token ids without a header do not tell their size or their vocabulary. If each has two bytes, as in most programs: "
        f"mkdir ids && cat {patterns} > ids/train.bin. Then use data.path=ids tokenizer=NAME (gpt2 if left out)."
    )


def explain_lost_manifest(files: Files, manifest: str) -> str:
    """Return what to do if the manifest beside this program's shards is missing."""
    copy = f" The folder has shards but no {manifest}, which is needed to read them. Copy it too."
    if not isinstance(files, LocalFiles):
        return copy
    folder, names = quote_word(str(files.folder)), files.names()
    parts = [part for part in ("train", "val") if any(name.startswith(f"{part}-") and name.endswith(".bin") for name in names)]
    joined = " && ".join(f"cat {folder}/{part}-*.bin > ids/{part}.bin" for part in parts)
    return (
        f"{copy} If it is lost and the tokenizer has at most 65,536 tokens: mkdir ids && {joined}. Then use data.path=ids "
        "tokenizer=NAME."
    )


def _is_bare(files: Files, name: str) -> bool:
    if not isinstance(files, LocalFiles) or not name.endswith(BARE_SUFFIXES):
        return False
    try:
        return recognize_file(str(files.folder / name)) is TOKENS
    except OSError:
        return False
