"""Measure the quality of a model's weights, and of the texts that the model generates.

This room must not know optimizers, callbacks, sweeps or Lightning.
"""
