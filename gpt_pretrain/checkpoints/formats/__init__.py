"""Formats of other programs: the names, shapes and settings in their files of weights."""
