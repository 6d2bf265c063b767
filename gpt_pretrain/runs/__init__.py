"""Everything that a run leaves behind: its folder, its metadata, metrics, samples, charts and report page.

This package writes these files during a run and reads them afterwards. It knows nothing of how a model is trained, and nothing
of sweeps, which build on it.
"""
