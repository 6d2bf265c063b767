"""Settings: their names, types and rules, and the grammar of command-line overrides.

Values and explanations are in conf/. This room knows OmegaConf, but neither Hydra nor what the settings are used for.
"""
