"""One training run: the LightningModule, optimizer and schedule, the Trainer and its callbacks, resuming, and several devices.

This room turns checked settings into a trained model. It must not know Hydra, command lines or sweeps.
"""
