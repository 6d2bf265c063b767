"""One training run: the LightningModule, optimizer and schedule, the Trainer and its callbacks, resuming, and several devices.

This room turns checked settings into a trained model. It must not know Hydra, command lines or sweeps. `preflight` checks and
loads, `fit` trains, and `summary` describes what is about to happen and what has happened. Each subfolder has one subject.
"""
