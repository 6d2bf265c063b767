"""Write a model as a folder that transformers opens.

Usage: gpt-pretrain export out=FOLDER [checkpoint=...] [n_heads=...] [tokenizer=...]

  out         the folder to write; an earlier export there is replaced
  checkpoint  a run directory, a checkpoint file, any other weights that generate.py's pretrained= takes, or latest, which
              stands here if nothing does: the newest run below outputs/
  n_heads     attention heads, for a bare state dict that is not one of GPT-2's sizes
  tokenizer   gpt2, byte ..., where the weights do not tell

The folder holds config.json, generation_config.json, model.safetensors, the tokenizer's files and a model card. It is opened with
transformers and compared with the model before it takes its place.
"""

from __future__ import annotations

from pathlib import Path

from gpt_pretrain.commands.arguments import parse_arguments
from gpt_pretrain.config.command_schema import ExportSettings


def export_command(arguments: list[str]) -> None:
    """Export what the settings name."""
    settings = parse_arguments(arguments, ExportSettings, usage=__doc__ or "")
    from gpt_pretrain.checkpoints.huggingface import export
    from gpt_pretrain.checkpoints.pretrained import open_weights

    weights = open_weights(settings.checkpoint, n_heads=settings.n_heads)
    difference = export(weights, Path(settings.out).expanduser(), tokenizer=settings.tokenizer)
    print(f"{weights.name} -> {settings.out}")
    print(f"transformers opens it; the logits differ by at most {difference:.1g}.")
