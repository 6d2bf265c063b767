"""Pretrain a GPT on raw text: python train.py [setting=value ...]; --help tells which."""

from __future__ import annotations

import logging
import math
from pathlib import Path

import hydra
from omegaconf import DictConfig

from gpt_pretrain.commands import entry as cli
from gpt_pretrain.training.distributed import launch
from gpt_pretrain.training.distributed import ranks as distributed

cli.set_up_hydra()
log = logging.getLogger("gpt_pretrain")


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(config: DictConfig) -> float:
    """Train, and return the best validation loss in nats a token, which sweeps go by."""
    elsewhere = config.plan or launch.node_rank() or cli.ranks_to_start(config) or not distributed.is_main()
    return cli.guarded(train, config, run_dir=None if elsewhere else Path(config.run_dir))


def train(config: DictConfig) -> float:
    """Train as the settings say, and note in the run's folder how that went."""
    from gpt_pretrain.runs.folder import checkpoints
    from gpt_pretrain.training.distributed import requeue

    run_dir = Path(config.run_dir)
    if config.plan:
        return run(config, run_dir)
    if cli.is_sweep() and checkpoints(run_dir):  # a sweep that is taken up again
        config.resume = str(run_dir)
    launch.check_machines(cli.trainer_of(config).num_nodes)
    if cli.ranks_to_start(config):
        return cli.start_ranks(Path(__file__).absolute(), config)
    distributed.join()
    if not distributed.is_main():
        with distributed.lost_ranks_told():
            return run(config, run_dir)
    requeue.remember(run_dir, words=cli.TYPED)
    return cli.on_record(lambda: run(config, run_dir), run_dir, script="train.py")


def run(config: DictConfig, run_dir: Path) -> float:
    """Compose the parts that the config names, and fit."""
    from gpt_pretrain.system.devices import accelerator_device, keep_freed_memory
    from gpt_pretrain.system.resources import reset_peak_memory
    from gpt_pretrain.system.terminal import quiet_lightning
    from gpt_pretrain.training.acceleration import pick_precision
    from gpt_pretrain.training.fit import finish, fit
    from gpt_pretrain.training.preflight import keep_config, prepare

    quiet_lightning(main=distributed.is_main())
    keep_freed_memory()
    settings, tokenizer, data, start = prepare(config, typed_keys=cli.typed_keys())
    device = accelerator_device(settings.trainer.accelerator)
    reset_peak_memory(device)
    settings.trainer.precision = pick_precision(settings.trainer, device)
    if settings.plan:
        from gpt_pretrain.training.planning.dry_run import planned

        log.info("%s", planned(settings, tokenizer, data, start))
        return math.nan
    stored = keep_config(settings, run_dir)
    custom = cli.custom_callbacks(settings.callbacks.custom)
    trainer, module = fit(settings, tokenizer, data, start, config=stored, run_dir=run_dir, custom=custom)
    return finish(settings, trainer, module, run_dir=run_dir)


if __name__ == "__main__":
    cli.run(main, resumes=True)
