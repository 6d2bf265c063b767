"""Find the starting point of a run: a checkpoint to resume, pretrained weights, or new weights."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt_pretrain.checkpoints.custom_model import build_custom_model
from gpt_pretrain.checkpoints.custom_weights import CustomWeights, misfit_of
from gpt_pretrain.checkpoints.pretrained import open_weights
from gpt_pretrain.checkpoints.weight_tokenizers import checkpoint_tokenizer
from gpt_pretrain.checkpoints.weights import Weights
from gpt_pretrain.config.checkpoint_settings import has_signed_settings
from gpt_pretrain.config.custom_parts import TARGET
from gpt_pretrain.config.schema import TrainSettings
from gpt_pretrain.errors import UserError
from gpt_pretrain.model.build import new_model
from gpt_pretrain.model.config import CUSTOM_KIND, GPTConfig
from gpt_pretrain.model.language_model import LanguageModel
from gpt_pretrain.system.environment import user_path
from gpt_pretrain.system.terminal import escape_line
from gpt_pretrain.tokenizers.base import Tokenizer
from gpt_pretrain.tokenizers.bpe_training import AUTOMATIC_NAME, TRAINED_NAME
from gpt_pretrain.tokenizers.build import build_tokenizer, is_tokenizer_name, same_tokenizer
from gpt_pretrain.tokenizers.fitting import TooManyTokensError
from gpt_pretrain.training.budget.pace import Pace
from gpt_pretrain.training.distributed import ranks
from gpt_pretrain.training.start.checkpoint import newest_checkpoint, read_resumable
from gpt_pretrain.training.start.remaining import check_incomplete, stored_pace
from gpt_pretrain.training.start.restored_settings import restore_settings

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StartingPoint:
    """The state that a run starts from; a new run with new weights has none.

    Args:
        resume: The checkpoint to resume.
        step: Optimizer steps done in that checkpoint.
        text_sha256: The checksum of the checkpoint's training text.
        tokenizer: The typed tokenizer if it replaces the stored one, otherwise the checkpoint's or the weights' own.
        weights: The weights that a new run starts from.
        architecture: The architecture of the checkpoint or of the weights.
        epoch_windows: Windows in each epoch of the resumed run.
        next_lr: The learning rate of the next step by the checkpoint's own schedule.
        peak_lr: The checkpoint's optimizer.lr, or the rate of the matrices if they have their own.
        lr_scale: The factor by which rollbacks have lowered all learning rates.
        stored_shapes: The shapes of the checkpoint's weights, if its model is the user's own.
        pace: The steps that the budget of the resumed run has planned, if it has one.
    """

    resume: Path | None = None
    step: int = 0
    text_sha256: str | None = None
    tokenizer: Tokenizer | None = None
    weights: Weights | None = None
    architecture: GPTConfig | None = None
    epoch_windows: int = 0
    next_lr: float | None = None
    peak_lr: float | None = None
    lr_scale: float = 1.0
    stored_shapes: Mapping[str, tuple[int, ...]] | None = None
    pace: Pace | None = None


def from_checkpoint(settings: TrainSettings, overridden: Set[str]) -> tuple[TrainSettings, StartingPoint, list[str]]:
    """Open the checkpoint that `resume` names, if any.

    Returns:
        The resumed run's settings with the overrides applied, the starting point, and the changes that give the saved state
        another meaning.

    Raises:
        UserError: If there is no valid checkpoint, or the run is already complete.
    """
    if settings.resume is None:
        return settings, StartingPoint(), []
    if settings.init_from is not None:
        raise UserError("resume and init_from exclude each other: resume continues a run, init_from starts a new one.")
    named = user_path(settings.resume)
    opened = None
    if ranks.is_main():  # the first rank also cleans up after a killed process
        only = named if named.is_file() else None
        opened = newest_checkpoint(Path(settings.run_dir), only=only, read_only=settings.plan)
    path = Path(ranks.broadcast(None if opened is None else str(opened[0])))
    content = read_resumable(path) if opened is None else opened[1]
    # The ranks of other machines may not have this user's key.
    own = bool(ranks.broadcast(has_signed_settings(content) if ranks.is_main() else False))
    tokenizer = checkpoint_tokenizer(content, origin=escape_line(str(path)))
    tokenizer = _name_like_stored(settings, tokenizer, overridden, content["config"])
    settings, changes = restore_settings(settings, content["config"], overridden, own=own, path=path)
    check_incomplete(settings, content)
    start = StartingPoint(
        resume=path,
        step=int(content["global_step"]),
        architecture=GPTConfig.from_dict(content["architecture"]),
        text_sha256=content["text_sha256"],
        tokenizer=tokenizer,
        epoch_windows=int(content["TextDataModule"]["epoch_windows"]),
        next_lr=float(content["lr_schedulers"][0]["_last_lr"][0]),
        peak_lr=float(content["lr_schedulers"][0]["base_lrs"][0]),
        lr_scale=float(content["lr_scale"]),
        stored_shapes=_custom_shapes(content) if settings.model.kind == CUSTOM_KIND else None,
        pace=None if settings.budget is None else stored_pace(settings.budget, content),
    )
    return settings, start, changes


def _custom_shapes(content: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    return {name.removeprefix("model."): tuple(value.shape) for name, value in content["state_dict"].items()}


def from_weights(settings: TrainSettings, overridden: Set[str]) -> StartingPoint:
    """Open the weights named by `init_from`, and adapt the settings of model and tokenizer to them.

    Raises:
        UserError: If there are no such weights, or an override contradicts them.
    """
    n_heads = settings.model.n_heads if "model.n_heads" in overridden else None
    named = settings.custom.get("model")
    weights = open_weights(str(settings.init_from), n_heads=n_heads, kind=settings.weights, custom=named)
    if isinstance(weights, CustomWeights):
        settings.custom["model"] = weights.fields
        vars(settings.model).update({name: value for name, value in weights.fields.items() if name == "context_length"})
    elif named is not None:
        raise UserError(
            f"model._target_={named[TARGET]} cannot take the weights of {weights.name}: they belong to a built-in model."
        )
    own = _usable_tokenizer(settings, weights, overridden)
    _follow(settings, weights, own, overridden)
    return StartingPoint(weights=weights, architecture=weights.config, tokenizer=own)


def build_model(settings: TrainSettings, tokenizer: Tokenizer, start: StartingPoint) -> LanguageModel:
    """Build the model, with the weights of the starting point if it has any."""
    if start.weights is None:
        vocab_size = tokenizer.vocab_size if start.architecture is None else start.architecture.vocab_size
        config = GPTConfig(vocab_size=vocab_size, **dataclasses.asdict(settings.model))
        return new_model(config) if config.kind != CUSTOM_KIND else _build_custom(settings, config, start)
    model = start.weights.build(context_length=settings.model.context_length, drop_rate=settings.model.drop_rate).train()
    # The loaded weights may be mapped to a file. Another program could change that file during the training.
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    return model


def _build_custom(settings: TrainSettings, config: GPTConfig, start: StartingPoint) -> LanguageModel:
    """Build the user's own model. In a resumed run, it has to fit the checkpoint."""
    model = build_custom_model(settings.custom["model"], config)
    if start.stored_shapes is not None and (problem := misfit_of(model, start.stored_shapes)) is not None:
        raise UserError(f"{start.resume} does not fit model._target_={settings.custom['model'][TARGET]}: {problem}.")
    return model


