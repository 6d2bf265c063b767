"""Train one small model with the program's optimizer, schedule and data, and measure the bits per byte of held-out text."""

from __future__ import annotations

import math
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.scaling.texts import StudyText
from gpt_pretrain.config.schema import DataSettings, OptimizerSettings, RoleSettings, SchedulerSettings
from gpt_pretrain.data.datamodule import TextDataModule
from gpt_pretrain.evaluation.loss import mean_loss, next_token_loss
from gpt_pretrain.model.build import new_model
from gpt_pretrain.model.config import GPTConfig
from gpt_pretrain.model.language_model import LanguageModel
from gpt_pretrain.tokenizers.base import Tokenizer, token_byte_lengths
from gpt_pretrain.tokenizers.bpe_training import train_bpe
from gpt_pretrain.tokenizers.build import build_tokenizer
from gpt_pretrain.training.acceleration import precision_for
from gpt_pretrain.training.distributed import ranks
from gpt_pretrain.training.optimization.optimizer import build_optimizer, clip_gradients, gradient_norm
from gpt_pretrain.training.optimization.schedule import lr_at

HEAD_DIM = 32
# These sizes mean the vocabulary of bytes, and GPT-2's.
BYTE_TOKENS, GPT2_TOKENS = 257, 50_257
CLIP = 1.0  # trainer.gradient_clip_val
DROPOUT = {"none": 0.0, "light": 0.1, "strong": 0.2}
DECAYS = {"none": (0.0, 0.0), "light": (0.1, 0.5), "strong": (0.2, 1.0)}  # of the matrices and of the output head


@dataclass(frozen=True)
class Trial:
    """One training.

    Args:
        text: Name of a text.
        unique_bytes: Bytes of its beginning to train on.
        trained_bytes: Bytes to train on, in several passes if `unique_bytes` is smaller.
        vocab_size: Tokens of a byte-pair encoding of that beginning; BYTE_TOKENS for bytes, GPT2_TOKENS for GPT-2's vocabulary.
        width: Width of the model, a multiple of HEAD_DIM.
        layers: Blocks.
        batch: Windows per optimizer step.
        context: Tokens of a window.
        regularization: "none", "light" or "strong".
        rate: Factor on all learning rates of the modern model.
        seed: Seed of the weights, the order and dropout.
    """

    text: str
    unique_bytes: int
    trained_bytes: int
    vocab_size: int
    width: int
    layers: int
    batch: int
    context: int = 128
    regularization: str = "none"
    rate: float = 1.0
    seed: int = 1


def run_trial(trial: Trial, text: StudyText) -> dict[str, Any]:
    """Train, and return the trial's settings with the measurements."""
    with tempfile.TemporaryDirectory() as folder:
        data, tokenizer, bytes_per_token = _load(trial, text, Path(folder))
        steps = max(1, round(trial.trained_bytes / bytes_per_token / (trial.batch * trial.context)))
        torch.manual_seed(trial.seed)
        model = new_model(_architecture(trial, tokenizer))
        precision, _ = precision_for("auto", torch.device("cpu"))
        start = time.process_time()
        _train(model, data, trial, steps, bf16=precision.startswith("bf16"))
        seconds = time.process_time() - start
        loss = mean_loss(
            model.eval(),
            data.val_dataloader(),
            token_bytes=torch.from_numpy(token_byte_lengths(tokenizer)),
            all_reduce=ranks.all_reduce_sum,
        )
    parameters = model.num_parameters()
    embedding = model.config.vocab_size * model.config.emb_dim
    return asdict(trial) | {
        "steps": steps,
        "tokens": steps * trial.batch * trial.context,
        "bytes_per_token": round(bytes_per_token, 4),
        "distinct_tokens": len(set(tokenizer.encode_ordinary(text.training(trial.unique_bytes)))),
        "parameters": parameters,
        "matrices": parameters - 2 * embedding,
        "bits_per_byte": round(loss.bits_per_byte, 4),
        "cpu_seconds": round(seconds, 1),
        "precision": precision,
    }


def _load(trial: Trial, text: StudyText, folder: Path) -> tuple[TextDataModule, Tokenizer, float]:
    """Write the text of the trial, and return it as windows, its tokenizer, and its bytes per token."""
    train = text.training(trial.unique_bytes)
    file = folder / "text.txt"
    file.write_text(train + text.held_out, encoding="utf-8", newline="")
    ready = {BYTE_TOKENS: "byte", GPT2_TOKENS: "gpt2"}.get(trial.vocab_size)
    tokenizer = train_bpe([train], trial.vocab_size) if ready is None else build_tokenizer(ready)
    settings = DataSettings(
        name="text",
        path=str(file),
        url=None,
        sha256=None,
        cache_dir=str(folder),
        batch_size=trial.batch,
        train_ratio=(len(train) + 0.5) / (len(train) + len(text.held_out)),
        stride=None,
        shift_windows=True,
        num_workers=0,
        as_text=True,
    )
    data = TextDataModule(settings, tokenizer, context_length=trial.context, seed=trial.seed)
    data.prepare_data()
    return data, tokenizer, len(train.encode()) / data.split.train.count


def _architecture(trial: Trial, tokenizer: Tokenizer) -> GPTConfig:
    return GPTConfig(
        vocab_size=tokenizer.vocab_size,
        context_length=trial.context,
        emb_dim=trial.width,
        n_heads=trial.width // HEAD_DIM,
        n_layers=trial.layers,
        drop_rate=DROPOUT[trial.regularization],
        tie_embeddings=False,
        init="modern",
        kind="modern",
    )


def _optimizer_settings(trial: Trial) -> OptimizerSettings:
    """Return the settings of optimizer=muon_modern, with the trial's rates and decays."""
    matrices, head = DECAYS[trial.regularization]
    return OptimizerSettings(
        name="muon",
        lr=0.02 * trial.rate,
        weight_decay=0.0,
        betas=[0.8, 0.95],
        eps=1e-10,
        decay="roles",
        momentum=0.9,
        matrices=RoleSettings(weight_decay=matrices),
        embedding=RoleSettings(lr=0.3 * trial.rate),
        head=RoleSettings(lr=0.01 * trial.rate, weight_decay=head),
        vectors=RoleSettings(lr=4e-3 * trial.rate),
    )


def _train(model: LanguageModel, data: TextDataModule, trial: Trial, steps: int, *, bf16: bool) -> None:
    """Train for a number of optimizer steps with a linear decay over the last three quarters."""
    optimizer = build_optimizer(model, _optimizer_settings(trial), bf16=bf16)
    rates = [group["lr"] for group in optimizer.param_groups]
    schedule = SchedulerSettings(name="warmup_stable_decay", warmup_steps=0, decay_steps=0, decay_fraction=0.75, min_lr=0.0)
    sampler = data._sampler(data.train, seed=trial.seed, epoch_windows=data.epoch_windows)
    model.train()
    done = epoch = 0
    while done < steps:
        sampler.set_epoch(epoch)
        for indices in sampler:
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = lr_at(done, lr=rate, settings=schedule, total_steps=steps)
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                loss = next_token_loss(model, *data.train[indices])
            if not math.isfinite(loss.item()):
                raise ArithmeticError(f"the loss is {loss.item()} at step {done}")
            loss.backward()  # type: ignore[no-untyped-call]
            clip_gradients(optimizer, gradient_norm(model.parameters()), max_norm=CLIP)
            optimizer.step()
            optimizer.zero_grad()
            done += 1
            if done == steps:
                break
        epoch += 1
