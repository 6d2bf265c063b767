"""From a composed config to checked settings and loaded data, before anything expensive is built."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from gpt_pretrain.checkpoints.export_folder import check_export_folder
from gpt_pretrain.checkpoints.pretrained import Weights, open_weights
from gpt_pretrain.config.conversion import escape_interpolation, to_settings
from gpt_pretrain.config.schema import TrainSettings
from gpt_pretrain.config.validation import train_problems
from gpt_pretrain.data.datamodule import TextDataModule
from gpt_pretrain.data.sources import tokenizer_of
from gpt_pretrain.data.text import cache_folder, find_text
from gpt_pretrain.errors import AlreadyCompleteError, UserError
from gpt_pretrain.model.config import GPTConfig
from gpt_pretrain.model.gpt2 import GPTModel
from gpt_pretrain.runs.folder import EXPORTED, checkpoint_dir
from gpt_pretrain.system.devices import accelerator_device
from gpt_pretrain.system.files import write_text
from gpt_pretrain.system.formatting import format_count
from gpt_pretrain.system.resources import reset_peak_memory
from gpt_pretrain.tokenizers.base import Tokenizer
from gpt_pretrain.tokenizers.build import build_tokenizer, fits_vocab_size
from gpt_pretrain.tokenizers.characters import CHARACTERS_PREFIX
from gpt_pretrain.training.acceleration import pick_precision
from gpt_pretrain.training.distributed import ranks
from gpt_pretrain.training.distributed.ranks import local_main_first
from gpt_pretrain.training.resume import as_before, changes_problems, newest_checkpoint, resumable
from gpt_pretrain.training.run_length import reached_limit

UNREADABLE = ("data.", "model.context_length", "trainer.devices", "trainer.num_nodes")  # without these no data can be read

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StartingPoint:
    """Where a run begins: a checkpoint to resume, weights to start from, or nothing.

    Args:
        resume: the checkpoint to go on from.
        step: optimizer steps done in it.
        text_sha256: of the text that it was trained on.
        weights: the weights that a new run starts from.
        architecture: of either.
        epoch_windows: that each epoch of the run trains on.
    """

    resume: Path | None = None
    step: int = 0
    text_sha256: str | None = None
    weights: Weights | None = None
    architecture: GPTConfig | None = None
    epoch_windows: int = 0


def prepare_training(
    config: DictConfig, *, overridden: Set[str]
) -> tuple[TrainSettings, Tokenizer, TextDataModule, StartingPoint]:
    """Check the settings, find what the run starts from, build the tokenizer, and find and tokenise the text.

    Args:
        overridden: the settings that were typed; where weights bring an architecture of their own, those are held to it, and
            all others follow it.

    Raises:
        UserError: with everything that is wrong, settings, weights and data together.
    """
    settings, start, changes = _start(_on_these_devices(to_settings(config, TrainSettings)), overridden)
    problems = train_problems(settings)
    if settings.resume is None and any(checkpoint_dir(Path(settings.run_dir)).glob("*.ckpt")):
        problems.append(
            f"{settings.run_dir} holds a run already: go on with it by resume={settings.run_dir}, or choose another folder."
        )
    tokenizer = data = None
    try:
        if settings.export:
            check_export_folder(Path(settings.run_dir) / EXPORTED)
    except UserError as error:
        problems += error.problems
    try:
        accelerator_device(settings.trainer.accelerator)
    except UserError as error:
        problems += error.problems
    try:
        if settings.init_from is not None and start.resume is None and not problems:  # the weights may have to be downloaded
            start = _from_weights(settings, overridden)
    except UserError as error:
        problems += error.problems
    try:
        if start.architecture is None and not overridden & {"tokenizer", "tokenizer.name", "experiment"}:
            settings.tokenizer.name = tokenizer_of(settings.data) or settings.tokenizer.name
        tokenizer = build_tokenizer(settings.tokenizer.name)
        if settings.export and tokenizer.name.startswith(CHARACTERS_PREFIX):
            problems.append("export=true: transformers has no tokenizer of single characters. Leave it out.")
        problems += _tokenizer_problems(settings, tokenizer, start)
    except UserError as error:
        problems += error.problems
    try:
        if tokenizer is None:  # the text may be wrong as well
            if settings.data.name not in ("shards", "mixture"):
                find_text(settings.data, cache_dir=cache_folder(settings.data))
        elif not any(problem.startswith(UNREADABLE) for problem in problems):
            module = _data_module(settings, tokenizer)
            with local_main_first():  # who makes the token files
                module.prepare_data()
            data = module
    except UserError as error:
        problems += error.problems
    if start.resume is not None:
        if data is not None:
            changes += _other_data(data, start)
            data.begun_epoch_windows = None if changes else start.epoch_windows
        problems += changes_problems(changes, path=start.resume, force=settings.resume_force)
    if problems:
        raise UserError(problems)
    assert tokenizer is not None and data is not None
    device = accelerator_device(settings.trainer.accelerator)
    reset_peak_memory(device)
    settings.trainer.precision = pick_precision(settings.trainer, device)
    return settings, tokenizer, data, start


def _other_data(data: TextDataModule, start: StartingPoint) -> list[str]:
    """What of the data is not as the run that is gone on with had it."""
    if data.split.text_sha256 != start.text_sha256:
        return ["the text that data names has another content"]
    if start.epoch_windows % data.settings.batch_size:
        return [f"an epoch had {start.epoch_windows} windows, which data.batch_size={data.settings.batch_size} does not divide"]
    return []


def _on_these_devices(settings: TrainSettings) -> TrainSettings:
    """The settings with the devices and machines that there are; those of a run that is only planned are taken as asked for.

    Raises:
        UserError: when others were asked for than whoever started the processes has given.
    """
    trainer, here = settings.trainer, ranks.local_world_size()
    if ranks.is_distributed():
        nodes = ranks.world_size() // here
        if trainer.devices not in ("auto", 1, here) or trainer.num_nodes not in (1, nodes):
            raise UserError(
                f"trainer.devices={trainer.devices} and trainer.num_nodes={trainer.num_nodes}, but {here} processes on each of "
                f"{nodes} machines were started: leave both out, or give these numbers."
            )
        trainer.devices, trainer.num_nodes = here, nodes
    elif trainer.devices == "auto":
        on_gpus = trainer.accelerator in ("auto", "gpu", "cuda")
        trainer.devices = max(1, torch.cuda.device_count()) if on_gpus else 1
    if isinstance(trainer.devices, int) and trainer.devices > max(1, gpus := torch.cuda.device_count()):
        if trainer.accelerator == "auto":
            trainer.accelerator = "cpu"
        elif trainer.accelerator != "cpu":
            raise UserError(
                f"trainer.devices={trainer.devices}: this machine has {format_count(gpus, 'GPU')} that can share a training. Choose as "  # noqa: E501
                "many devices, or trainer.accelerator=cpu."
            )
    return settings


def _start(settings: TrainSettings, overridden: Set[str]) -> tuple[TrainSettings, StartingPoint, list[str]]:
    """What `resume` names, the run's own settings, and what was typed against their meaning.

    Raises:
        UserError: when there is no whole checkpoint, or the run is complete already.
    """
    if settings.resume is None:
        return settings, StartingPoint(), []
    if settings.init_from is not None:
        raise UserError("resume and init_from exclude each other: resume goes on with a run, init_from begins a new one.")
    named = Path(settings.resume).expanduser()
    found = None
    if ranks.is_main():  # which also mends what a killed process has left
        found = newest_checkpoint(Path(settings.run_dir), only=named if named.is_file() else None, looking=settings.plan)
    path = ranks.broadcast(None if found is None else found[0])
    assert path is not None
    content = resumable(path) if found is None else found[1]
    settings, changes = as_before(settings, content["config"], overridden)
    _check_incomplete(settings, content)
    start = StartingPoint(
        resume=path,
        step=int(content["global_step"]),
        architecture=GPTConfig.from_dict(content["architecture"]),
        text_sha256=content["text_sha256"],
        epoch_windows=int(content["TextDataModule"]["epoch_windows"]),
    )
    return settings, start, changes


def _from_weights(settings: TrainSettings, overridden: Set[str]) -> StartingPoint:
    """What `init_from` names; the settings of model and tokenizer follow it where nothing else was typed.

    Raises:
        UserError: when there is none, or what was typed does not fit it.
    """
    n_heads = settings.model.n_heads if "model.n_heads" in overridden else None
    weights = open_weights(str(settings.init_from), n_heads=n_heads)
    _follow(settings, weights, overridden)
    return StartingPoint(weights=weights, architecture=weights.config)


def _data_module(settings: TrainSettings, tokenizer: Tokenizer) -> TextDataModule:
    return TextDataModule(
        settings.data,
        tokenizer,
        context_length=settings.model.context_length,
        seed=settings.seed,
        rank=ranks.rank(),
        world_size=int(settings.trainer.devices) * settings.trainer.num_nodes,
    )


def _tokenizer_problems(settings: TrainSettings, tokenizer: Tokenizer, start: StartingPoint) -> list[str]:
    problems = []
    if not tokenizer.encode(settings.start_context):
        problems.append("start_context is empty: give at least one character for the samples to begin with.")
    if start.architecture is not None and not fits_vocab_size(tokenizer.vocab_size, start.architecture.vocab_size):
        problems.append(
            f"tokenizer={tokenizer.name} has {tokenizer.vocab_size} tokens, {settings.resume or settings.init_from} "
            f"{start.architecture.vocab_size}: choose the tokenizer that it was trained with."
        )
    return problems


def build_model(settings: TrainSettings, tokenizer: Tokenizer, start: StartingPoint) -> GPTModel:
    """A new model, with the weights of the starting point if it has any."""
    if start.weights is None:
        vocab_size = tokenizer.vocab_size if start.architecture is None else start.architecture.vocab_size
        return GPTModel(GPTConfig(vocab_size=vocab_size, **dataclasses.asdict(settings.model)))
    model = start.weights.build(context_length=settings.model.context_length, drop_rate=settings.model.drop_rate).train()
    for parameter in model.parameters():  # no longer mapped to a file that somebody may write to
        parameter.data = parameter.data.clone()
    return model


def save_config(settings: TrainSettings, run_dir: Path) -> dict[str, Any]:
    """Write the resolved settings to the run's config.yaml, and return them as plain containers for its checkpoints.

    Of the user's own callbacks these name the classes only: nothing in a checkpoint says what to build.
    """
    plain = dataclasses.asdict(settings)
    if ranks.is_main():
        write_text(run_dir / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(escape_interpolation(plain))))
    custom = plain["callbacks"]["custom"]
    plain["callbacks"]["custom"] = {name: str(fields.get("_target_")) for name, fields in custom.items()}
    return plain


def _check_incomplete(settings: TrainSettings, content: dict[str, Any]) -> None:
    progress = content["loops"]["fit_loop"]["epoch_progress"]["current"]
    epochs, steps, trainer = int(progress["processed"]), int(content["global_step"]), settings.trainer
    limit = reached_limit(trainer, steps=steps, tokens=int(content["tokens_seen"]))
    if limit is None and trainer.max_tokens is None and epochs >= trainer.max_epochs:
        limit = "max_epochs"
    stop = settings.callbacks.early_stopping
    best = {name: value for name, value in content["callbacks"].get("SaveRun", {}).items() if name.startswith("best_")}
    best["best_val_loss"] = best.pop("best_loss", None)
    for name, state in content["callbacks"].items():
        if stop is not None and name.startswith("EarlyStopping") and state["wait_count"] >= max(1, stop.patience):
            raise AlreadyCompleteError(
                f"{settings.run_dir} is complete: early stopping ended it after {epochs} epochs, with {state['wait_count']} "
                "validations without a gain. To train it further: callbacks=early_stopping "
                f"callbacks.early_stopping.patience={2 * stop.patience + 1}",
                result=best,
            )
    if limit is not None:
        more = 2 * {"max_steps": steps, "max_tokens": trainer.max_tokens or 0, "max_epochs": epochs}[limit]
        raise AlreadyCompleteError(
            f"{settings.run_dir} is complete: trainer.{limit}={getattr(trainer, limit)} ended it after {epochs} epochs "
            f"and {steps} steps. To train it further, ask for more, for example: trainer.{limit}={more}",
            result=best,
        )


def _follow(settings: TrainSettings, weights: Weights, overridden: Set[str]) -> None:
    """Let the settings of model and tokenizer be those of weights; only dropout and fewer positions are the run's own choice.

    Raises:
        UserError: when something else was typed.
    """
    stored = weights.config
    held = {f"model.{size}" for size in ("emb_dim", "n_heads", "n_layers") if overridden & {"model", "experiment"}}
    held |= {"tokenizer.name"} if overridden & {"tokenizer", "experiment"} else set()
    free = ("vocab_size", "drop_rate")
    wanted = {f"model.{field}": value for field, value in stored.to_dict().items() if field not in free}
    if settings.model.context_length <= stored.context_length or "model.context_length" not in overridden:
        wanted["model.context_length"] = min(settings.model.context_length, stored.context_length)
        if settings.model.context_length < stored.context_length and "model.context_length" not in overridden:
            log.info(
                "%s has a context of %d tokens, of which this run uses %d; model.context_length=%d keeps it all",
                weights.name,
                stored.context_length,
                settings.model.context_length,
                stored.context_length,
            )
    if weights.tokenizer is not None:
        wanted["tokenizer.name"] = weights.tokenizer
    differing = {}
    for key, value in wanted.items():
        group, field = key.split(".")
        if getattr(getattr(settings, group), field) != value:
            if key in overridden | held:
                differing[key] = value
            setattr(getattr(settings, group), field, value)
    if differing:
        raise UserError(
            f"{weights.name} does not fit what was typed: "
            + ", ".join(f"{key} is {value} there" for key, value in differing.items())
            + " (the context can be shortened, not lengthened)" * ("model.context_length" in differing)
            + ". Leave it out, or add "
            + " ".join(f"{key}={value}" for key, value in differing.items())
        )
