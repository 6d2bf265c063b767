"""Settings that are allowed and yet doubtful are told, and sound ones are not."""

from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import DictConfig

from gpt_pretrain.config.conversion import to_settings
from gpt_pretrain.config.schema import TrainSettings
from gpt_pretrain.data.datamodule import TextDataModule
from gpt_pretrain.model.config import GPTConfig
from gpt_pretrain.system import resources
from gpt_pretrain.tokenizers.build import build_tokenizer
from gpt_pretrain.training.planning import checks
from gpt_pretrain.training.planning.plan import TrainingPlan, make_plan

# 14,200 parameters, 79,200 tokens of text in 2,474 windows to train on: 154 steps an epoch.
SOUND = [
    "model=tiny",
    "tokenizer=byte",
    "model.emb_dim=24",
    "model.n_layers=1",
    "model.n_heads=2",
    "model.context_length=32",
    "data.batch_size=16",
    "trainer.max_epochs=3",
    "trainer.accelerator=cpu",
    "sampler.max_new_tokens=8",
]


@pytest.fixture
def found(compose_train: Callable[..., DictConfig], tmp_path: Path) -> Callable[..., list[str]]:
    """What is doubtful about the sound run with some settings changed."""
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog.\n" * 1956)

    def doubtful(*overrides: str) -> list[str]:
        settings = to_settings(compose_train(*SOUND, f"data.path='{text}'", *overrides), TrainSettings)
        return checks.find_warnings(settings, *planned(settings))

    return doubtful


def planned(settings: TrainSettings) -> tuple[TextDataModule, GPTConfig, TrainingPlan]:
    tokenizer = build_tokenizer(settings.tokenizer.name)
    data = TextDataModule(
        settings.data,
        tokenizer,
        context_length=settings.model.context_length,
        seed=settings.seed,
        world_size=int(settings.trainer.devices),
    )
    data.prepare_data()
    config = GPTConfig(vocab_size=tokenizer.vocab_size, **vars(settings.model))
    return data, config, make_plan(settings, data, config)


def test_a_sound_run_has_none(found: Callable[..., list[str]]) -> None:
    assert found() == []


@pytest.mark.parametrize(
    "overrides",
    [
        ["scheduler=warmup_cosine"],
        ["scheduler=warmup_stable_decay"],
        ["trainer.max_steps=100"],
        ["trainer.max_steps=1"],
        ["trainer.max_steps=462"],
        ["callbacks=early_stopping", "trainer.max_epochs=5"],
        ["checkpoint.every_n_steps=100", "checkpoint.keep=2"],
        ["callbacks.samples=false", "sampler.max_new_tokens=500"],
        ["init_from=gpt2", "model.emb_dim=512"],  # a little more training of a model that has learnt
        ["data.stride=32", "trainer.limit_train_batches=20", "trainer.accumulate_grad_batches=4"],
        ["model.context_length=24", "sampler.max_new_tokens=2"],
        ["data.batch_size=2", "data.num_workers=2", "logger=csv"],
    ],
)
def test_ordinary_choices_are_not_doubted(found: Callable[..., list[str]], overrides: list[str]) -> None:
    assert found(*overrides) == []


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["trainer.max_epochs=30", "model.emb_dim=128"], "of text for 235k parameters are 0.34 a parameter"),
        (["model.emb_dim=512"], "each is seen 3 times: the model will learn little"),
        (
            ["model.emb_dim=512", "init_from=gpt2", "trainer.max_epochs=9"],
            "each is seen 9 times: the model will learn the text by",
        ),
        (["data.train_ratio=0.9995"], "data.train_ratio=0.9995: there is only 1 window to validate on"),
        (
            ["data.batch_size=1700"],
            "of 2,475 windows each epoch leaves out 775, which make no whole batch; data.batch_size=1237 ",
        ),
        (["data.stride=40"], "data.stride=40: 8 of every 40 tokens are never trained on"),
        (["scheduler=warmup_cosine", "scheduler.warmup_steps=462"], "scheduler.warmup_steps=462: the run has 462 steps"),
        (["scheduler=warmup_stable_decay", "scheduler.decay_steps=442"], "scheduler.decay_steps=442: with scheduler.warmup_st"),
        (["scheduler=constant", "scheduler.min_lr=1e-5"], "scheduler.min_lr=1e-05: scheduler=constant does not go by that"),
        (["scheduler=warmup_cosine", "scheduler.decay_steps=9"], "scheduler.decay_steps=9: scheduler=warmup_cosine does not"),
        (["trainer.max_steps=463"], "trainer.max_steps=463 is never reached: trainer.max_epochs=3 ends the run after 462 steps"),
        (["trainer.accumulate_grad_batches=155"], "trainer.accumulate_grad_batches=155: an epoch has 154"),
        (["eval_freq=462"], "eval_freq=462: the run has 462 steps"),
        (["checkpoint.every_n_steps=999", "trainer.log_every_n_steps=999"], "log_every_n_steps=999 and checkpoint.every_n_ste"),
        (
            ["callbacks=early_stopping", "trainer.max_epochs=4"],
            "callbacks.early_stopping.patience=3 can never act: the run is val",
        ),
        (["sampler.max_new_tokens=20"], "that is 10 more than model.context_length=32"),
        (["start_context='A context longer than the model can read at all'"], "a shorter start_context mends that"),
    ],
)
def test_each_doubt_is_told_with_its_remedy(found: Callable[..., list[str]], overrides: list[str], told: str) -> None:
    doubtful = found(*overrides)
    assert any(told in doubt for doubt in doubtful), doubtful
    assert all(doubt.endswith(".") for doubt in doubtful)


