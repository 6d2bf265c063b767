"""From a composed config to checked settings and loaded data, before anything expensive is built."""

from __future__ import annotations

import dataclasses
from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from gpt_pretrain.checkpoint import read_checkpoint
from gpt_pretrain.config import GPTConfig
from gpt_pretrain.data.datamodule import TextDataModule, cache_folder
from gpt_pretrain.data.text import find_text
from gpt_pretrain.errors import UserError
from gpt_pretrain.hardware import accelerator_device
from gpt_pretrain.model import GPTModel
from gpt_pretrain.pretrained import Weights, open_weights
from gpt_pretrain.rules import train_problems
from gpt_pretrain.runs import checkpoint_dir, find_checkpoint
from gpt_pretrain.settings import TrainSettings, typed
from gpt_pretrain.tokenizer import Tokenizer, build_tokenizer, fits


@dataclass(frozen=True)
class StartingPoint:
    """Where a run begins: a checkpoint to resume, weights to start from, or nothing.

    Args:
        resume: the checkpoint to go on from.
        step: optimizer steps done in it.
        precision: what it was trained in.
        weights: the weights that a new run starts from.
        architecture: of either.
    """

    resume: Path | None = None
    step: int = 0
    precision: str | None = None
    weights: Weights | None = None
    architecture: GPTConfig | None = None


def prepare(config: DictConfig, *, typed_keys: Set[str]) -> tuple[TrainSettings, Tokenizer, TextDataModule, StartingPoint]:
    """Check the settings, find what the run starts from, build the tokenizer, and find and tokenise the text.

    Args:
        typed_keys: the settings that were typed; where weights bring an architecture of their own, those are held to it, and
            all others follow it.

    Raises:
        UserError: with everything that is wrong, settings, weights and data together.
    """
    settings = typed(config, TrainSettings)
    problems = train_problems(settings)
    if settings.resume is None and any(checkpoint_dir(Path(settings.run_dir)).glob("*.ckpt")):
        problems.append(
            f"{settings.run_dir} holds a run already: go on with it by resume={settings.run_dir}, or choose another folder."
        )
    start, tokenizer, data = StartingPoint(), None, None
    try:
        accelerator_device(settings.trainer.accelerator)
    except UserError as error:
        problems += error.problems
    try:
        if settings.resume is not None or not problems:  # weights may have to be downloaded first
            start = starting_point(settings, typed_keys)
    except UserError as error:
        problems += error.problems
    try:
        tokenizer = build_tokenizer(settings.tokenizer.name)
        if not tokenizer.encode(settings.start_context):
            problems.append("start_context is empty: give at least one character for the samples to begin with.")
        if start.architecture is not None and not fits(tokenizer.vocab_size, start.architecture.vocab_size):
            problems.append(
                f"tokenizer={tokenizer.name} has {tokenizer.vocab_size} tokens, {settings.resume or settings.init_from} "
                f"{start.architecture.vocab_size}: choose the tokenizer that it was trained with."
            )
    except UserError as error:
        problems += error.problems
    try:
        if tokenizer is None:  # the text may be wrong as well
            find_text(settings.data, cache_dir=cache_folder(settings.data))
        elif not any(problem.startswith(("data.", "model.context_length")) for problem in problems):
            data = TextDataModule(settings.data, tokenizer, context_length=settings.model.context_length, seed=settings.seed)
            data.prepare_data()
    except UserError as error:
        problems += error.problems
    if problems:
        raise UserError(problems)
    assert tokenizer is not None and data is not None
    return settings, tokenizer, data, start