def names_tokenizer(settings: TrainSettings, overridden: Set[str]) -> bool:
    """Return whether the user or an experiment names a tokenizer."""
    return settings.tokenizer.name != AUTOMATIC_NAME and bool(overridden & {"tokenizer.name", "experiment"})


def _name_like_stored(
    settings: TrainSettings, stored: Tokenizer, overridden: Set[str], stored_config: Mapping[str, Any]
) -> Tokenizer:
    """Give the typed tokenizer the stored name if both are the same one, even if it comes from another file.

    Returns:
        The stored tokenizer, or the typed one if it is another.
    """
    if settings.tokenizer.name == AUTOMATIC_NAME:
        settings.tokenizer.name = stored.name
        return stored
    if settings.tokenizer.name == TRAINED_NAME:
        # A trained tokenizer follows from the text and the size. Other checks compare these.
        was_trained = (stored_config.get("tokenizer") or {}).get("vocab_size") is not None
        settings.tokenizer.name = stored.name if was_trained else TRAINED_NAME
        return stored
    # Two different names that fully describe a tokenizer mean different ones. Building them could need the network.
    states_all = is_tokenizer_name(settings.tokenizer.name) and is_tokenizer_name(stored.name)
    if "tokenizer.name" not in overridden or settings.tokenizer.name == stored.name or states_all:
        return stored
    typed = build_tokenizer(settings.tokenizer.name)
    found = stored if same_tokenizer(typed, stored) else typed
    settings.tokenizer.name = found.name
    return found


