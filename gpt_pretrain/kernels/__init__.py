"""Faster ways to compute what PyTorch has a plain way for; each takes and returns the same as that does."""
