"""A text after each epoch."""

from __future__ import annotations

import logging
import re
import textwrap
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from gpt_pretrain.config import SamplerConfig
from gpt_pretrain.generation import generate_stream
from gpt_pretrain.lit_module import GPTLitModule
from gpt_pretrain.loggers import EventFiles
from gpt_pretrain.runs import write_whole
from gpt_pretrain.tokenizer import Tokenizer, decode

log = logging.getLogger(__name__)


class Samples(Callback):
    """Continues start_context after each epoch: printed on one line, kept in samples.txt and as text in TensorBoard.

    Args:
        tokenizer: of the model.
        start_context: the prompt.
        sampler: how to choose tokens.
        seed: of the choices; they are drawn apart from the training's randomness.
        file: samples.txt.
    """

    def __init__(self, tokenizer: Tokenizer, *, start_context: str, sampler: SamplerConfig, seed: int, file: Path) -> None:
        self.tokenizer = tokenizer
        self.start_context = start_context
        self.sampler = sampler
        self.seed = seed
        self.file = file

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.file.exists():  # a resumed run: forget what was written after its checkpoint
            parts = re.split(r"^(?=--- epoch )", self.file.read_text(encoding="utf-8"), flags=re.MULTILINE)
            steps = [re.match(r"--- epoch \d+, step (\d+)", part) for part in parts]
            datamodule = getattr(trainer, "datamodule", None)
            first = trainer.global_step - bool(getattr(datamodule, "resumes_mid_epoch", False))  # a limit's sample goes too
            kept = [part for part, step in zip(parts, steps, strict=True) if step and int(step[1]) < first]
            write_whole(self.file, "".join(kept))

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: GPTLitModule) -> None:
        with pl_module.off_the_clock():
            text = self._sample(pl_module)
        log.info("%s", "".join(char if char.isprintable() else " " for char in text))
        head = f"--- epoch {trainer.current_epoch + 1}, step {pl_module.step}, {pl_module.tokens_seen} tokens seen"
        try:
            with open(self.file, "a", encoding="utf-8") as stream:
                stream.write(f"{head}\n{text}\n")
        except OSError as error:
            log.warning("%s cannot be written: %s.", self.file, error.strerror or error)
        for logger in trainer.loggers:
            if isinstance(logger, EventFiles):
                logger.add_text("sample", _code_block(text), step=pl_module.step)

    def _sample(self, module: GPTLitModule) -> str:
        prompt = torch.tensor([self.tokenizer.encode(self.start_context)], device=module.device)
        generator = torch.Generator(device=module.device).manual_seed(self.seed)
        new = [int(column) for column in generate_stream(module.model, prompt, self.sampler, generator=generator)]
        return decode(self.tokenizer, prompt[0].tolist() + new)


def _code_block(text: str) -> str:
    """Markdown that shows a text as it is, in lines that fit a page."""
    lines = (part for line in text.splitlines() for part in textwrap.wrap(line, 100) or [""])
    return "\n".join("    " + line for line in lines)
