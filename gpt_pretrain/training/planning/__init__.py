"""Describe the work and the cost of a run before it trains.

`plan` computes the numbers. `checks` warns about settings that are allowed but do not have the expected effect. `dry_run`
(plan=true) measures a few steps.

This room only reads settings and data. It does not know the command line, and must not change a run.
"""
