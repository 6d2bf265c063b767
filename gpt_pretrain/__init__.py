"""Pretrain a GPT on raw text, watch it learn, keep it, and generate from it."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from gpt_pretrain.checkpoints.pretrained import load_pretrained
    from gpt_pretrain.commands.notebook import load_settings
    from gpt_pretrain.data.datamodule import TextDataModule
    from gpt_pretrain.generation.sampling import generate
    from gpt_pretrain.model.config import GPTConfig
    from gpt_pretrain.model.gpt2 import GPTModel
    from gpt_pretrain.tokenizers.build import build_tokenizer
    from gpt_pretrain.training.lit_module import GPTLitModule

# The public names are loaded when they are first used, so that `import gpt_pretrain` does not wait for PyTorch.
_MODULES = {
    "GPTConfig": "gpt_pretrain.model.config",
    "GPTLitModule": "gpt_pretrain.training.lit_module",
    "GPTModel": "gpt_pretrain.model.gpt2",
    "TextDataModule": "gpt_pretrain.data.datamodule",
    "build_tokenizer": "gpt_pretrain.tokenizers.build",
    "generate": "gpt_pretrain.generation.sampling",
    "load_pretrained": "gpt_pretrain.checkpoints.pretrained",
    "load_settings": "gpt_pretrain.commands.notebook",
}

__all__ = [
    "GPTConfig",
    "GPTLitModule",
    "GPTModel",
    "TextDataModule",
    "build_tokenizer",
    "generate",
    "load_pretrained",
    "load_settings",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_MODULES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
