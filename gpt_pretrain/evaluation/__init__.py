"""The quality of a model's weights and of the texts that it generates.

This room must not know optimizers, callbacks, sweeps or Lightning.
"""
