"""A run that this machine's memory cannot hold is refused before its model exists, whoever has chosen its size."""

from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import DictConfig

from gpt_pretrain.config.conversion import to_settings
from gpt_pretrain.config.schema import TrainSettings
from gpt_pretrain.errors import UserError
from gpt_pretrain.system import resources
from gpt_pretrain.training import preflight
from gpt_pretrain.training.planning import memory

SMALL = ("model=tiny", "tokenizer=byte", "model.n_layers=1", "model.emb_dim=32", "trainer.accelerator=cpu", "trainer.max_steps=1")
ENORMOUS = ("model.emb_dim=8192", "model.n_heads=128", "model.n_layers=128")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int | None], None]:
    """Return a function that sets the bytes of this machine's memory and swap space."""

    def set_bytes(limit: int, swap: int | None) -> None:
        monkeypatch.setattr(memory, "memory_limit", lambda device: limit)
        monkeypatch.setattr(memory, "swap_space", lambda: swap)

    return set_bytes


def test_an_enormous_model_is_refused_before_it_or_its_vocabulary_is_made(
    compose_train: Callable[..., DictConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight, "find_tokenizer", lambda *arguments: pytest.fail("a vocabulary is looked for"))
    config = compose_train(*SMALL, *ENORMOUS, "tokenizer=bpe", "run_dir=unused")
    with pytest.raises(UserError, match=r"^A step of this model needs 1\.6 TB of memory, but this machine has"):
        preflight.prepare_training(config, overridden=set())


@pytest.mark.parametrize(
    ("limit", "swap", "fits"), [(10**6, 0, False), (10**6, 10**7, True), (10**6, None, True), (10**7, 0, True)]
)
def test_memory_and_swap_space_count(
    compose_train: Callable[..., DictConfig],
    machine: Callable[[int, int | None], None],
    limit: int,
    swap: int | None,
    fits: bool,
) -> None:
    machine(limit, swap)
    config = compose_train(*SMALL, "run_dir=unused", "data.batch_size=8")
    if fits:
        preflight.prepare_training(config, overridden=set())
    else:
        with pytest.raises(
            UserError, match=r"but this machine has 1\.0 MB\. A smaller model, a shorter model\.context_length or"
        ):
            preflight.prepare_training(config, overridden=set())


def test_the_user_s_own_optimizer_may_keep_no_moments(
    compose_train: Callable[..., DictConfig], machine: Callable[[int, int | None], None]
) -> None:
    machine(4_900_000, 0)  # Without the two moments, a step needs 4.81 MB.
    custom = ("optimizer=custom", "++optimizer._target_=torch.optim.SGD", "++optimizer.lr=0.1")
    preflight.prepare_training(compose_train(*SMALL, *custom, "run_dir=unused", "data.batch_size=8"), overridden=set())
    with pytest.raises(UserError, match=r"^A step of this model needs 5\.0 MB of memory"):
        preflight.prepare_training(compose_train(*SMALL, "run_dir=unused", "data.batch_size=8"), overridden=set())


@pytest.mark.parametrize("swap", [0, 2 * 10**6])
def test_processes_share_the_memory(
    compose_train: Callable[..., DictConfig], machine: Callable[[int, int | None], None], swap: int
) -> None:
    machine(4 * 10**6, swap)
    config = compose_train(*SMALL, "run_dir=unused", "data.batch_size=4", "trainer.devices=4", "trainer.strategy=ddp")
    with pytest.raises(UserError, match=r"this machine has 1\.0 MB for each process"):
        preflight.prepare_training(config, overridden=set())


def test_the_swap_space_is_that_of_the_system(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    description = tmp_path / "meminfo"
    monkeypatch.setattr(resources, "MEMINFO", description)
    assert resources.swap_space() is None
    description.write_text(
        "MemTotal:       24000000 kB\nSwapCached:            1 kB\nSwapTotal:       2097152 kB\nSwapFree:              0 kB\n"
    )
    assert resources.swap_space() == 2**31


@pytest.mark.parametrize(("workers", "fits"), [(0, True), (8, False)])
def test_processes_and_their_workers_take_memory_of_their_own(
    compose_train: Callable[..., DictConfig], machine: Callable[[int, int | None], None], workers: int, fits: bool
) -> None:
    machine(2 * 500_000_000, 0)
    config = compose_train(*SMALL, "run_dir=unused", "trainer.devices=2", "trainer.strategy=ddp", f"data.num_workers={workers}")
    settings = to_settings(config, TrainSettings)
    if fits:
        memory.check_memory(settings, vocab_size=257, n_windows=1)
    else:
        with pytest.raises(UserError, match=r"needs 75\d MB of memory, but this machine has 500 MB for each process"):
            memory.check_memory(settings, vocab_size=257, n_windows=1)


@pytest.mark.parametrize(("workers", "needed"), [(0, "838 MB"), (16, "1\\.4 GB")])
def test_the_batches_of_a_narrow_model_count(
    compose_train: Callable[..., DictConfig], machine: Callable[[int, int | None], None], workers: int, needed: str
) -> None:
    """With a width of 2 and three tokens, a step took 800 bytes for each token, of which the formula had 200."""
    machine(10**8, 0)
    narrow = ("model.kind=gpt2", "model.emb_dim=2", "model.n_heads=1", "model.context_length=64")
    config = compose_train(*SMALL, *narrow, "run_dir=unused", f"data.num_workers={workers}")
    with pytest.raises(UserError, match=rf"^A step of this model needs {needed}"):
        memory.check_memory(to_settings(config, TrainSettings), vocab_size=3, n_windows=8000)


@pytest.mark.parametrize(
    ("changes", "n_windows", "needed"),
    [
        (("model.context_length=2048", "model.drop_rate=0.1"), 4, r"1\.9 GB"),  # measured: 2.1 GB
        (("model.context_length=4096", "model.drop_rate=0.1"), 2, r"1\.9 GB"),
        (("model.context_length=4096", "model.drop_rate=0", "trainer.precision=bf16-mixed"), 2, "979 MB"),
        (("model.context_length=1024", "model.drop_rate=0.1"), 8, r"3\.3 GB"),  # most of it are weights that are kept
    ],
)
def test_the_attention_of_many_narrow_heads_counts(
    compose_train: Callable[..., DictConfig],
    machine: Callable[[int, int | None], None],
    changes: tuple[str, ...],
    n_windows: int,
    needed: str,
) -> None:
    """The formula of a training step had 65 MB for the first two."""
    machine(10**6, 0)
    heads = ("model.n_heads=64", "model.emb_dim=64", "trainer.precision=32-true")
    config = compose_train(*SMALL, *heads, *changes, "run_dir=unused")
    with pytest.raises(UserError, match=rf"^A step of this model needs {needed}"):
        memory.check_memory(to_settings(config, TrainSettings), vocab_size=257, n_windows=n_windows)


@pytest.mark.parametrize(
    ("changes", "needed"),
    [
        (("model.n_layers=1",), "7[0-9][0-9] MB"),  # measured: 1.4 GB, with the other parts of the program
        (("model.n_layers=4",), r"2\.[4-6] GB"),  # measured: 3.1 GB
        (("model.n_layers=4", "model.drop_rate=0.1"), "9[0-9][0-9] MB"),
        (("model.n_layers=4", "trainer.activation_checkpointing=true"), "7[0-9][0-9] MB"),
    ],
)
def test_the_mask_between_documents_counts(
    compose_train: Callable[..., DictConfig], machine: Callable[[int, int | None], None], changes: tuple[str, ...], needed: str
) -> None:
    """The formula of a training step had 208 MB with four layers."""
    machine(10**6, 0)
    narrow = (
        "model.n_heads=1",
        "model.emb_dim=16",
        "model.context_length=4096",
        "model.drop_rate=0",
        "trainer.precision=32-true",
    )
    config = compose_train(*SMALL, *narrow, *changes, "data.respect_documents=true", "run_dir=unused")
    with pytest.raises(UserError, match=rf"^A step of this model needs {needed}"):
        memory.check_memory(to_settings(config, TrainSettings), vocab_size=257, n_windows=8)


def test_very_many_layers_take_memory_however_narrow_they_are(
    compose_train: Callable[..., DictConfig], machine: Callable[[int, int | None], None]
) -> None:
    """2,000 layers took 266 MB, of which the formula had 4."""
    machine(16 * 10**9, 0)
    narrow = ("model.emb_dim=2", "model.n_heads=1", "model.context_length=8", "model.n_layers=200000")
    settings = to_settings(compose_train(*SMALL, *narrow, "run_dir=unused"), TrainSettings)
    with pytest.raises(UserError, match=r"^A step of this model needs 19 GB"):
        memory.check_memory(settings, vocab_size=257, n_windows=1)


@pytest.mark.parametrize(
    ("memory_bytes", "most"), [(None, 64), (256 * 10**9, 64), (24 * 10**9, 48), (16 * 10**9, 32), (2 * 10**9, 16)]
)
def test_a_small_memory_holds_fewer_processes(monkeypatch: pytest.MonkeyPatch, memory_bytes: int | None, most: int) -> None:
    monkeypatch.setattr(resources, "cores", lambda: 16)
    monkeypatch.setattr(resources, "machine_memory", lambda: memory_bytes)
    monkeypatch.setattr(resources.shutil, "which", lambda name: None)
    assert resources.max_processes() == most
