"""Write a model as a folder that transformers opens.

Usage: python -m gpt_pretrain.export out=FOLDER [checkpoint=...] [n_heads=...] [tokenizer=...]

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

from gpt_pretrain import cli
from gpt_pretrain.settings import ExportSettings


def main(settings: ExportSettings) -> None:
    """Export what the settings name."""
    from gpt_pretrain.formats.huggingface import export
    from gpt_pretrain.pretrained import open_weights

    weights = open_weights(settings.checkpoint, n_heads=settings.n_heads)
    difference = export(weights, Path(settings.out).expanduser(), tokenizer=settings.tokenizer)
    print(f"{weights.name} -> {settings.out}")
    print(f"transformers opens it; the logits differ by at most {difference:.1g}.")


if __name__ == "__main__":
    cli.run_command(main, ExportSettings, usage=__doc__ or "")
