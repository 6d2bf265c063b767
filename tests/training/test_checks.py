"""Settings that will not do what they seem to give a warning with a remedy, and sound settings give none."""

from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import DictConfig

from gpt_pretrain.config.conversion import to_settings
from gpt_pretrain.config.schema import TrainSettings
from gpt_pretrain.config.train_rules import train_problems
from gpt_pretrain.system import resources
from gpt_pretrain.training.planning import checks, memory
from gpt_pretrain.training.planning.check_context import CheckContext
from gpt_pretrain.training.planning.time_checks import costly_orthogonalization
from tests.helpers.plans import plan_run

# 14,200 parameters and 79,200 training tokens in 2,474 windows: 154 steps per epoch.
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
def warnings_for(compose_train: Callable[..., DictConfig], tmp_path: Path) -> Callable[..., list[str]]:
    """Return the warnings about the sound run with some settings changed."""
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog.\n" * 1956)

    def find(*overrides: str) -> list[str]:
        settings = to_settings(compose_train(*SOUND, f"data.path='{text}'", *overrides), TrainSettings)
        return checks.find_warnings(CheckContext(settings, *plan_run(settings)))

    return find


@pytest.mark.parametrize(
    ("typed", "text", "is_warned"),
    [
        ([], "Утром он вышел из дома и пошёл к реке.\n", True),
        ([], "朝、彼は家を出て川へ歩いた。\n", True),
        ([], "Früh am Morgen ging er zum Fluss.\n", False),
        (["tokenizer=byte"], "Утром он вышел из дома и пошёл к реке.\n", False),
    ],
)
def test_a_text_that_gpt2s_vocabulary_cuts_into_short_tokens_is_warned_about(
    warnings_for: Callable[..., list[str]], tmp_path: Path, typed: list[str], text: str, is_warned: bool
) -> None:
    (tmp_path / "other.txt").write_text(200 * text, encoding="utf-8")
    found = warnings_for("tokenizer=gpt2", f"data.path={tmp_path / 'other.txt'}", *typed)
    assert any("tokenizer=bpe trains a vocabulary on the text" in one for one in found) == is_warned


def test_a_sound_run_has_no_warnings(warnings_for: Callable[..., list[str]]) -> None:
    assert warnings_for() == []


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
        ["init_from=gpt2", "model.emb_dim=512"],  # fine-tuning needs little text
        ["data.stride=32", "trainer.limit_train_batches=20", "trainer.accumulate_grad_batches=4"],
        ["model.context_length=24", "sampler.max_new_tokens=2"],
        ["data.batch_size=2", "data.num_workers=2", "logger=csv"],
    ],
)
def test_ordinary_choices_give_no_warning(warnings_for: Callable[..., list[str]], overrides: list[str]) -> None:
    assert warnings_for(*overrides) == []


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["trainer.max_epochs=30", "model.emb_dim=128"], "training tokens for 235k parameters are 0.34 per parameter"),
        (["model.emb_dim=512"], "each token is seen 3 times. The model will learn little"),
        (["model.emb_dim=512", "trainer.max_epochs=1", "data.batch_size=3"], "and 100% of them are seen."),  # rounded
        (
            ["tokenizer=gpt2"],
            "or a smaller model; budget=20m, or another time, chooses the model and the vocabulary for this text",
        ),
        (["model.emb_dim=512"], "Use more text (data.path=...) or a smaller model."),  # budget= knows no vocabulary of bytes
        (
            ["model.emb_dim=512", "init_from=gpt2", "trainer.max_epochs=9"],
            "each token is seen 9 times. The model will memorize the text",
        ),
        (
            ["model.emb_dim=512", "trainer.max_epochs=99", "trainer.max_time=5m"],
            "each token is seen up to 99 times, if trainer.max_time=5m does not end the run before. The model may memorize the text.",
        ),
        (["data.train_ratio=0.9995"], "data.train_ratio=0.9995 leaves only 1 validation window, so"),
        (
            ["data.batch_size=1700"],
            "data.batch_size=1700 drops 775 of 2,475 windows in each epoch, since they do not fill a batch. data.batch_size=1237 ",
        ),
        (["data.stride=40"], "data.stride=40 never trains on 8 of every 40 tokens"),
        (
            ["scheduler=warmup_cosine", "scheduler.warmup_steps=462"],
            "scheduler.warmup_steps=462 is too long for a run of 462 steps",
        ),
        (
            ["scheduler=warmup_stable_decay", "scheduler.decay_steps=442"],
            "scheduler.decay_steps=442 and scheduler.warmup_steps=20 take up all",
        ),
        (["scheduler=constant", "scheduler.min_lr=1e-5"], "scheduler.min_lr=1e-05 has no effect with scheduler=constant"),
        (
            ["scheduler=warmup_cosine", "scheduler.decay_steps=9"],
            "scheduler.decay_steps=9 has no effect with scheduler=warmup_cosine",
        ),
        (["trainer.max_steps=463"], "trainer.max_steps=463 is never reached: trainer.max_epochs=3 ends the run after 462 steps"),
        (["trainer.accumulate_grad_batches=155"], "trainer.accumulate_grad_batches=155 is more than the 154 batches of an epoch"),
        (["eval_freq=462"], "eval_freq=462 is too long for a run of 462 steps. Try 46."),
        (
            ["checkpoint.every_n_steps=999", "trainer.log_every_n_steps=999"],
            "log_every_n_steps=999 and checkpoint.every_n_steps=999 are too long",
        ),
        (
            ["callbacks=early_stopping", "trainer.max_epochs=4"],
            "callbacks.early_stopping.patience=3 never stops this run: it has 4 validations",
        ),
        (["sampler.max_new_tokens=20"], "exceed model.context_length=32 by 10."),
        (["start_context='A context longer than the model can read at all'"], "A shorter start_context fits"),
    ],
)
def test_each_warning_names_its_remedy(warnings_for: Callable[..., list[str]], overrides: list[str], expected: str) -> None:
    warnings = warnings_for(*overrides)
    assert any(expected in warning for warning in warnings), warnings
    assert all(warning.endswith(".") for warning in warnings)


