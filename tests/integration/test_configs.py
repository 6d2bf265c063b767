"""Compose every config in conf/, and run every experiment and debug config."""

import copy
import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from gpt_pretrain.config.conversion import to_settings
from gpt_pretrain.config.schema import TrainSettings
from gpt_pretrain.config.train_rules import train_problems
from gpt_pretrain.model.config import GPTConfig
from tests.conftest import CONF

OPTIONS = sorted((file.parent.name, file.stem) for file in CONF.glob("*/*.yaml"))
SPECIAL = ("experiment", "debug")


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_each_option_composes_into_valid_settings(compose_train: Callable[..., DictConfig], group: str, option: str) -> None:
    launchers = {"parallel": "joblib", "slurm": "submitit", "ray": "ray"}
    if group == "hparams_search" and option in launchers:
        pytest.importorskip(f"hydra_plugins.hydra_{launchers[option]}_launcher")
    named = [f"++{group}._target_=package.Class"] if option == "custom" else []
    settings = to_settings(compose_train(f"{group}={option}", *named), TrainSettings)
    problems = train_problems(settings)
    if option in ("wandb", "mlflow") and importlib.util.find_spec(option) is None:
        assert [problem.split(". ")[0] for problem in problems] == [f"logger={option} needs the package {option}"]
    else:
        assert problems == []


def test_with_nothing_typed_a_small_modern_model_has_its_own_recipe(compose_train: Callable[..., DictConfig]) -> None:
    settings = to_settings(compose_train(), TrainSettings)
    model, optimizer, schedule = settings.model, settings.optimizer, settings.scheduler
    assert (model.kind, model.context_length, model.emb_dim, model.n_heads, model.n_layers) == ("modern", 256, 256, 4, 4)
    assert (optimizer.name, optimizer.lr, optimizer.embedding.lr, optimizer.head.lr) == ("muon", 0.02, 0.3, 0.01)
    assert (schedule.name, schedule.warmup_steps, schedule.decay_fraction) == ("warmup_stable_decay", 0, 0.75)
    chosen = to_settings(compose_train("optimizer=adamw", "scheduler=constant"), TrainSettings)
    assert (chosen.optimizer.name, chosen.optimizer.embedding.lr, chosen.scheduler.decay_fraction) == ("adamw", None, None)


def test_gpt2_has_the_documented_recipe(compose_train: Callable[..., DictConfig]) -> None:
    settings = to_settings(compose_train("model=gpt2_124m"), TrainSettings)
    model, optimizer = settings.model, settings.optimizer
    assert (model.context_length, model.emb_dim, model.n_heads, model.n_layers) == (256, 768, 12, 12)
    assert (model.drop_rate, model.qkv_bias, model.tie_embeddings, model.init) == (0.1, False, True, "gpt2")
    assert (optimizer.lr, optimizer.weight_decay, optimizer.betas, optimizer.eps) == (4e-4, 0.1, [0.9, 0.999], 1e-8)
    assert (settings.scheduler.name, settings.trainer.max_epochs, settings.data.batch_windows) == ("constant", 10, 2)
    assert (settings.eval_freq, settings.start_context, settings.sampler.max_new_tokens) == (5, "Every effort moves you", 50)


def test_a_run_from_existing_weights_keeps_adamw_unless_a_model_is_named(compose_train: Callable[..., DictConfig]) -> None:
    settings = to_settings(compose_train("init_from=gpt2", "optimizer.lr=1e-5"), TrainSettings)
    assert (settings.optimizer.name, settings.optimizer.lr, settings.scheduler.name) == ("adamw", 1e-5, "constant")
    assert settings.model.drop_rate == 0.1
    named = to_settings(compose_train("init_from=outputs/a", "model=modern_small"), TrainSettings)
    assert (named.optimizer.name, named.model.drop_rate) == ("muon", 0.2)


