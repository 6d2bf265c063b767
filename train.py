"""Pretrain a GPT on raw text: python train.py [setting=value ...]; --help tells which."""

from __future__ import annotations

import logging
import math
from pathlib import Path

import hydra
from omegaconf import DictConfig

from gpt_pretrain import cli

cli.set_up_hydra()
log = logging.getLogger("gpt_pretrain")


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(config: DictConfig) -> float:
    """Train, and return the best validation loss in nats a token, which sweeps go by."""
    return cli.guarded(train, config, run_dir=None if config.plan else Path(config.run_dir))


def train(config: DictConfig) -> float:
    """Train as the settings say, and note in the run's folder how that went."""
    from gpt_pretrain.errors import AlreadyCompleteError
    from gpt_pretrain.record import read_record, recorded, update_record
    from gpt_pretrain.runs import checkpoints

    run_dir = Path(config.run_dir)
    if config.plan:
        return run(config, run_dir)
    if cli.is_sweep() and checkpoints(run_dir):  # a sweep that is taken up again
        config.resume = str(run_dir)
    try:
        with recorded(run_dir, **cli.how_started("train.py")):
            return run(config, run_dir)
    except AlreadyCompleteError as done:
        if not cli.is_sweep():
            raise
        update_record(run_dir, result=read_record(run_dir).get("result", {}) | done.result)
        return float(done.result["best_val_loss"])


def run(config: DictConfig, run_dir: Path) -> float:
    """Compose the parts that the config names, and fit."""
    from gpt_pretrain import slurm, summary
    from gpt_pretrain.console import quiet_lightning
    from gpt_pretrain.fit import fit
    from gpt_pretrain.hardware import accelerator_device, keep_freed_memory, pick_precision
    from gpt_pretrain.machine import reset_peak_memory
    from gpt_pretrain.preflight import keep_config, prepare

    quiet_lightning()
    keep_freed_memory()
    settings, tokenizer, data, start = prepare(config, typed_keys=cli.typed_keys())
    device = accelerator_device(settings.trainer.accelerator)
    reset_peak_memory(device)
    precision, reason = pick_precision(settings.trainer.precision, device, deterministic=settings.trainer.deterministic)
    settings.trainer.precision = precision
    log.info("precision %s (%s)", precision, reason)
    if settings.plan:
        from gpt_pretrain.rehearsal import planned

        log.info("%s", planned(settings, tokenizer, data, start))
        return math.nan
    stored = keep_config(settings, run_dir)
    slurm.remember(run_dir, words=cli.TYPED)
    custom = cli.custom_callbacks(settings.callbacks.custom)
    trainer, module = fit(settings, tokenizer, data, start, config=stored, run_dir=run_dir, custom=custom)
    log.info("%s", summary.after(settings, trainer, module, run_dir))
    if settings.export:
        from gpt_pretrain.formats.huggingface import export_run

        export_run(run_dir)
    return summary.best_loss(trainer)


if __name__ == "__main__":
    cli.run(main, resumes=True)
