"""Measures of how good a model's weights and the texts it generates are.

This room must not know optimizers, callbacks, sweeps or Lightning.
"""
