"""Datasets that the package datasets reads: which files it may open, and what they may expand to."""