def _usable_tokenizer(settings: TrainSettings, weights: Weights, overridden: Set[str]) -> Tokenizer | None:
    """Return the tokenizer of the weights. Return None if they have none, or if the user replaces one that cannot be used.

    Raises:
        UserError: If it cannot be used, and the user has typed no other one.
    """
    try:
        return weights.own_tokenizer
    except UserError as error:
        if "tokenizer.name" not in overridden or not names_tokenizer(settings, overridden):
            if isinstance(error, TooManyTokensError):
                raise
            raise UserError(f"{error} To use another tokenizer in its place, add tokenizer=FOLDER.") from error
        log.warning("%s", escape_line(f"{error} tokenizer={settings.tokenizer.name} is used in its place."))
        return None


def _follow(settings: TrainSettings, weights: Weights, own: Tokenizer | None, overridden: Set[str]) -> None:
    """Set model and tokenizer to those of the weights. The run chooses only its dropout and a shorter context.

    Args:
        own: The tokenizer of the weights.

    Raises:
        UserError: If an override contradicts them.
    """
    fixed = {f"model.{size}" for size in ("kind", "emb_dim", "n_heads", "n_layers") if overridden & {"model", "experiment"}}
    differing = {}
    for key, value in _required_settings(settings, weights, overridden).items():
        group, field = key.split(".")
        if getattr(getattr(settings, group), field) != value:
            if key in overridden | fixed:
                differing[key] = value
            setattr(getattr(settings, group), field, value)
    if own is not None and names_tokenizer(settings, overridden) and not _is_tokenizer(settings.tokenizer.name, own):
        differing["tokenizer"] = own.name
    if differing:
        required = [f"{key}={value}" for key, value in differing.items()]
        shorten = " The context can be shortened, but not lengthened." * ("model.context_length" in differing)
        add = [text for text, value in zip(required, differing.values(), strict=True) if "@" not in str(value)]
        raise UserError(
            f"{weights.name} has {', '.join(required)}, which your overrides contradict.{shorten} "
            f"Remove those overrides{f', or add {chr(32).join(add)}' if len(add) == len(required) else ''}."
        )
    if own is not None:
        settings.tokenizer.name = own.name


def _is_tokenizer(name: str, tokenizer: Tokenizer) -> bool:
    return name == tokenizer.name or (name != TRAINED_NAME and same_tokenizer(build_tokenizer(name), tokenizer))


def _required_settings(settings: TrainSettings, weights: Weights, overridden: Set[str]) -> dict[str, Any]:
    """Return the settings of model and tokenizer that the weights require, by name."""
    stored = weights.config
    required = {f"model.{name}": value for name, value in stored.to_dict().items() if name not in ("vocab_size", "drop_rate")}
    shorter, given = settings.model.context_length < stored.context_length, "model.context_length" in overridden
    if settings.model.context_length <= stored.context_length or not given:
        required["model.context_length"] = min(settings.model.context_length, stored.context_length)
    if shorter and not given:
        log.info(
            "%s has a context of %s tokens, of which this run uses %d; model.context_length=%d uses all of it",
            weights.name,
            f"{stored.context_length:,}",
            settings.model.context_length,
            stored.context_length,
        )
    return required
