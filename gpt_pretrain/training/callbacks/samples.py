"""Generate sample texts after each epoch."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from gpt_pretrain.config.custom_parts import naming_overrides
from gpt_pretrain.config.schema import GridSettings
from gpt_pretrain.data.datamodule import TextDataModule
from gpt_pretrain.evaluation.memorization import longest_memorized_span
from gpt_pretrain.generation.config import SamplerConfig
from gpt_pretrain.generation.decoding import DecodingModel, decoding_model
from gpt_pretrain.generation.sampling import generate_stream
from gpt_pretrain.runs.folder import display_path
from gpt_pretrain.runs.next_commands import page_command
from gpt_pretrain.runs.samples import Sample, markdown_code_block, markdown_table, pick_evenly, read_samples
from gpt_pretrain.runs.tensorboard import EventFiles
from gpt_pretrain.system.files import open_for_append, write_text
from gpt_pretrain.tokenizers.base import Tokenizer, decode, missing_ids
from gpt_pretrain.tokenizers.splitting import encode_prompt
from gpt_pretrain.training.clock import StopAskedError, StopWatch
from gpt_pretrain.training.distributed import ranks
from gpt_pretrain.training.distributed.fsdp import gather_model
from gpt_pretrain.training.lit_module import GPTLitModule

ROWS = 40  # rows of a table in TensorBoard; the table is rewritten after each epoch

log = logging.getLogger(__name__)


class Samples(Callback):
    """Continue start_context after each epoch. Print the text, and add it to samples.txt and to TensorBoard.

    Each text is recorded with the length of its longest memorized span. A batch system does not wait long before it kills a run
    that was asked to stop. Texts that are then incomplete after a few seconds are left out. The resumed run generates them.

    Args:
        tokenizer: The tokenizer of the model.
        data: The data with the training text.
        start_context: The prompt.
        sampler: The sampler settings.
        grid: Other sampler settings and prompts to try after each epoch.
        seed: The seed of the sampler. Its random numbers are separate from the training's.
        file: The path of samples.txt.

    Attributes:
        samples: The samples made with start_context and sampler, one for each epoch.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        data: TextDataModule,
        *,
        start_context: str,
        sampler: SamplerConfig,
        grid: GridSettings | None,
        seed: int,
        file: Path,
    ) -> None:
        self.tokenizer = tokenizer
        self.data = data
        self.start_context = start_context
        self.sampler = sampler
        self.grid = grid
        self.seed = seed
        self.file = file
        self.samples: list[Sample] = []
        self._banned_ids: list[int] | None = None
        self._watch = StopWatch()

    def on_train_start(self, trainer: L.Trainer, pl_module: GPTLitModule) -> None:
        if self.file.exists() and ranks.is_main():
            # A resumed run drops the samples that are newer than its checkpoint. If a limit ended it within an epoch, the sample
            # taken at that moment is dropped too.
            first = trainer.global_step - bool(self.data.resumes_mid_epoch)
            kept = [sample for sample in read_samples(self.file) if sample.step < first]
            write_text(self.file, "".join(map(str, kept)))
            self.samples = [sample for sample in kept if sample.sampler is None]
        if trainer.global_step == 0 or self.data.resumes_mid_epoch:
            return
        is_missing = all(sample.step != pl_module.step for sample in self.samples)  # the run ended before it made the sample
        if pl_module.device_mesh is not None:  # All ranks of a sharded model have this callback.
            is_missing = bool(ranks.broadcast(is_missing))
        if is_missing:
            self._generate(trainer, pl_module, epoch=trainer.current_epoch)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: GPTLitModule) -> None:
        self._generate(trainer, pl_module, epoch=trainer.current_epoch + 1)

    def _generate(self, trainer: L.Trainer, module: GPTLitModule, *, epoch: int) -> None:
        """Generate and record the texts of an epoch that has just ended."""
        with module.clock.paused():
            model = gather_model(module.model)
            if model is None:
                return
            decoder = decoding_model(model)  # All texts share its weights, laid out in memory once.
            try:
                sample = self._sample(decoder, module, self.start_context, self.sampler, epoch=epoch)
                tried = self._try_grid(decoder, module, epoch=epoch)
            except StopAskedError:
                until = "" if trainer.global_step >= module.total_steps else " until the run resumes"
                log.info("The sample of epoch %d is left out%s, because the run was asked to stop.", epoch, until)
                return
            finally:
                del model, decoder
        self.samples.append(sample)
        log.info("%s", "".join(char if char.isprintable() else " " for char in sample.text))
        try:
            with open_for_append(self.file) as stream:
                stream.write("".join(map(str, [sample, *tried])).encode())
        except OSError as error:
            log.warning("%s cannot be written: %s.", self.file, error.strerror or error)
        for logger in trainer.loggers:
            if isinstance(logger, EventFiles):
                own_model = {group: fields for group, fields in module.custom.items() if group == "model"}
                self._show(logger, sample, tried, named=naming_overrides(own_model))

    def _show(self, logger: EventFiles, sample: Sample, tried: Sequence[Sample], *, named: Sequence[str]) -> None:
        """Add the sample, a table of the samples so far, and a table of the decoding grid to TensorBoard."""
        command = page_command(display_path(self.file.parent), named=named)
        shown = f"{markdown_code_block(sample.text)}\n\nTo try the model on a page:\n\n    {command}"
        logger.add_text("sample", shown, step=sample.step)
        logger.add_text("samples over time", markdown_table(pick_evenly(self.samples, ROWS)), step=sample.step)
        if tried:
            logger.add_text("decoding grid", markdown_table(tried), step=sample.step)

    def _try_grid(self, decoder: DecodingModel, module: GPTLitModule, *, epoch: int) -> list[Sample]:
        if self.grid is None:
            return []
        samples = []
        for prompt, temperature, top_k in product(
            self.grid.prompts or [self.start_context], self.grid.temperatures, self.grid.top_ks
        ):
            sampler = SamplerConfig(self.sampler.max_new_tokens, temperature, top_k, None)
            name = f"temperature {temperature:g}, top_k {'null' if top_k is None else top_k}"
            samples.append(self._sample(decoder, module, prompt, sampler, epoch=epoch, name=name))
        return samples

    def _sample(
        self,
        decoder: DecodingModel,
        module: GPTLitModule,
        prompt: str,
        sampler: SamplerConfig,
        *,
        epoch: int,
        name: str | None = None,
    ) -> Sample:
        token_ids = torch.tensor([encode_prompt(prompt, self.tokenizer)], device=module.device)
        generator = torch.Generator(device=module.device).manual_seed(self.seed)
        new = []
        if self._banned_ids is None:
            self._banned_ids = missing_ids(self.tokenizer, decoder.config.vocab_size)
        for column in generate_stream(decoder, token_ids, sampler, banned_ids=self._banned_ids, generator=generator):
            new.append(int(column))
            self._watch.check(module.wants_stop and len(new) < sampler.max_new_tokens)
        return Sample(
            epoch=epoch,
            step=module.step,
            tokens_seen=module.tokens_seen,
            text=prompt + decode(self.tokenizer, new),
            sampler=name,
            new_tokens=len(new),
            run_length=longest_memorized_span(new, self.data.split.train),
        )
