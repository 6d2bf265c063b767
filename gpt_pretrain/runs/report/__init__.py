"""The report page of a run: one HTML file without scripts that needs no network.

Other pages share `page` and the templates. This package knows nothing of sweeps, whose own page builds on it.
"""
