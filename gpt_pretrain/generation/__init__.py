"""Generation turns a model's logits into token ids, and token ids into text.

It must not know checkpoints, configuration files, training or Lightning.
"""
