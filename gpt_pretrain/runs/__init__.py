"""The files of a run: its folder, metadata, metrics, samples, charts and report page.

This package writes these files during a run and reads them afterwards. It must know neither the training of a model nor sweeps.
Sweeps build on it.
"""
