"""Parse and check what was typed: arguments, overrides for Hydra, and messages about mistakes in them."""
