"""Fast replacements for single PyTorch operations, each tested against the plain operation.

A kernel sees tensors only. It must not know the model that calls it.
"""
