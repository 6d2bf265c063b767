"""Continue a text with a trained model: python generate.py [setting=value ...]; --help tells which."""

from __future__ import annotations

import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig

from gpt_pretrain import cli

cli.set_up_hydra()


@hydra.main(version_base="1.3", config_path="conf", config_name="generate")
def main(config: DictConfig) -> None:
    """Print continuations of a prompt, token by token."""
    cli.guarded(generate, config)


def generate(config: DictConfig) -> None:
    """Load a model, encode, sample, stream."""
    from gpt_pretrain.checkpoint import load_model
    from gpt_pretrain.config import SamplerConfig
    from gpt_pretrain.errors import UserError
    from gpt_pretrain.hardware import pick_device
    from gpt_pretrain.prompts import continue_prompt, prompts
    from gpt_pretrain.rules import generate_problems
    from gpt_pretrain.runs import find_checkpoint
    from gpt_pretrain.settings import GenerateSettings, typed
    from gpt_pretrain.tokenizer import build_tokenizer

    settings = typed(config, GenerateSettings)
    if problems := generate_problems(settings):
        raise UserError(problems)
    checkpoint = find_checkpoint(settings.checkpoint)
    model, tokenizer_name = load_model(checkpoint)
    if settings.checkpoint == "latest":
        print(f"({checkpoint})", file=sys.stderr)
    model.to(pick_device(settings.device))
    tokenizer = build_tokenizer(tokenizer_name)
    if tokenizer.vocab_size != model.config.vocab_size:
        raise UserError(
            f"{checkpoint}: its tokenizer {tokenizer_name} has {tokenizer.vocab_size} tokens, "
            f"its model {model.config.vocab_size}."
        )
    for prompt in prompts(settings):
        texts = continue_prompt(
            model, tokenizer, prompt, SamplerConfig(**vars(settings.sampler)), n_samples=settings.n_samples, seed=settings.seed
        )
        if cli.is_sweep():
            Path(cli.job_dir(), "samples.txt").write_text("\n\n".join(texts) + "\n", encoding="utf-8")


if __name__ == "__main__":
    cli.run(main)
