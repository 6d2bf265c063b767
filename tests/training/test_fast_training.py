"""Whole training runs on the fast paths, compared with a plain PyTorch loop, and repeated."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gpt_pretrain.data.datamodule import TextDataModule
from gpt_pretrain.model.gpt2 import GPTModel
from gpt_pretrain.training.preflight import prepare_training
from gpt_pretrain.training.start.starting_point import build_model
from tests.conftest import TINY_RUN
from tests.helpers.crash_harness import differences

Train = Callable[..., float]
SIXTY_STEPS = ["trainer.max_steps=60", "trainer.max_epochs=100", "callbacks=minimal", "logger=csv", "eval_freq=1000"]


def losses(run: Path) -> list[float]:
    """Return train/loss of each step."""
    with open(run / "metrics.csv", newline="") as stream:
        return [float(row["train/loss"]) for row in csv.DictReader(stream) if row["train/loss"]]


def plain_loss(model: GPTModel, token_ids: Tensor, target_ids: Tensor) -> Tensor:
    """Compute the model's loss by its definition, without any kernel of this program."""
    x = F.embedding(token_ids, model.tok_emb.weight) + model.pos_emb.weight[: token_ids.shape[1]]
    B, T, D = x.shape
    for block in model.trf_blocks:
        assert isinstance(block.att.qkv, nn.Linear)
        queries, keys, values = block.att.qkv(block.norm1(x)).view(B, T, 3, -1, model.config.head_dim).permute(2, 0, 3, 1, 4)
        scores = (queries @ keys.transpose(2, 3)).float() * model.config.head_dim**-0.5
        weights = scores.masked_fill(torch.ones(T, T).triu(1).bool(), -torch.inf).softmax(-1).to(values.dtype)
        x = x + block.att.out_proj((weights @ values).transpose(1, 2).reshape(B, T, D))
        x = x + block.ff.layers(block.norm2(x))
    return F.cross_entropy(F.linear(model.final_norm(x), model.head_weight).flatten(0, 1).float(), target_ids.flatten())


def plain_losses(config: Any, *, dtype: torch.dtype | None) -> list[float]:
    """Train sixty steps in a loop that takes only the data and the initial weights from this program."""
    setup = prepare_training(config, overridden=set())
    settings, data = setup.settings, setup.data
    torch.manual_seed(settings.seed)
    model = build_model(settings, setup.tokenizer, setup.start)
    matrices = [parameter for parameter in model.parameters() if parameter.ndim >= 2]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=settings.optimizer.lr, betas=tuple(settings.optimizer.betas), eps=1e-8, fused=False)
    out: list[float] = []
    for epoch in range(20):
        for token_ids, target_ids in epoch_of(data, epoch):
            with torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16):
                loss = plain_loss(model, token_ids, target_ids)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            out.append(loss.item())
    return out[:60]


def epoch_of(data: TextDataModule, epoch: int) -> Any:
    loader = data.train_dataloader()
    loader.sampler.set_epoch(epoch)  # type: ignore[union-attr]
    return loader


@pytest.mark.slow
@pytest.mark.parametrize("tied", ["true", "false"])
def test_sixty_steps_in_fp32_follow_the_plain_loop(
    train: Train, compose_train: Callable[..., Any], tmp_path: Path, tied: str
) -> None:
    overrides = [*SIXTY_STEPS, "model.drop_rate=0", f"model.tie_embeddings={tied}"]
    train(*overrides)
    fast, plain = losses(tmp_path / "run"), plain_losses(compose_train(*TINY_RUN, *overrides, run_dir=tmp_path / "p"), dtype=None)
    assert len(fast) == len(plain) == 60
    assert plain[-1] < plain[0] - 1, "the model learns, so the losses are worth comparing"
    assert np.abs(np.array(fast) - np.array(plain)).max() < 1e-4


@pytest.mark.slow
def test_sixty_steps_in_bf16_follow_the_plain_loop_within_rounding(
    train: Train, compose_train: Callable[..., Any], tmp_path: Path
) -> None:
    overrides = [*SIXTY_STEPS, "model.drop_rate=0"]
    train(*overrides, "trainer.precision=bf16-mixed")
    config = compose_train(*TINY_RUN, *overrides, run_dir=tmp_path / "p")
    exact, rounded = (np.array(plain_losses(config, dtype=dtype)) for dtype in (None, torch.bfloat16))
    fast = np.array(losses(tmp_path / "run"))
    noise = np.abs(rounded - exact).max()
    assert 0 < noise < 0.1
    assert np.abs(fast - exact).max() < 2 * noise + 0.01


@pytest.mark.slow
def test_training_with_dropout_matches_pytorch_s_dropout_on_average(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The dropout masks differ, so that the losses agree only on average."""
    overrides = [*SIXTY_STEPS, "model.drop_rate=0.3"]
    train(*overrides, run_dir=tmp_path / "fast")
    monkeypatch.setattr("gpt_pretrain.model.kernels.attention._use_blocks", lambda *_: False)
    monkeypatch.setattr("gpt_pretrain.model.kernels.dropout.is_eager_cpu", lambda x: False)
    train(*overrides, run_dir=tmp_path / "plain")
    fast, plain = (np.mean(losses(tmp_path / name)[-20:]) for name in ("fast", "plain"))
    train(*overrides, "seed=124", run_dir=tmp_path / "other")
    assert abs(fast - plain) < 0.05 + 2 * abs(plain - np.mean(losses(tmp_path / "other")[-20:]))


def test_two_deterministic_runs_are_equal_to_the_last_bit(train: Train, tmp_path: Path) -> None:
    overrides = ["trainer.deterministic=true", "model.drop_rate=0.1"]
    try:
        train(*overrides, run_dir=tmp_path / "one")
        train(*overrides, run_dir=tmp_path / "two")
    finally:
        torch.use_deterministic_algorithms(False)
    assert differences(tmp_path / "one", tmp_path / "two") == []
    assert losses(tmp_path / "one") == losses(tmp_path / "two")
