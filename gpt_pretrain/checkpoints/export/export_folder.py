"""Decide whether a model can be exported, and whether a folder may be overwritten by an export."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from gpt_pretrain.checkpoints.formats.layouts import CONFIG_FILE, OWN_KEY, SAFETENSORS_FILE
from gpt_pretrain.checkpoints.serialization.tensor_files import read_model_json
from gpt_pretrain.errors import UserError
from gpt_pretrain.model.config import CUSTOM_KIND, GPTConfig

EXPORTED_FILES = {
    *(CONFIG_FILE, SAFETENSORS_FILE, "README.md"),
    *("generation_config.json", "tokenizer.json", "tokenizer_config.json"),
}
# The fields of GPTConfig that the layout of each kind of model can express.
EXPORTABLE_FIELDS = {
    *("vocab_size", "context_length", "emb_dim", "n_heads", "n_layers", "drop_rate"),
    *("qkv_bias", "tie_embeddings", "gelu_approximate", "init", "kind", "n_kv_heads"),
}


def check_exportable(config: GPTConfig) -> None:
    """Check that transformers has a class for a model, with all of its options that are not at their default.

    Raises:
        UserError: If it has none.
    """
    if config.kind == CUSTOM_KIND:
        raise UserError(
            "A model of your own class cannot be exported: transformers has no class for it. Its weights are in the checkpoint."
        )
    found = [
        f"{field.name}={getattr(config, field.name)!r}"
        for field in dataclasses.fields(config)
        if field.name not in EXPORTABLE_FIELDS and getattr(config, field.name) != field.default
    ]
    if found:
        raise UserError(
            f"A model with {' and '.join(found)} cannot be exported: transformers has no class for it. generate.py, evaluate.py "
            "and serve.py read its checkpoint."
        )


def check_export_folder(folder: Path) -> None:
    """Check that a folder is missing, empty or an earlier export of this program.

    Raises:
        UserError: If the path is a file, or the folder holds other files.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UserError(f"{folder} is a file. Choose a new folder for the export.")
    names = sorted(path.name for path in folder.iterdir())
    exported = not names or ((folder / CONFIG_FILE).is_file() and OWN_KEY in read_model_json(folder / CONFIG_FILE))
    others = sorted(set(names) - EXPORTED_FILES) if exported else names
    if others:
        raise UserError(
            f"{folder} holds files that no earlier export wrote ({', '.join(others[:3])}{' ...' if len(others) > 3 else ''}). "
            "Choose a new folder for the export."
        )
