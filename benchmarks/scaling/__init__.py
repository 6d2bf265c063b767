"""Measure how the loss depends on a model's size, its text, and its training settings."""
