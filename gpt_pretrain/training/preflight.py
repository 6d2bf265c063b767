"""Check the settings and load the data of a run before anything expensive is built."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Iterable, Iterator, Set
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from gpt_pretrain.checkpoints.export.export_folder import check_export_folder, check_exportable
from gpt_pretrain.config.conversion import to_settings
from gpt_pretrain.config.custom_parts import CUSTOM, storable_parts
from gpt_pretrain.config.interpolation import escape_interpolation
from gpt_pretrain.config.schema import TrainSettings
from gpt_pretrain.config.secrets import settings_without_secrets
from gpt_pretrain.config.train_rules import train_problems
from gpt_pretrain.data.datamodule import TextDataModule
from gpt_pretrain.data.text import cache_folder, find_text
from gpt_pretrain.errors import UserError
from gpt_pretrain.evaluation.held_out import HeldOutSet, prepare_held_out
from gpt_pretrain.model.config import GPTConfig
from gpt_pretrain.runs.folder import EXPORTED, checkpoint_dir
from gpt_pretrain.system.devices import accelerator_device
from gpt_pretrain.system.files import write_text
from gpt_pretrain.system.formatting import format_count
from gpt_pretrain.system.resources import reset_peak_memory
from gpt_pretrain.tokenizers.base import Tokenizer
from gpt_pretrain.tokenizers.saving import tokenizer_files
from gpt_pretrain.training.acceleration import pick_precision
from gpt_pretrain.training.budget.amount import parse_budget
from gpt_pretrain.training.budget.plan import BudgetPlan, plan_budget
from gpt_pretrain.training.budget.typed import check_budget, check_lengths
from gpt_pretrain.training.custom_checks import check_custom_model, check_custom_optimizer, check_custom_scheduler
from gpt_pretrain.training.distributed import ranks
from gpt_pretrain.training.planning.memory import check_memory
from gpt_pretrain.training.run_length import total_steps
from gpt_pretrain.training.run_tokenizer import choose_start_context, find_tokenizer, may_train_vocabulary, tokenizer_problems
from gpt_pretrain.training.start.restored_settings import state_change_problems
from gpt_pretrain.training.start.starting_point import StartingPoint, build_model, from_checkpoint, from_weights

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingSetup:
    """The checked settings, the tokenizer, the data and the starting point of a run.

    Args:
        overridden: The names of the settings that the user has typed.
        held_out: Texts and tasks to evaluate on, if there are any.
        budget: The plan that follows from the run's budget; None without one.
    """

    settings: TrainSettings
    tokenizer: Tokenizer
    data: TextDataModule
    start: StartingPoint
    overridden: Set[str] = frozenset()
    held_out: HeldOutSet | None = None
    budget: BudgetPlan | None = None

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run as currently planned."""
        return total_steps(self.data, self.settings.trainer) if self.budget is None else self.budget.pace.last_step


class ProblemCollector:
    """Collect the problems of several checks, to report them together.

    Args:
        problems: Problems that are known already.
    """

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = list(problems)

    @contextmanager
    def collect(self) -> Iterator[None]:
        """Add the problems of a UserError that is raised inside, and continue after the block."""
        try:
            yield
        except UserError as error:
            self.problems += error.problems


def prepare_training(config: DictConfig, *, overridden: Set[str], began: float | None = None) -> TrainingSetup:
    """Check the settings, find the starting point, build the tokenizer, and find and tokenize the text.

    Args:
        overridden: The settings that the user overrides. If weights fix the architecture, an override that contradicts them is a
            problem. All other settings adapt to the weights.
        began: The start of a time budget, in seconds of `time.monotonic`; None for now.

    Raises:
        UserError: If anything is wrong. It lists the problems of settings, weights and data together.
    """
    settings, start, changes = from_checkpoint(_resolve_devices(to_settings(config, TrainSettings)), overridden)
    budget = _plan_by_budget(settings, start, overridden, time.monotonic() if began is None else began)
    found = _check_settings(settings)
    with found.collect():
        if settings.init_from is not None and start.resume is None and not found.problems:  # it may download the weights
            start = from_weights(settings, overridden)
    with found.collect():
        if settings.export and not found.problems:  # The weights may have another architecture than the settings had.
            check_exportable(GPTConfig(vocab_size=1, **dataclasses.asdict(settings.model)))
    tokenizer = data = held_out = None
    with found.collect():
        # A vocabulary is trained, and a text is tokenized, only for settings that are valid: both may take long.
        if not found.problems or not may_train_vocabulary(settings):
            tokenizer = find_tokenizer(settings, start, overridden)
            found.problems += tokenizer_problems(settings, tokenizer, overridden)
    is_valid = not found.problems
    with found.collect():
        if tokenizer is None or not is_valid:  # A problem with the text is reported too.
            _check_text(settings)
        else:
            data = _load_data(settings, tokenizer)
            check_memory(settings, vocab_size=tokenizer.vocab_size, n_windows=settings.data.batch_windows)
            if "start_context" not in overridden:
                choose_start_context(settings, tokenizer, data.split)
    with found.collect():
        if tokenizer is not None and is_valid:
            held_out = _prepare_held_out(settings, tokenizer)
    found.problems += _resume_problems(settings, start, data, changes)
    if found.problems:
        raise UserError(found.problems)
    assert tokenizer is not None and data is not None
    if "model" in settings.custom:
        build_model(settings, tokenizer, start)  # The user's class may fail, which is reported before the run has a folder.
    device = accelerator_device(settings.trainer.accelerator)
    reset_peak_memory(device)
    settings.trainer.precision = pick_precision(settings.trainer, device)
    return TrainingSetup(settings, tokenizer, data, start, overridden, held_out, budget)