def test_chapter_5_has_the_optimizer_of_the_chapter(compose_train: Callable[..., DictConfig]) -> None:
    for overrides in (["experiment=chapter5"], ["model=chapter5", "optimizer=adamw_chapter5"]):
        settings = to_settings(compose_train(*overrides), TrainSettings)
        optimizer = settings.optimizer
        assert (settings.scheduler.name, settings.scheduler.warmup_steps) == ("constant", 0)
        assert (optimizer.name, optimizer.decay, optimizer.lr, optimizer.weight_decay) == ("adamw", "all", 4e-4, 0.1)
        assert (optimizer.betas, optimizer.eps) == ([0.9, 0.999], 1e-8)


def test_the_modern_experiment_has_rates_by_role_and_takes_other_sizes(compose_train: Callable[..., DictConfig]) -> None:
    settings = to_settings(compose_train("experiment=modern", "model=modern_124m"), TrainSettings)
    assert (settings.model.kind, settings.model.emb_dim, settings.optimizer.name) == ("modern", 768, "muon")
    assert (settings.optimizer.lr, settings.optimizer.embedding.lr, settings.optimizer.head.lr) == (0.02, 0.3, 0.01)
    assert (settings.scheduler.name, settings.scheduler.decay_fraction) == ("warmup_stable_decay", 0.75)


@pytest.mark.parametrize(
    ("option", "emb_dim", "n_heads", "n_layers"),
    [("355m", 1024, 16, 24), ("774m", 1280, 20, 36), ("1558m", 1600, 25, 48)],
)
@pytest.mark.parametrize("kind", ["gpt2", "modern"])
def test_the_larger_models_have_the_sizes_of_gpt2(
    compose_train: Callable[..., DictConfig], kind: str, option: str, emb_dim: int, n_heads: int, n_layers: int
) -> None:
    model = to_settings(compose_train(f"model={kind}_{option}"), TrainSettings).model
    assert (model.emb_dim, model.n_heads, model.n_layers) == (emb_dim, n_heads, n_layers)
    assert GPTConfig(vocab_size=50257, **vars(model)).head_dim == 64


@pytest.mark.parametrize("group", SPECIAL)
def test_each_experiment_and_debug_config_runs(train: Callable[..., float], tmp_path: Path, group: str) -> None:
    (tmp_path / "text.txt").write_text("The quick brown fox jumps over the lazy dog.\n" * 2000)
    for option in sorted(name for kind, name in OPTIONS if kind == group):
        small = [
            f"{group}={option}",
            "tokenizer=byte",
            "model.emb_dim=16",
            "model.n_heads=2",
            "model.n_layers=1",
            f"data.path='{tmp_path / 'text.txt'}'",
            "data.num_workers=0",
            "eval_iter=1",
            "trainer.max_steps=1",
            "trainer.limit_val_batches=1",
            "trainer.precision=32-true",
            "trainer.accelerator=cpu",
            "trainer.accumulate_grad_batches=1",
        ]
        train(*small, run_dir=tmp_path / option, base=[])
        assert (tmp_path / option / "checkpoints" / "last.ckpt").is_file(), option


def test_every_setting_of_a_run_has_a_value_in_conf(compose_train: Callable[..., DictConfig]) -> None:
    assert OmegaConf.missing_keys(compose_train()) == set()


def test_the_schemas_are_registered_with_hydra() -> None:
    assert {"train_schema.yaml", "generate_schema.yaml", "evaluate_schema.yaml"} <= ConfigStore.instance().repo.keys()


def test_copies_of_hydras_sources_share_the_schemas_and_do_not_change_them(compose_train: Callable[..., DictConfig]) -> None:
    store = ConfigStore.instance()
    before = OmegaConf.to_yaml(store.load("train_schema.yaml").node)
    assert copy.deepcopy([store]) == [store]  # --help copies them a hundred times
    assert compose_train("seed=7").seed == 7
    assert OmegaConf.to_yaml(store.load("train_schema.yaml").node) == before
