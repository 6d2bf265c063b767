"""Recognize the model in a stranger's file or folder: its tensors, their names, and the architecture that they fit."""
