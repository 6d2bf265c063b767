"""The report page of a run: one HTML file without scripts that needs no network.

`page` and the templates hold what other pages share with it. This package knows nothing of sweeps, whose own page builds on it.
"""
