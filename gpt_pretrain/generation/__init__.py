"""Generation turns a model's logits into token ids, and token ids into text.

This room must not know checkpoints, configuration files, training or Lightning.
"""
