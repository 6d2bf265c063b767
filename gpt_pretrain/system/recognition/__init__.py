"""Recognize what a file is by its first bytes and its name: its kind, the encoding of a text, and text that is damaged."""
