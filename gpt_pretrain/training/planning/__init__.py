"""Describe what a run will do and cost before it trains: `plan` computes the numbers, `checks` warns about settings that are
allowed but will not do what they seem to, and `dry_run` (plan=true) measures a few steps.

This room only reads settings and data. It does not know the command line, and nothing it does may change a run.
"""
