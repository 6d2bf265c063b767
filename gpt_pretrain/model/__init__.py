"""The architecture, the models, their key-value cache, kernels and cost formulas.

This room knows tensors and plain numbers. It must not know configuration files, data, tokenizers or Lightning.
"""
