"""The start of a run: a checkpoint to resume with its settings, pretrained weights, or new weights, and what is left to train."""
