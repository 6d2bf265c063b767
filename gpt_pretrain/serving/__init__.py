"""Answer requests over HTTP. Models are loaded once, and texts of different requests are decoded in common steps.

This room must not know Hydra, command lines, training or sweeps. Nothing that comes over the network names a file.
"""
