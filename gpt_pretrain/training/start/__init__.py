"""Start a run from a checkpoint, from pretrained weights or from new weights, and find the steps that remain."""