def starting_point(settings: TrainSettings, typed_keys: Set[str]) -> StartingPoint:
    """What `resume` or `init_from` names, if it fits what was typed; the other settings of model and tokenizer follow it.

    Raises:
        UserError: when there is none, or it does not fit, or the run is complete already.
    """
    if settings.resume is not None:
        path = find_checkpoint(settings.run_dir)
        content = read_checkpoint(path, resumable=True)
        architecture = GPTConfig.from_dict(content["architecture"])
        _follow(settings, architecture, content["tokenizer"], typed_keys, name=str(path), resumes=True)
        _check_incomplete(settings, content)
        precision = content["config"]["trainer"]["precision"]
        return StartingPoint(resume=path, step=int(content["global_step"]), precision=precision, architecture=architecture)
    if settings.init_from is not None:
        n_heads = settings.model.n_heads if "model.n_heads" in typed_keys else None
        weights = open_weights(settings.init_from, n_heads=n_heads)
        _follow(settings, weights.config, weights.tokenizer, typed_keys, name=weights.name, resumes=False)
        return StartingPoint(weights=weights, architecture=weights.config)
    return StartingPoint()


def build_model(settings: TrainSettings, tokenizer: Tokenizer, start: StartingPoint) -> GPTModel:
    """A new model, with the weights of the starting point if it has any."""
    if start.weights is None:
        vocab_size = tokenizer.vocab_size if start.architecture is None else start.architecture.vocab_size
        return GPTModel(GPTConfig(vocab_size=vocab_size, **dataclasses.asdict(settings.model)))
    model = start.weights.build(context_length=settings.model.context_length, drop_rate=settings.model.drop_rate).train()
    for parameter in model.parameters():  # no longer mapped to a file that somebody may write to
        parameter.data = parameter.data.clone()
    return model


def keep_config(settings: TrainSettings, run_dir: Path) -> dict[str, Any]:
    """Write the resolved settings to the run's config.yaml, and return them as plain containers."""
    config = OmegaConf.structured(settings)
    (run_dir / "config.yaml").write_text(OmegaConf.to_yaml(config), encoding="utf-8")
    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _check_incomplete(settings: TrainSettings, content: dict[str, Any]) -> None:
    progress = content["loops"]["fit_loop"]["epoch_progress"]["current"]
    epochs, steps, trainer = int(progress["processed"]), int(content["global_step"]), settings.trainer
    limit = "max_steps" if steps >= trainer.max_steps > 0 else "max_epochs" if epochs >= trainer.max_epochs else None
    if limit is not None:
        more = 2 * (steps if limit == "max_steps" else epochs)
        raise UserError(
            f"{settings.run_dir} is complete: trainer.{limit}={getattr(trainer, limit)} ended it after {epochs} epochs "
            f"and {steps} steps. To train it further, ask for more, for example: trainer.{limit}={more}"
        )


def _follow(
    settings: TrainSettings, stored: GPTConfig, tokenizer: str | None, typed_keys: Set[str], *, name: str, resumes: bool
) -> None:
    """Let the settings of model and tokenizer be those of weights, except where the user typed something.

    A new run may drop out at another rate and see fewer positions than the weights had.

    Raises:
        UserError: when what was typed differs.
    """
    held = {f"model.{size}" for size in ("emb_dim", "n_heads", "n_layers") if typed_keys & {"model", "experiment"}}
    held |= {"tokenizer.name"} if typed_keys & {"tokenizer", "experiment"} else set()
    wanted = {f"model.{field}": value for field, value in stored.to_dict().items() if field != "vocab_size"}
    if not resumes:
        del wanted["model.drop_rate"]
        if settings.model.context_length <= stored.context_length or "model.context_length" not in typed_keys:
            wanted["model.context_length"] = min(settings.model.context_length, stored.context_length)
    if tokenizer is not None:
        wanted["tokenizer.name"] = tokenizer
    differing = {}
    for key, value in wanted.items():
        group, field = key.split(".")
        if getattr(getattr(settings, group), field) != value:
            if key in typed_keys | held:
                differing[key] = value
            setattr(getattr(settings, group), field, value)
    if differing:
        raise UserError(
            f"{name} does not fit what was typed: "
            + ", ".join(f"{key} is {value} there" for key, value in differing.items())
            + ("" if resumes else " (the context can be shortened, not lengthened)" * ("model.context_length" in differing))
            + ". Leave it out, or add "
            + " ".join(f"{key}={value}" for key, value in differing.items())
        )
