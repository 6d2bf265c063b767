"""Optimizers and learning rates: AdamW, Muon, the schedules, and the user's own optimizer and schedule."""
