"""Lightning callbacks: evaluation, metrics, samples, checkpoints, limits and signals, each in a file of its own.

A callback observes or steers a training step by step. It must not know how the run was started or what comes after it.
"""
