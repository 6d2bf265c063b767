"""A callback that records which functions of the checkout lead to `Trainer.fit`."""

import json
import traceback
from pathlib import Path

import lightning as L
from lightning.pytorch.callbacks import Callback

ROOT = Path(__file__).parents[2]


class StackRecorder(Callback):
    """Write the names of the functions, from the entry script to the function that calls `Trainer.fit`, to a file.

    Args:
        file: The JSON file to write.
    """

    def __init__(self, file: str) -> None:
        self.file = Path(file)

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        frames = [frame for frame in traceback.extract_stack() if is_ours(Path(frame.filename))]
        self.file.write_text(json.dumps([frame.name for frame in frames[:-1]]))  # without this function


def is_ours(file: Path) -> bool:
    """Return True if a file belongs to the checkout, and not to a package installed inside it."""
    return file.resolve().is_relative_to(ROOT) and "site-packages" not in file.parts