@pytest.mark.parametrize(
    ("overrides", "remedy"),
    [
        (["model=modern_tiny"], "or choose optimizer.name=adamw optimizer.lr=3e-3."),  # its embeddings need a high rate
        (["optimizer=muon"], "or choose optimizer=adamw."),
    ],
)
def test_the_optimizer_that_is_advised_in_place_of_muon_suits_the_model(
    compose_train: Callable[..., DictConfig], overrides: list[str], remedy: str
) -> None:
    settings = to_settings(compose_train(*SOUND, "data=sample", "data.batch_size=1", *overrides), TrainSettings)
    warning = costly_orthogonalization(CheckContext(settings, *plan_run(settings)))
    assert warning is not None and warning.endswith(remedy)
    instead = to_settings(compose_train(*SOUND, *overrides, *remedy.rstrip(".").split()[2:]), TrainSettings)
    assert train_problems(instead) == []


@pytest.mark.parametrize(
    ("overrides", "remedy", "limit"),
    [([], "data.batch_size=8 trainer.accumulate_grad_batches=2", 10**6), (["data.batch_size=1"], "A smaller model", 10**4)],
)
def test_too_little_memory_and_disk_give_warnings(
    warnings_for: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch, overrides: list[str], remedy: str, limit: int
) -> None:
    monkeypatch.setattr(memory, "memory_limit", lambda device: limit)
    monkeypatch.setattr(checks, "free_disk", lambda path: 10**5)
    too_large, disk = warnings_for(*overrides)
    assert remedy in too_large
    assert "the checkpoints need up to 706 kB there" in disk
    assert "but only 100 kB are free" in disk


def test_fsdp_is_recommended_where_it_is_needed_and_nowhere_else(
    warnings_for: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = [
        "trainer.devices=8",
        "model.emb_dim=64",
        "model.n_layers=16",
        "data.batch_size=1",
        "doubts.min_tokens_per_parameter=0",
    ]
    (needless,) = warnings_for(*overrides, "trainer.strategy=fsdp")
    assert "trainer.strategy=fsdp is not needed: with the whole model on each of 8 devices a step needs " in needless
    assert "trainer.strategy=ddp sends " in needless
    assert (
        warnings_for(*overrides, "trainer.strategy=ddp")
        == warnings_for(*overrides, "trainer.strategy=fsdp", "doubts.max_ddp_memory=0")
        == []
    )
    monkeypatch.setattr(memory, "memory_limit", lambda device: 8 * 6_000_000)  # 8 processes share the CPU's memory
    assert warnings_for(*overrides, "trainer.strategy=fsdp", "trainer.activation_checkpointing=true") == []
    (tight,) = warnings_for(*overrides, "trainer.strategy=ddp")
    assert "of memory per step on each of 8 devices, but only 6.0 MB are available. trainer=fsdp, which splits the" in tight


def test_existing_checkpoints_need_no_further_disk_space(
    warnings_for: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(checks, "free_disk", lambda path: 3 * 10**5)
    assert len(warnings_for()) == 1
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / "last.ckpt").write_bytes(bytes(500_000))
    assert warnings_for() == []


def test_a_container_s_memory_limit_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
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


def test_the_default_run_is_warned_about_its_short_text(compose_train: Callable[..., DictConfig]) -> None:
    settings = to_settings(compose_train(), TrainSettings)
    text, windows = checks.find_warnings(CheckContext(settings, *plan_run(settings)))
    assert "5,165 training tokens for 29M parameters" in text
    assert "only 2 validation windows" in windows
