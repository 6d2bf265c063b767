"""Continue a text with a trained model: python generate.py [setting=value ...]; --help tells which."""

from __future__ import annotations

import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig

from gpt_pretrain.commands import entry as cli

cli.set_up_hydra()


@hydra.main(version_base="1.3", config_path="conf", config_name="generate")
def main(config: DictConfig) -> None:
    """Print continuations of a prompt, token by token; a sweep compares them."""
    cli.guarded(compare if cli.is_sweep() else generate, config)


def compare(config: DictConfig) -> None:
    """Generate as one job of a sweep, and note what can be said of the texts."""
    from gpt_pretrain.runs.metadata import recorded

    with recorded(cli.job_dir(), **cli.how_started("generate.py")):
        generate(config, keep=cli.job_dir())


def generate(config: DictConfig, *, keep: Path | None = None) -> None:
    """Load a model, encode, sample, stream; keep the texts, and measures of them, in a folder."""
    from gpt_pretrain.checkpoints.checkpoint_file import first_whole
    from gpt_pretrain.checkpoints.pretrained import open_weights
    from gpt_pretrain.config.schema import GenerateSettings, typed
    from gpt_pretrain.config.validation import generate_problems
    from gpt_pretrain.errors import UserError
    from gpt_pretrain.generation.config import SamplerConfig
    from gpt_pretrain.generation.decoding import PRECISIONS, DecodingModel, pick_decoding_precision
    from gpt_pretrain.generation.prompts import continue_prompt, prompts
    from gpt_pretrain.runs.folder import find_checkpoints
    from gpt_pretrain.system.devices import keep_freed_memory, pick_device

    keep_freed_memory()
    settings = typed(config, GenerateSettings)
    if problems := generate_problems(settings):
        raise UserError(problems)
    if settings.pretrained is not None:
        weights = open_weights(settings.pretrained, n_heads=settings.n_heads)
    else:
        weights = first_whole(find_checkpoints(settings.checkpoint), open_weights)
    tokenizer = weights.build_tokenizer(settings.tokenizer)
    model = weights.build(device=pick_device(settings.device))
    precision, reason = pick_decoding_precision(settings.precision, model)
    print(f"({weights.name}; precision {precision}: {reason})", file=sys.stderr)
    decoder = DecodingModel(model, dtype=PRECISIONS[precision])
    texts, sampler = [], SamplerConfig(**vars(settings.sampler))
    for prompt in prompts(settings):
        texts += continue_prompt(decoder, tokenizer, prompt, sampler, n_samples=settings.n_samples, seed=settings.seed)
    if keep is not None:
        from gpt_pretrain.evaluation.generated_text import keep_measured

        keep_measured(keep, model, texts, weights.content, tokenizer)


if __name__ == "__main__":
    cli.run(main)
