"""Pretrain a GPT on raw text, watch it learn, keep it, and generate from it."""

__version__ = "0.1.0"
