"""One optimizer step: its batches, their weights, when their losses are read, and what happens to values that are not finite.

The LightningModule uses this folder, and this folder does not know it.
"""
