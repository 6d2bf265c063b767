"""Serving answers requests over HTTP with models that are loaded once, and decodes requests that come together in common steps.

It must not know Hydra, command lines, training or sweeps. What comes over the network never names a file.
"""
