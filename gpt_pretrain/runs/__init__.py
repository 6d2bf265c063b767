"""Everything that a run leaves behind: its folder, its metadata, metrics, samples, charts and report page.

This package writes these files during a run and reads them afterwards. It must not know how a model is trained, nor sweeps, which
build on it.
"""
