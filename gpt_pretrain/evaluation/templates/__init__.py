"""The Jinja template of an evaluation's page, and its script."""
