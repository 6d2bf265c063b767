"""The disk that the jobs of somebody else's sweep may use. Together, a few short jobs of a large model could fill it."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

from gpt_pretrain.errors import UserError
from gpt_pretrain.model.config import GPTConfig
from gpt_pretrain.system.formatting import format_si
from gpt_pretrain.system.resources import nearest_folder
from gpt_pretrain.training.planning.plan import disk_needed, make_plan
from gpt_pretrain.training.preflight import TrainingSetup

SPARE_DISK = 0.05  # share of a disk that stays free


def check_disk_of_foreign_job(setup: TrainingSetup) -> None:
    """Check that a job of somebody else's sweep leaves a part of the disk free.

    Raises:
        UserError: If it does not.
    """
    settings, needed = setup.settings, 0
    if "model" not in settings.custom:  # The size of a model of the user's own is not known.
        config = GPTConfig(vocab_size=setup.tokenizer.vocab_size, **dataclasses.asdict(settings.model))
        needed = disk_needed(make_plan(settings, setup.data, config, first_step=setup.start.step), settings)
    usage = shutil.disk_usage(nearest_folder(Path(settings.run_dir)))
    if usage.free - needed < SPARE_DISK * usage.total:
        raise UserError(
            f"This job belongs to somebody else's sweep and needs up to {format_si(needed, 'B')} of disk, but only "
            f"{format_si(usage.free, 'B')} are free, of which {format_si(SPARE_DISK * usage.total, 'B')} have to stay free. "
            "Free some space, and resume the sweep."
        )