@pytest.mark.parametrize(
    ("overrides", "remedy", "limit"),
    [([], "data.batch_size=8 trainer.accumulate_grad_batches=2", 10**6), (["data.batch_size=1"], "a smaller model", 10**4)],
)
def test_memory_and_disk_that_are_not_there(
    found: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch, overrides: list[str], remedy: str, limit: int
) -> None:
    monkeypatch.setattr(checks, "memory_limit", lambda device: limit)
    monkeypatch.setattr(checks, "free_disk", lambda place: 10**5)
    memory, disk = found(*overrides)
    assert remedy in memory
    assert "the checkpoints take up to 706 kB there" in disk
    assert "and 100 kB are free" in disk


def test_a_model_is_spread_over_devices_where_it_has_to_be_and_not_elsewhere(
    found: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [
        "trainer.devices=8",
        "model.emb_dim=64",
        "model.n_layers=16",
        "data.batch_size=1",
        "doubts.min_tokens_per_parameter=0",
    ]
    (needless,) = found(*words, "trainer.strategy=fsdp")
    assert "trainer.strategy=fsdp: with the whole model on each of 8 devices a step needs " in needless
    assert "trainer.strategy=ddp has room there, and sends " in needless
    assert found(*words, "trainer.strategy=ddp") == found(*words, "trainer.strategy=fsdp", "doubts.max_ddp_memory=0") == []
    monkeypatch.setattr(checks, "memory_limit", lambda device: 8 * 6_000_000)  # a CPU's memory, shared by 8 processes
    assert found(*words, "trainer.strategy=fsdp", "trainer.activation_checkpointing=true") == []
    (tight,) = found(*words, "trainer.strategy=ddp")
    assert "of memory, on each of 8 devices, and there are 6.0 MB; trainer=fsdp, which spreads the model over" in tight


def test_checkpoints_that_are_there_already_need_no_more_room(
    found: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(checks, "free_disk", lambda place: 3 * 10**5)
    assert len(found()) == 1
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / "last.ckpt").write_bytes(bytes(500_000))
    assert found() == []


def test_a_container_s_limit_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import torch

    limit = tmp_path / "memory.max"
    monkeypatch.setattr(resources, "CGROUP_LIMIT", limit)
    whole = resources.memory_limit(torch.device("cpu"))
    assert whole is not None
    assert whole > 10**8
    limit.write_text("max\n")
    assert resources.memory_limit(torch.device("cpu")) == whole
    limit.write_text("50000000\n")
    assert resources.memory_limit(torch.device("cpu")) == 50_000_000


def test_the_shipped_first_run_is_told_what_it_is(compose_train: Callable[..., DictConfig]) -> None:
    settings = to_settings(compose_train(), TrainSettings)
    text, windows = checks.find_warnings(settings, *planned(settings))
    assert "5,165 tokens of text for 124M parameters" in text
    assert "only 2 windows to validate on" in windows
