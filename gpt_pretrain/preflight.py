"""From a composed config to checked settings and loaded data, before anything expensive is built."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from gpt_pretrain.checkpoint import assign_weights, read_checkpoint
from gpt_pretrain.config import GPTConfig
from gpt_pretrain.data.datamodule import TextDataModule, cache_folder
from gpt_pretrain.data.text import find_text
from gpt_pretrain.errors import UserError
from gpt_pretrain.hardware import accelerator_device
from gpt_pretrain.model import GPTModel
from gpt_pretrain.rules import train_problems
from gpt_pretrain.runs import checkpoint_dir, find_checkpoint
from gpt_pretrain.settings import TrainSettings, typed
from gpt_pretrain.tokenizer import Tokenizer, build_tokenizer


@dataclass(frozen=True)
class StartingPoint:
    """Where a run begins: a checkpoint to resume, weights to start from, or nothing.

    Args:
        resume: the checkpoint to go on from.
        step: optimizer steps done in it.
        precision: what it was trained in.
        weights: the checkpoint whose weights a new run starts from.
    """

    resume: Path | None = None
    step: int = 0
    precision: str | None = None
    weights: Path | None = None


def prepare(config: DictConfig) -> tuple[TrainSettings, Tokenizer, TextDataModule]:
    """Check the settings, build the tokenizer, and find and tokenise the text.

    Raises:
        UserError: with everything that is wrong, settings and data together.
    """
    settings = typed(config, TrainSettings)
    problems = train_problems(settings)
    if settings.resume is None and any(checkpoint_dir(Path(settings.run_dir)).glob("*.ckpt")):
        problems.append(
            f"{settings.run_dir} holds a run already: go on with it by resume={settings.run_dir}, or choose another folder."
        )
    tokenizer = data = None
    try:
        accelerator_device(settings.trainer.accelerator)
    except UserError as error:
        problems += error.problems
    try:
        tokenizer = build_tokenizer(settings.tokenizer.name)
        if not tokenizer.encode(settings.start_context):
            problems.append("start_context is empty: give at least one character for the samples to begin with.")
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
    return settings, tokenizer, data


def starting_point(settings: TrainSettings, tokenizer: Tokenizer) -> StartingPoint:
    """The checkpoint that `resume` or `init_from` names, if it fits the settings.

    Raises:
        UserError: when there is none, or its tokenizer or architecture differs, or the run is complete already.
    """
    if settings.resume is not None:
        path = find_checkpoint(settings.run_dir)
        content = read_checkpoint(path, resumable=True)
        _check_fit(path, content, settings, tokenizer, may_differ=())
        progress = content["loops"]["fit_loop"]["epoch_progress"]["current"]
        epochs, steps, trainer = int(progress["processed"]), int(content["global_step"]), settings.trainer
        limit = "max_steps" if steps >= trainer.max_steps > 0 else "max_epochs" if epochs >= trainer.max_epochs else None
        if limit is not None:
            more = 2 * (steps if limit == "max_steps" else epochs)
            raise UserError(
                f"{settings.run_dir} is complete: trainer.{limit}={getattr(trainer, limit)} ended it after {epochs} epochs "
                f"and {steps} steps. To train it further, ask for more, for example: trainer.{limit}={more}"
            )
        return StartingPoint(resume=path, step=steps, precision=content["config"]["trainer"]["precision"])
    if settings.init_from is not None:
        path = find_checkpoint(settings.init_from)
        _check_fit(path, read_checkpoint(path), settings, tokenizer, may_differ=("drop_rate", "init"))
        return StartingPoint(weights=path)
    return StartingPoint()


def build_model(settings: TrainSettings, tokenizer: Tokenizer, start: StartingPoint) -> GPTModel:
    """A new model, with the weights of the starting point if it has any."""
    model = GPTModel(GPTConfig(vocab_size=tokenizer.vocab_size, **dataclasses.asdict(settings.model)))
    if start.weights is not None:
        weights = read_checkpoint(start.weights)["state_dict"]
        assign_weights(model, {name: value.clone() for name, value in weights.items()}, source=start.weights)
    return model


def keep_config(settings: TrainSettings, run_dir: Path) -> dict[str, Any]:
    """Write the resolved settings to the run's config.yaml, and return them as plain containers."""
    config = OmegaConf.structured(settings)
    (run_dir / "config.yaml").write_text(OmegaConf.to_yaml(config), encoding="utf-8")
    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _check_fit(
    path: Path, content: dict[str, Any], settings: TrainSettings, tokenizer: Tokenizer, *, may_differ: tuple[str, ...]
) -> None:
    if content["tokenizer"] != tokenizer.name:
        raise UserError(
            f"{path} was trained with the tokenizer {content['tokenizer']}, not {tokenizer.name}. "
            f"Add tokenizer={content['tokenizer']}"
        )
    stored = GPTConfig.from_dict(content["architecture"]).to_dict()
    wanted = dataclasses.asdict(settings.model)
    differing = {name: stored[name] for name, value in wanted.items() if stored[name] != value and name not in may_differ}
    if differing:
        raise UserError(
            f"{path} has another architecture than the settings: "
            + ", ".join(f"{name} is {value} there and {wanted[name]} here" for name, value in differing.items())
            + ". Add "
            + " ".join(f"model.{name}={value}" for name, value in differing.items())
        )
