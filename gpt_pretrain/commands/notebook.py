"""Compose the settings of a training without a command line, for notebooks and scripts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.initialize import get_gh_backup, restore_gh_from_backup

from gpt_pretrain.commands.command_line.argument_checks import argument_problems, with_prefix
from gpt_pretrain.commands.command_line.command_words import clean_word, sort_arguments
from gpt_pretrain.commands.command_line.hydra_arguments import quote_arguments
from gpt_pretrain.commands.command_line.hydra_errors import HYDRA_ERRORS, UNREADABLE, explain_hydra_error
from gpt_pretrain.commands.command_line.setting_messages import ADD_MULTIRUN, TRY_SEVERAL
from gpt_pretrain.commands.script import register_schema
from gpt_pretrain.config.conversion import to_settings
from gpt_pretrain.config.free_text import expand_home
from gpt_pretrain.config.overrides import full_form, with_recipe_of_weights
from gpt_pretrain.config.schema import TrainSettings
from gpt_pretrain.config.train_rules import train_problems
from gpt_pretrain.errors import UserError
from gpt_pretrain.system.argument_types import check_type
from gpt_pretrain.system.checkout import CONF

ONE_VALUE = "load_settings takes one value of each setting. To try several, call it once for each value."
_COMPOSING = Lock()


@contextmanager
def _own_hydra() -> Iterator[None]:
    """Set aside the Hydra of the caller, which may be a program with `hydra.main`, in one thread at a time."""
    with _COMPOSING:
        backup = get_gh_backup()
        GlobalHydra.instance().clear()
        try:
            yield
        finally:
            restore_gh_from_backup(backup)


@_own_hydra()
def load_settings(*overrides: str | list[str]) -> TrainSettings:
    """Return the settings of train.py with overrides such as "model=tiny" or "optimizer.lr=1e-3". Lists of them are allowed.

    Raises:
        UserError: If a setting is unknown or missing, or a value has the wrong type or breaks a rule.
    """
    register_schema()
    words = [word for one in overrides for word in (one if isinstance(one, list | tuple) else [one])]
    for word in words:
        check_type("an override", word, str, "a text, such as 'model=tiny'")
    arguments = sort_arguments([expand_home(full_form(clean_word(word), script="train")) for word in words])
    problems = [f"{flag}: load_settings takes settings only, such as 'model=tiny'." for flag in arguments.flags]
    if problems := problems or argument_problems(arguments, script="train"):
        raise UserError([re.sub(f"{ADD_MULTIRUN}|{TRY_SEVERAL}\\S+", ONE_VALUE, problem) for problem in problems])
    typed = quote_arguments([with_prefix(word, script="train") for word in arguments.overrides])
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        try:
            composed = compose("train", ["run_dir=outputs", *with_recipe_of_weights(typed)])
        except (*HYDRA_ERRORS, *UNREADABLE, AssertionError, AttributeError) as error:
            raise explain_hydra_error(error, script="train", arguments=words) or error from error
        settings = to_settings(composed, TrainSettings)
    if problems := train_problems(settings):
        raise UserError(problems)
    return settings
