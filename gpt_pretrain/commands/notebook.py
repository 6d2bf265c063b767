"""The settings of a training without a command line, for notebooks and scripts."""

from __future__ import annotations

from hydra import compose, initialize_config_dir

from gpt_pretrain.commands.script import register_schema
from gpt_pretrain.config.conversion import to_settings
from gpt_pretrain.config.overrides import full_form, with_recipe_of_weights
from gpt_pretrain.config.schema import TrainSettings
from gpt_pretrain.system.checkout import CHECKOUT


def load_settings(*overrides: str) -> TrainSettings:
    """Return the settings of train.py with overrides such as "model=tiny" or "optimizer.lr=1e-3".

    Raises:
        UserError: If a setting is unknown or missing.
        HydraException: If an override cannot be parsed or a group has no such option.
    """
    register_schema()
    with initialize_config_dir(config_dir=str(CHECKOUT / "conf"), version_base="1.3"):
        return to_settings(
            compose("train", ["run_dir=outputs", *with_recipe_of_weights([full_form(one, script="train") for one in overrides])]),
            TrainSettings,
        )
