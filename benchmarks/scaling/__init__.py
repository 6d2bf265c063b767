"""Measure how the loss depends on a model's size, the text it reads, and the settings of its training."""
