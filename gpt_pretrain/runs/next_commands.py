"""Compose the commands that are suggested to the user after a run or a sweep."""

from __future__ import annotations

from collections.abc import Sequence

from gpt_pretrain.config.free_text import as_typed
from gpt_pretrain.config.overrides import full_form, split_override
from gpt_pretrain.config.stored_settings import NEVER, TRAIN_KINDS, override_kind
from gpt_pretrain.system.checkout import script_command
from gpt_pretrain.system.shell import join_words, quote_word


def generate_command(folder: str, *, start_context: str, named: Sequence[str] = ()) -> str:
    """Return the command that generates text with a run's model. Of a prompt with several lines, it has the first.

    The prompt may come from anybody, and further lines could look like other commands.

    Args:
        named: Overrides that name the class of the model, if it is the user's own.
    """
    prompt = next((line for line in start_context.splitlines() if line.strip()), " ")
    words = [f"checkpoint={quote_word(folder)}", f"prompt={quote_word(prompt)}", *map(quote_word, named)]
    return f"{script_command('generate.py')} {' '.join(words)} sampler.temperature=0.7 sampler.top_k=25"


def page_command(folder: str, *, named: Sequence[str] = ()) -> str:
    """Return the command that serves the page on which a run's model continues texts.

    Args:
        named: As in `generate_command`.
    """
    return " ".join([script_command("serve.py"), f"checkpoint={quote_word(folder)}", *map(quote_word, named)])


def repeat_command(overrides: Sequence[str], *, script: str = "train.py") -> str | None:
    """Return the command that starts a run with the overrides in a run's metadata; None if one could run code or has two lines.

    The metadata may come from anybody, and users copy a suggested command without a second look. The address of a server for
    metrics is therefore left out. A search is left out too, since its chosen settings are among the overrides.
    """
    if not all(_is_harmless(override, script=script.removesuffix(".py")) for override in overrides):
        return None
    kept = [one for one in overrides if split_override(one)[0] != "hparams_search" and "tracking_uri" not in one]
    return f"{script_command(script)} {join_words([*map(as_typed, kept)])}".strip()


def _is_harmless(override: str, *, script: str) -> bool:
    """Return whether an override only sets values of the script's own settings."""
    if override.startswith("-") or "${" in override or "_target_" in override or override.splitlines() != [override]:
        return False
    key, value = split_override(full_form(override, script=script))
    if key.startswith("hydra"):
        return False
    if key.startswith("data.remote.options."):
        return True  # kept out of files because of secrets, not because it could run code
    below = [kind for name, kind in TRAIN_KINDS.items() if name.startswith(f"{key}.")]
    if below and "." in key:  # a mapping, such as callbacks.grid={...}
        return NEVER not in below
    return override_kind(key, value if value not in ("", "null") else None, script=script) != NEVER


def tensorboard_command(folder: str) -> str:
    """Return the command that shows the metrics of a folder's runs in TensorBoard."""
    return f"tensorboard --logdir {quote_word(folder)}"


def resume_command(
    folder: str, *, limit: tuple[str, int] | None = None, patience: int | None = None, named: Sequence[str] = ()
) -> str:
    """Return the command that resumes a run.

    Args:
        limit: The setting of `trainer` that ended a finished run, and its value. The command doubles it.
        patience: The patience of the early stopping that ended a finished run. The command raises it.
        named: Overrides that a resumed run needs again.
    """
    more = [] if limit is None else [f"trainer.{limit[0]}={2 * limit[1]}"]
    more += [] if patience is None else [more_patience(patience)]
    return " ".join([f"{script_command('train.py')} resume={quote_word(folder)}", *more, *map(quote_word, named)])


def more_patience(patience: int) -> str:
    """Return the overrides that let a run train further after early stopping has ended it."""
    return f"callbacks=early_stopping callbacks.early_stopping.patience={2 * patience + 1}"


def sweep_resume_command(folder: str, *, script: str = "train.py") -> str:
    """Return the command that runs the unfinished jobs of a sweep."""
    return f"{script_command(script)} sweep_resume={quote_word(folder)}"
