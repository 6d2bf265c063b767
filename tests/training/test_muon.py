"""Muon's updates, its groups by role, and its state in checkpoints."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig
from torch import Tensor

from gpt_pretrain.config.conversion import to_settings
from gpt_pretrain.config.schema import OptimizerSettings, RoleSettings, TrainSettings
from gpt_pretrain.config.train_rules import train_problems
from gpt_pretrain.errors import UserError
from gpt_pretrain.model import costs
from gpt_pretrain.model.build import new_model
from gpt_pretrain.model.config import GPTConfig
from gpt_pretrain.model.language_model import LanguageModel
from gpt_pretrain.model.roles import parameter_roles
from gpt_pretrain.training.optimization.muon import Muon, orthogonalize
from gpt_pretrain.training.optimization.optimizer import build_optimizer
from tests.conftest import TINY_RUN, tiny_model
from tests.helpers.training_runs import SETTINGS, Train, checkpoint


def settings(**changes: object) -> OptimizerSettings:
    given = {"name": "muon", "lr": 0.02, "weight_decay": 0.1, "betas": [0.8, 0.95], "eps": 1e-10, "decay": "roles"} | changes
    return OptimizerSettings(**given)  # type: ignore[arg-type]


def grouped_query_model() -> LanguageModel:
    """Build a model of the other kind, whose queries have more rows than its keys and values."""
    torch.manual_seed(3)
    fields = {"vocab_size": 97, "context_length": 16, "emb_dim": 32, "n_heads": 4, "n_kv_heads": 2, "n_layers": 2}
    return new_model(GPTConfig(kind="modern", init="modern", drop_rate=0.0, tie_embeddings=False, **fields))  # type: ignore[arg-type]


def fill_gradients(model: LanguageModel, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def naive_update(weight: Tensor, gradients: list[Tensor], *, lr: float, weight_decay: float) -> Tensor:
    """Update one matrix by Muon, step by step, in fp64."""
    weight, average = weight.double(), torch.zeros_like(weight, dtype=torch.float64)
    for gradient in gradients:
        average = 0.95 * average + 0.05 * gradient.double()
        direction = 0.05 * gradient.double() + 0.95 * average
        x = direction / direction.norm()
        for _ in range(5):
            x = 3.4445 * x - 4.775 * x @ x.T @ x + 2.0315 * x @ x.T @ x @ x.T @ x
        weight = weight * (1 - lr * weight_decay) - lr * math.sqrt(max(1.0, len(x) / len(x[0]))) * x
    return weight.float()


@pytest.mark.parametrize("shape", [(8, 8), (6, 24), (24, 6)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-3), (torch.bfloat16, 0.1)])
def test_orthogonalized_matrices_keep_their_directions_with_singular_values_near_one(
    shape: tuple[int, int], dtype: torch.dtype, tolerance: float
) -> None:
    torch.manual_seed(1)
    left, _, right = torch.linalg.svd(torch.randn(3, *sorted(shape)), full_matrices=False)
    result = orthogonalize(left @ torch.diag_embed(torch.linspace(1.0, 5.0, min(shape)).expand(3, -1)) @ right, dtype)
    values = left.mT @ result @ right.mT
    assert (values.diagonal(dim1=1, dim2=2) - 1).abs().max() < 0.4
    assert (values - torch.diag_embed(values.diagonal(dim1=1, dim2=2))).abs().max() < tolerance
    assert result.dtype == torch.float32


@pytest.mark.parametrize("build", [tiny_model, grouped_query_model])
def test_updates_equal_those_of_one_matrix_after_the_other(build: Callable[[], LanguageModel]) -> None:
    model, before = build(), build()
    optimizer = build_optimizer(model, settings())
    gradients: dict[str, list[Tensor]] = {name: [] for name, _ in model.named_parameters()}
    for step in range(3):
        fill_gradients(model, step)
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None
            gradients[name].append(parameter.grad.clone())
        optimizer.step()
    old = dict(before.named_parameters())
    roles = parameter_roles(model)
    matrices = [(name, parameter) for name, parameter in model.named_parameters() if roles[name].name == "matrices"]
    assert len(matrices) == 4 * model.config.n_layers
    for name, parameter in matrices:
        parts = roles[name].parts
        own = [list(part) for part in zip(*(gradient.split(parts) for gradient in gradients[name]), strict=True)]
        chunks = zip(old[name].detach().split(parts), own, strict=True)
        expected = torch.cat([naive_update(weight, each, lr=0.02, weight_decay=0.1) for weight, each in chunks])
        torch.testing.assert_close(parameter.detach(), expected, atol=1e-5, rtol=0)


def test_other_parameters_follow_adamw() -> None:
    model, reference = tiny_model(), tiny_model()
    optimizer = build_optimizer(model, settings(vectors=RoleSettings(lr=1e-3), head=RoleSettings(lr=3e-3, weight_decay=0.2)))
    roles = parameter_roles(reference)
    rates = {"embedding": (0.02, 0.1), "head": (3e-3, 0.2), "vectors": (1e-3, 0.0)}
    others = [(parameter, rates.get(roles[name].name)) for name, parameter in reference.named_parameters()]
    groups = [{"params": [parameter], "lr": rate[0], "weight_decay": rate[1]} for parameter, rate in others if rate]
    adamw = torch.optim.AdamW(groups, betas=(0.8, 0.95), eps=1e-10, foreach=False, fused=False)
    for step in range(3):
        for one, stepped in ((model, optimizer), (reference, adamw)):
            fill_gradients(one, step)
            stepped.step()
    for (name, ours), theirs in zip(model.named_parameters(), reference.parameters(), strict=True):
        if roles[name].name != "matrices":
            torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)


def test_updates_are_near_those_of_torch_which_iterates_in_bf16() -> None:
    model, reference = tiny_model(), tiny_model()
    optimizer = build_optimizer(model, settings(weight_decay=0.0))
    theirs = torch.optim.Muon([reference.trf_blocks[0].ff.layers[0].weight], lr=0.02, weight_decay=0.0)
    for step in range(3):
        fill_gradients(model, step)
        fill_gradients(reference, step)
        optimizer.step()
        theirs.step()
    moved = model.trf_blocks[0].ff.layers[0].weight - tiny_model().trf_blocks[0].ff.layers[0].weight
    difference = model.trf_blocks[0].ff.layers[0].weight - reference.trf_blocks[0].ff.layers[0].weight
    assert difference.norm() < 0.03 * moved.norm()


@pytest.mark.parametrize("tied", [True, False])
def test_each_parameter_has_one_role(tied: bool) -> None:
    model = tiny_model(tie_embeddings=tied)
    roles = {name: (role.name, role.parts) for name, role in parameter_roles(model).items()}
    assert roles["tok_emb.weight"] == ("head" if tied else "embedding", ())
    assert roles.get("out_head.weight", ("head", ())) == ("head", ())
    assert roles["pos_emb.weight"] == ("embedding", ())
    assert roles["trf_blocks.0.att.qkv.weight"] == ("matrices", (32, 32, 32))
    assert roles["trf_blocks.0.ff.layers.2.weight"] == ("matrices", (32,))
    assert roles["final_norm.weight"] == ("vectors", ())
    for optimizer in (build_optimizer(model, settings()), build_optimizer(model, settings(name="adamw"))):
        grouped = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
        assert sorted(grouped) == sorted(map(id, model.parameters()))


def test_groups_that_adamw_does_not_have_are_refused(compose_train: Callable[..., DictConfig]) -> None:
    def problems(*overrides: str) -> list[str]:
        return train_problems(to_settings(compose_train("model=tiny", *overrides), TrainSettings))

    (problem,) = problems("optimizer.head.lr=1e-3")
    assert problem.startswith("optimizer.head.lr=0.001: optimizer.decay=matrices has no groups by role.")
    assert problems("optimizer.head.lr=1e-3", "optimizer.decay=roles") == []
    assert problems("optimizer=muon", "optimizer.head.lr=null") == []
    assert (
        len(problems("optimizer=muon", "optimizer.momentum=1", "optimizer.head.lr=0", "optimizer.vectors.weight_decay=-1")) == 3
    )


def test_a_resumed_run_equals_an_uninterrupted_one(train: Train, tmp_path: Path) -> None:
    muon = ["optimizer=muon", "optimizer.weight_decay=0.1", "scheduler=constant", "trainer.max_epochs=2"]
    train(*SETTINGS, *muon, run_dir=tmp_path / "whole")
    train(*SETTINGS, *muon, "trainer.max_steps=7", run_dir=tmp_path / "run")
    train("trainer.max_steps=-1", f"resume='{tmp_path / 'run'}'", base=[], run_dir=tmp_path / "run")
    one, two = checkpoint(tmp_path / "whole"), checkpoint(tmp_path / "run")
    for name, weight in one["state_dict"].items():
        assert torch.equal(weight, two["state_dict"][name]), name
    for number, state in one["optimizer_states"][0]["state"].items():
        assert all(torch.equal(value, two["optimizer_states"][0]["state"][number][key]) for key, value in state.items())


def test_a_changed_rate_is_applied_to_its_role_when_a_run_resumes(train: Train, tmp_path: Path) -> None:
    train(*SETTINGS, "optimizer=muon", "scheduler=constant", "trainer.max_epochs=1", run_dir=tmp_path / "run")
    resume = [f"resume='{tmp_path / 'run'}'", "trainer.max_epochs=2", "optimizer.head.lr=1e-3", "optimizer.lr=0.01"]
    train(*resume, base=[], run_dir=tmp_path / "run")
    groups = checkpoint(tmp_path / "run")["optimizer_states"][0]["param_groups"]
    assert [group["lr"] for group in groups] == [0.01, 4e-3, 1e-3, 4e-3]


def test_a_run_cannot_change_its_optimizer(train: Train, tmp_path: Path) -> None:
    train(*SETTINGS, "trainer.max_epochs=1", run_dir=tmp_path / "run")
    with pytest.raises(UserError, match=r"optimizer\.name was adamw, is muon now"):
        train(*SETTINGS, "optimizer=muon", f"resume='{tmp_path / 'run'}'", run_dir=tmp_path / "run")


def test_a_missing_gradient_leaves_its_matrix_alone() -> None:
    model = tiny_model()
    optimizer = build_optimizer(model, settings())
    assert isinstance(optimizer, Muon)
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), tiny_model().parameters(), strict=True))


def test_memory_and_work_follow_the_formulas() -> None:
    gpt2 = GPTConfig(vocab_size=50257, context_length=1024, emb_dim=768, n_heads=12, n_layers=12, drop_rate=0.0)
    assert costs.orthogonalization_flops(gpt2) == pytest.approx(300 * 12 * 768**3)
    model = tiny_model()
    optimizer = build_optimizer(model, settings())
    fill_gradients(model, 0)
    optimizer.step()
    averages = [value for state in optimizer.state.values() for name, value in state.items() if name != "step"]
    memory = costs.training_memory(model.config, batch_size=1, precision="32-true", device="cpu", optimizer="muon")
    assert memory.moments == 4 * sum(value.numel() for value in averages)
    weights = 4 * model.num_parameters()
    saved = costs.checkpoint_bytes(model.config, precision="32-true", optimizer="muon") - costs.CHECKPOINT_OVERHEAD
    assert saved == weights + memory.moments


@pytest.mark.slow
def test_a_small_batch_is_warned_of_and_the_advised_one_is_not(script: Callable[..., Any]) -> None:
    small = [*TINY_RUN, "optimizer=muon", "data.batch_size=1", "trainer.max_steps=1", "trainer.limit_val_batches=1"]
    warning = next(line for line in script("train.py", *small).stdout.splitlines() if "optimizer=muon:" in line)
    assert "by the formula, whatever the batch." in warning
    advised = next(word.rstrip(",;") for word in warning.split() if word.startswith("trainer.accumulate_grad_batches="))
    assert "optimizer=muon:" not in script("train.py", *small, advised).stdout


@pytest.mark.slow
def test_a_dry_run_measures_the_orthogonalization(script: Callable[..., Any]) -> None:
    done = script("train.py", *TINY_RUN, "optimizer=muon", "plan=true")
    assert done.returncode == 0, done.stderr
    assert "to orthogonalize Muon's updates of the matrices" in done.stdout
