"""Export a model as a folder that transformers opens.

Usage: gpt-pretrain export out=FOLDER [checkpoint=...] [weights=...] [n_heads=...] [tokenizer=...]

  out         folder to write; an earlier export there is replaced
  checkpoint  run folder, checkpoint file, any other weights that generate.py's pretrained= accepts, or latest for the
              newest run in outputs/ (default: latest)
  weights     trained, ema (the moving average that ema_decay= keeps), or average (of the run's periodic checkpoints)
  n_heads     number of attention heads; needed for a bare state dict that is not one of GPT-2's sizes
  tokenizer   gpt2, byte, a folder, a file ...; needed if the weights do not bring their tokenizer

The folder contains config.json, generation_config.json, model.safetensors, the tokenizer's files and a model card. Before the
folder appears, transformers opens it, and its logits are compared with the model's.
"""

from __future__ import annotations

import sys

from gpt_pretrain.checkpoints.serialization.checksum import check_early
from gpt_pretrain.commands.command_line.arguments import parse_arguments
from gpt_pretrain.config.command_schema import ExportSettings
from gpt_pretrain.system.environment import user_path
from gpt_pretrain.system.loading import loading_libraries
from gpt_pretrain.system.terminal import escape_line, print_escaped


def export_command(arguments: list[str]) -> None:
    """Export the weights that the arguments name."""
    settings = parse_arguments(arguments, ExportSettings, usage=__doc__ or "")
    check_early(settings.checkpoint)
    with loading_libraries():
        from gpt_pretrain.checkpoints.export.huggingface import export
        from gpt_pretrain.checkpoints.formats.layouts import CONFIG_FILE
        from gpt_pretrain.checkpoints.pretrained import open_weights

    weights = open_weights(settings.checkpoint, n_heads=settings.n_heads, kind=settings.weights)
    is_replaced = (user_path(settings.out) / CONFIG_FILE).exists()
    difference = export(weights, user_path(settings.out), tokenizer=settings.tokenizer)
    if is_replaced:
        print_escaped(f"warning: out={settings.out} held an earlier export. This one has replaced it.", file=sys.stderr)
    print_escaped(f"{escape_line(weights.name)} -> {settings.out}")
    print(f"transformers opens the folder; the logits differ by at most {difference:.1g}.")