def _check_settings(settings: TrainSettings) -> ProblemCollector:
    """Collect the problems that can be seen before weights, tokenizer and data are opened."""
    found = ProblemCollector(train_problems(settings))
    checks = (check_custom_model, check_custom_optimizer, check_custom_scheduler, _check_no_other_run, _check_export)
    for check in checks:
        with found.collect():
            check(settings)
    with found.collect():
        accelerator_device(settings.trainer.accelerator)
        if not found.problems:
            check_memory(settings, vocab_size=1, n_windows=1)  # before a vocabulary is tried with this model
    return found


def _resume_problems(settings: TrainSettings, start: StartingPoint, data: TextDataModule | None, changes: list[str]) -> list[str]:
    """List the changes that keep a run from being resumed. Without changes, its epochs keep their number of windows.

    Args:
        data: The data; None if other problems keep it from being loaded.
        changes: The settings that differ from the resumed run's.
    """
    if start.resume is None:
        return []
    if data is not None:
        changes = changes + _data_changes(data, start)
        data.resumed_epoch_windows = None if changes else start.epoch_windows
    return state_change_problems(changes, path=start.resume, force=settings.resume_force)


def _plan_by_budget(settings: TrainSettings, start: StartingPoint, overridden: Set[str], began: float) -> BudgetPlan | None:
    """Choose settings by the budget, if there is one. A resumed run already has them."""
    if settings.budget is None:
        return None
    if start.pace is not None:
        check_lengths(settings, overridden)
        return BudgetPlan(parse_budget(settings.budget), start.pace, [], began)
    first = ProblemCollector(train_problems(settings))  # These problems are reported before anything is measured.
    with first.collect():
        _check_no_other_run(settings)
    with first.collect():
        check_budget(settings, overridden)
    if first.problems:
        raise UserError(first.problems)
    plan = plan_budget(settings, overridden, began=began)
    for line in plan.lines:
        log.info("%s", line)
    return plan


def save_config(settings: TrainSettings, tokenizer: Tokenizer, run_dir: Path) -> dict[str, Any]:
    """Write the resolved settings to the run's config.yaml, and write the tokenizer's own files.

    Passwords and signatures are removed from config.yaml.

    Returns:
        The settings as plain containers, for checkpoints. Of the user's own callbacks they hold only the class names, so that a
        checkpoint cannot decide what is built.
    """
    plain = settings_without_secrets(dataclasses.asdict(settings))
    if ranks.is_main():
        write_text(run_dir / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(escape_interpolation(plain))))
        for name, content in tokenizer_files(tokenizer).items():
            write_text(run_dir / name, content)
    custom = plain["callbacks"]["custom"]
    plain["callbacks"]["custom"] = {name: str(fields.get("_target_")) for name, fields in custom.items()}
    if plain["custom"]:
        plain["custom"] = storable_parts(plain["custom"])
    else:
        del plain["custom"]
    return plain


def _resolve_devices(settings: TrainSettings) -> TrainSettings:
    """Set trainer.devices and trainer.num_nodes to match the started processes, or "auto" to this machine's devices.

    Raises:
        UserError: If the settings do not match the processes that were started, or exceed the GPUs of this machine.
    """
    trainer, here = settings.trainer, ranks.local_world_size()
    if ranks.is_distributed():
        nodes = ranks.world_size() // here
        if trainer.devices not in ("auto", 1, here) or trainer.num_nodes not in (1, nodes):
            raise UserError(
                f"trainer.devices={trainer.devices} and trainer.num_nodes={trainer.num_nodes} do not match the {here} processes "
                f"that were started on each of {nodes} machines. Remove both settings, or set them to these numbers."
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
                f"trainer.devices={trainer.devices} is more than the {format_count(gpus, 'GPU')} of this machine. Choose at most "
                "that number, or trainer.accelerator=cpu."
            )
    return settings


def _check_no_other_run(settings: TrainSettings) -> None:
    if settings.resume is None and any(checkpoint_dir(Path(settings.run_dir)).glob("*.ckpt")):
        raise UserError(
            f"{settings.run_dir} already holds a run. Resume it with resume={settings.run_dir}, or choose another folder."
        )


def _check_export(settings: TrainSettings) -> None:
    if settings.export:
        check_export_folder(Path(settings.run_dir) / EXPORTED)


def _check_text(settings: TrainSettings) -> None:
    if settings.data.name not in ("shards", "mixture", CUSTOM):
        find_text(settings.data, cache_dir=cache_folder(settings.data))


def _load_data(settings: TrainSettings, tokenizer: Tokenizer) -> TextDataModule:
    data = TextDataModule(
        settings.data,
        tokenizer,
        context_length=settings.model.context_length,
        seed=settings.seed,
        rank=ranks.rank(),
        world_size=int(settings.trainer.devices) * settings.trainer.num_nodes,
        custom=settings.custom.get("data"),
    )
    with ranks.local_main_first():  # the first rank of each machine writes the token files
        data.prepare_data()
    return data


def _prepare_held_out(settings: TrainSettings, tokenizer: Tokenizer) -> HeldOutSet | None:
    with ranks.local_main_first():  # the first rank of each machine writes the token files
        return prepare_held_out(settings.evaluation, settings.data, tokenizer, context_length=settings.model.context_length)


def _data_changes(data: TextDataModule, start: StartingPoint) -> list[str]:
    """List the data settings that differ from the resumed run's."""
    if data.split.text_sha256 != start.text_sha256:
        return ["the content of the text has changed"]
    if start.epoch_windows > len(data.train):
        return [f"an epoch had {start.epoch_windows:,} windows, but the training set has {len(data.train):,}"]
    if start.epoch_windows % data.settings.batch_windows:
        return [
            f"an epoch had {start.epoch_windows} windows, which data.batch_size={data.settings.batch_windows} does not divide"
        ]
    return []
