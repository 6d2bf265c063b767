"""Decide whether a folder may be overwritten by an export."""

from __future__ import annotations

from pathlib import Path

from gpt_pretrain.checkpoints.formats.layouts import CONFIG_FILE, OWN_KEY, SAFETENSORS_FILE
from gpt_pretrain.checkpoints.serialization.tensor_files import read_model_json
from gpt_pretrain.errors import UserError

EXPORTED_FILES = {
    *(CONFIG_FILE, SAFETENSORS_FILE, "README.md"),
    *("generation_config.json", "tokenizer.json", "tokenizer_config.json"),
}


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
