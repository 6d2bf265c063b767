"""The report page of a run: one HTML file without scripts that needs no network.

Other pages share `page` and the templates. This package must not know sweeps, whose page builds on it.
"""
