"""Sweeps: which jobs are run, how a search chooses their settings, and how they are ranked, drawn and reported.

Hydra is not imported here: the sweepers in `hydra_plugins` pass in the jobs and the way to launch them.
"""
