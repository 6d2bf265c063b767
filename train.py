"""Pretrain a GPT on raw text: python train.py [setting=value ...]; --help tells which."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig

from gpt_pretrain import cli

cli.set_up_hydra()
log = logging.getLogger("gpt_pretrain")


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(config: DictConfig) -> float:
    """Train, and return the best validation loss in nats a token, which sweeps go by."""
    return cli.guarded(train, config, log_file=Path(config.run_dir) / "train.log")


def train(config: DictConfig) -> float:
    """Compose the parts that the config names, and fit."""
    import lightning as L
    import torch

    from gpt_pretrain import summary
    from gpt_pretrain.console import quiet_lightning
    from gpt_pretrain.hardware import accelerator_device, compile_model, keep_freed_memory, pick_precision
    from gpt_pretrain.lit_module import GPTLitModule
    from gpt_pretrain.preflight import build_model, keep_config, prepare
    from gpt_pretrain.tokenizer import token_byte_lengths
    from gpt_pretrain.trainer import build_trainer, total_steps

    quiet_lightning()
    keep_freed_memory()
    settings, tokenizer, data, start = prepare(config, typed_keys=cli.typed_keys())
    run_dir = Path(settings.run_dir)
    device = accelerator_device(settings.trainer.accelerator)
    precision, precision_reason = pick_precision(start.precision or settings.trainer.precision, device)
    settings.trainer.precision = precision
    stored = keep_config(settings, run_dir)
    cli.keep_overrides(run_dir)

    L.seed_everything(settings.seed, workers=True, verbose=False)
    model = build_model(settings, tokenizer, start)
    compiled, compile_reason = compile_model(model, settings.compile, device)
    module = GPTLitModule(
        model,
        optimizer=settings.optimizer,
        scheduler=settings.scheduler,
        total_steps=total_steps(data, settings.trainer),
        token_bytes=torch.from_numpy(token_byte_lengths(tokenizer)),
    )
    custom = cli.custom_callbacks(settings.callbacks.custom)
    trainer = build_trainer(settings, data, tokenizer, config=stored, run_dir=run_dir, first_step=start.step, custom=custom)

    log.info("%s", summary.before(settings, data, model))
    log.info("precision %s (%s); compile %s (%s)", precision, precision_reason, "on" if compiled else "off", compile_reason)
    try:
        trainer.fit(module, datamodule=data, ckpt_path=start.resume, weights_only=True)
    except SystemExit:
        if not trainer.interrupted:
            raise
        log.warning("%s", summary.interrupted(trainer, run_dir))
        sys.exit(130)
    if settings.export:
        from gpt_pretrain.formats.huggingface import export_run

        export_run(run_dir)
    log.info("%s", summary.after(settings, trainer, module, run_dir))
    return summary.best_loss(trainer)


if __name__ == "__main__":
    cli.run(main)
