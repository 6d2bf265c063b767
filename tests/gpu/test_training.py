"""Training on a GPU: the loss and its gradient, precisions, compilation, waiting, memory, and resuming."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from gpt_pretrain.errors import UserError
from gpt_pretrain.evaluation.loss import next_token_loss
from gpt_pretrain.model.build import new_model
from gpt_pretrain.model.config import GPTConfig
from gpt_pretrain.model.costs import training_memory
from gpt_pretrain.model.kernels.loss import linear_cross_entropy
from gpt_pretrain.training.acceleration import compile_model
from gpt_pretrain.training.distributed.fsdp import shard_model
from gpt_pretrain.training.lit_module import GPTLitModule
from gpt_pretrain.training.optimization.optimizer import clip_gradients, gradient_norm
from tests.helpers.crash_harness import differences
from tests.helpers.training_runs import SETTINGS, Train, checkpoint, machine_going_away, rows, spoilt

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]

GPU = torch.device("cuda")
ON_GPU = [*SETTINGS, "trainer.accelerator=gpu", "trainer.accumulate_grad_batches=1", "compile=false"]
GPT2_124M = GPTConfig(vocab_size=50257, context_length=1024, emb_dim=768, n_heads=12, n_layers=12, drop_rate=0.0)


def small(kind: str = "gpt2", **changes: Any) -> GPTConfig:
    fields: dict[str, Any] = {"vocab_size": 1009, "context_length": 128, "emb_dim": 128, "n_heads": 2, "n_layers": 3}
    if kind == "modern":
        fields |= {"kind": "modern", "init": "modern", "tie_embeddings": False}
    return GPTConfig(**(fields | {"drop_rate": 0.0} | changes))


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("cap", [None, 15.0])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-3), (torch.bfloat16, 1e-2), (torch.float16, 2e-3)], ids=["fp32", "bf16", "fp16"]
)
def test_the_loss_and_its_gradients_are_those_of_the_definition(
    dtype: torch.dtype, tolerance: float, cap: float | None, compiled: bool
) -> None:
    generator = torch.Generator(GPU).manual_seed(1)
    N, D, V = 12_000, 256, 50257  # more rows than a chunk of logits has
    hidden = torch.randn(N, D, device=GPU, generator=generator).to(dtype).float()
    weight = (torch.randn(V, D, device=GPU, generator=generator) * 0.05).to(dtype).float()
    targets = torch.randint(V, (N,), device=GPU, generator=generator)
    targets[::7] = -100
    hidden.requires_grad_(), weight.requires_grad_()
    with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
        loss = linear_cross_entropy(hidden, weight, targets, cap=cap, compiled=compiled)
    found = [loss.detach(), *torch.autograd.grad(loss, (hidden, weight))]
    with torch.no_grad(), torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
        alone = linear_cross_entropy(hidden, weight, targets, cap=cap)
    assert torch.allclose(alone, loss, rtol=1e-4)
    wide = [value.detach().double().requires_grad_() for value in (hidden, weight)]
    logits = wide[0] @ wide[1].T
    logits = logits if cap is None else cap * torch.tanh(logits / cap)
    exact = F.cross_entropy(logits, targets)
    expected = [exact.detach(), *torch.autograd.grad(exact, wide)]
    for value, reference in zip(found, expected, strict=True):
        assert ((value - reference).norm() / reference.norm()).item() < tolerance


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_training_follows_the_cpu(train: Train, tmp_path: Path, precision: str) -> None:
    overrides = [*SETTINGS, "model.drop_rate=0", "compile=false"]
    cpu = train(*overrides, run_dir=tmp_path / "cpu")
    gpu = train(*overrides, "trainer.accelerator=gpu", f"trainer.precision={precision}", run_dir=tmp_path / "gpu")
    assert gpu == pytest.approx(cpu, abs=1e-3 if precision == "32-true" else 0.05)


@pytest.mark.parametrize("kind", ["gpt2", "modern"])
def test_a_compiled_model_has_the_same_losses_and_no_graph_breaks(kind: str) -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    losses = []
    for compiled in (False, True):
        torch.manual_seed(0)
        model = new_model(small(kind)).to(GPU)
        if compiled:
            assert compile_model(model, True, GPU)[0]
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
        token_ids = torch.randint(1009, (8, 128), device=GPU, generator=torch.Generator(GPU).manual_seed(0))
        losses.append([])
        for _ in range(60):
            loss = next_token_loss(model, token_ids, token_ids.roll(-1, 1), compiled=compiled)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad()
            losses[-1].append(loss.detach())
    plain, fused = (torch.stack(values) for values in losses)
    assert (plain - fused).abs().max().item() < 1e-3
    assert dict(torch._dynamo.utils.counters["graph_break"]) == {}


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_no_step_waits_for_the_gpu(train: Train, tmp_path: Path, optimizer: str) -> None:
    real: Callable[..., None] = GPTLitModule.optimizer_step
    checked = []

    def step(module: GPTLitModule, *args: Any, **kwargs: Any) -> None:
        if module.trainer.global_step >= 3:  # the first steps allocate and build
            checked.append(module.trainer.global_step)
            torch.cuda.set_sync_debug_mode("error")
        try:
            real(module, *args, **kwargs)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GPTLitModule, "optimizer_step", step)
        train(*ON_GPU, f"optimizer={optimizer}", "eval_freq=1000", run_dir=tmp_path / "run")
    assert len(checked) > 10


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_loss_that_is_not_finite_stops_the_run_and_is_not_saved(train: Train, tmp_path: Path, what: str) -> None:
    overrides = [*ON_GPU, "checkpoint.every_n_minutes=1e-9", "trainer.max_epochs=1"]
    with spoilt(steps={4}, what=what), pytest.raises(UserError, match=f"Step 000004: the {what} of batch 4 in epoch 1 is nan"):
        train(*overrides, run_dir=tmp_path / "run")
    content = checkpoint(tmp_path / "run")
    assert content["global_step"] == 4
    assert all(value.isfinite().all() for value in content["state_dict"].values())


@pytest.mark.parametrize("way", ["skip", "rollback"])
def test_a_run_goes_on_without_the_batch(train: Train, tmp_path: Path, way: str) -> None:
    with spoilt(steps={4}):
        train(*ON_GPU, f"on_nonfinite={way}", "checkpoint.every_n_steps=2", run_dir=tmp_path / "run")
    assert all(value.isfinite().all() for value in checkpoint(tmp_path / "run")["state_dict"].values())
    assert [row["step"] for row in rows(tmp_path / "run") if row["train/loss"]] == ["0", "3", "6", "9", "12", "15"]


@pytest.mark.parametrize(
    "overrides",
    [[], ["compile=true"], ["optimizer=muon"], ["trainer.precision=32-true"], ["trainer.precision=16-mixed"]],
    ids=["adamw", "compiled", "muon", "fp32", "fp16"],
)
def test_a_deterministic_run_resumes_to_the_last_bit(train: Train, tmp_path: Path, overrides: list[str]) -> None:
    given = [*ON_GPU, "trainer.deterministic=true", "checkpoint.every_n_steps=2", *overrides]
    train(*given, run_dir=tmp_path / "whole")
    with machine_going_away(at_step=5):
        train(*given, run_dir=tmp_path / "parts")
    train(*given, f"resume='{tmp_path / 'parts'}'", run_dir=tmp_path / "parts")
    assert differences(tmp_path / "whole", tmp_path / "parts") == []


@pytest.mark.parametrize("batch_size", [4, 16])
def test_a_step_of_gpt2_takes_the_memory_that_the_formula_says(batch_size: int) -> None:
    model = new_model(GPT2_124M).to(GPU)
    compile_model(model, True, GPU)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    token_ids = torch.randint(50257, (batch_size, 1024), device=GPU)
    for step in range(3):
        if step == 2:
            torch.cuda.reset_peak_memory_stats()
        with torch.autocast("cuda", torch.bfloat16):
            loss = next_token_loss(model, token_ids, token_ids, compiled=True)
        loss.backward()  # type: ignore[no-untyped-call]
        clip_gradients(optimizer, gradient_norm(model.parameters()), max_norm=1.0)
        optimizer.step()
        optimizer.zero_grad()
    used = torch.cuda.max_memory_allocated()
    formula = training_memory(GPT2_124M, batch_size=batch_size, precision="bf16-mixed", device="cuda").peak
    print(f"batch {batch_size}: {used / 1e9:.2f} GB, by formula {formula / 1e9:.2f} GB")
    assert 0.7 < formula / used < 1.5


def test_a_sharded_model_has_the_same_loss_and_gradient() -> None:
    torch.distributed.init_process_group("cpu:gloo,cuda:nccl", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        norms = []
        for sharded in (False, True):
            torch.manual_seed(0)
            model = new_model(small()).to(GPU)
            if sharded:
                shard_model(model, torch.distributed.device_mesh.init_device_mesh("cuda", (1,)))
            token_ids = torch.arange(256, device=GPU).view(2, 128)
            loss = next_token_loss(model, token_ids, token_ids.roll(-1, 1))
            loss.backward()  # type: ignore[no-untyped-call]
            norms.append((loss.item(), gradient_norm(model.parameters()).item()))
        assert norms[0] == pytest.approx(norms[1], rel=1e-4)
    finally:
        with contextlib.suppress(RuntimeError):
            torch.distributed.destroy_process_group()
