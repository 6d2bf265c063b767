"""Fixtures for all tests: composed settings, tiny runs in this process, and entry scripts as processes."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

os.environ["HF_HUB_OFFLINE"] = "1"  # no test connects to the hub
if "PYTEST_XDIST_WORKER" in os.environ:  # a process per core runs tests
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from hydra import compose, initialize_config_dir
from hypothesis import settings
from omegaconf import DictConfig

from gpt_pretrain.commands.script import register_schema
from gpt_pretrain.commands.train import train as train_command
from gpt_pretrain.config.overrides import full_form, with_recipe_of_weights
from gpt_pretrain.model.config import GPTConfig
from gpt_pretrain.model.gpt2 import GPTModel
from tests.helpers.error_table import record_messages
from tests.helpers.fork_server import ForkServer

if TYPE_CHECKING:
    from playwright.sync_api import Browser

ROOT = Path(__file__).parents[1]
CONF = ROOT / "conf"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")

record_messages()
register_schema()
settings.register_profile("patient", deadline=None)  # a busy machine is no failure
settings.load_profile("patient")

# A run of a few seconds: 3 optimizer steps per epoch, with all features.
TINY_RUN = [
    "model=tiny",
    "tokenizer=byte",
    "model.emb_dim=32",
    "model.n_layers=2",
    "model.n_heads=2",
    "model.context_length=32",
    "data.stride=350",
    "data.batch_size=16",
    "trainer.accelerator=cpu",
    "trainer.precision=32-true",
    "trainer.max_epochs=2",
    "trainer.log_every_n_steps=1",
    "eval_freq=2",
    "eval_iter=1",
    "sampler.max_new_tokens=5",
]


def without(overrides: Iterable[str], *names: str) -> list[str]:
    """Return the overrides without those of some settings, which a test types with other values."""
    return [one for one in overrides if one.partition("=")[0] not in names]


@pytest.fixture(scope="session", autouse=True)
def _folders_of_the_tests(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep the key for signatures, and measurements of this machine, out of the user's home."""
    os.environ["XDG_DATA_HOME"] = str(tmp_path_factory.mktemp("data_home"))
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache_home"))


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder for the token caches of this test session."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def compose_train(tmp_path: Path, cache_dir: Path) -> Callable[..., DictConfig]:
    """Compose train.py's config from overrides, with a run folder for this test."""

    def composed(*overrides: str, run_dir: Path | None = None) -> DictConfig:
        folder = tmp_path / "run" if run_dir is None else run_dir
        folder.mkdir(parents=True, exist_ok=True)
        with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
            typed = with_recipe_of_weights([full_form(override, script="train") for override in overrides])
            config = compose("train", [f"run_dir='{folder}'", f"++data.cache_dir='{cache_dir}'", *typed])
        assert isinstance(config, DictConfig)
        return config

    return composed


@pytest.fixture
def train(compose_train: Callable[..., DictConfig], monkeypatch: pytest.MonkeyPatch) -> Callable[..., float]:
    """Train in this process, with the tiny run's settings and these overrides; errors stay exceptions."""
    for name in ("process.run_context.report_failures", "process.run_context.report_at_end", "train.report_failures"):
        monkeypatch.setattr(f"gpt_pretrain.commands.{name}", lambda *_, **__: nullcontext())

    def trained(*overrides: str, run_dir: Path | None = None, base: list[str] = TINY_RUN) -> float:
        overridden = {full_form(override, script="train").partition("=")[0] for override in [*base, *overrides]}
        return train_command(compose_train(*base, *overrides, run_dir=run_dir), overridden=overridden)

    return trained


@pytest.fixture
def printed(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """Return the lines that the program has logged so far."""
    caplog.set_level(logging.INFO, logger="gpt_pretrain")
    return lambda: "\n".join(record.getMessage() for record in caplog.records).splitlines()


@pytest.fixture(scope="session")
def fork_server() -> Iterator[ForkServer]:
    """A process that has imported everything, and forks one child for each command line."""
    server = ForkServer()
    yield server
    server.close()


@pytest.fixture
def script(tmp_path: Path, cache_dir: Path, fork_server: ForkServer) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run an entry script as a process, in a folder for this test."""

    def ran(
        name: str, *arguments: str, stdin: str | None = None, timeout: int = 200, cwd: Path = tmp_path
    ) -> subprocess.CompletedProcess[str]:
        environment = {key: value for key, value in os.environ.items() if key not in ("HYDRA_FULL_ERROR", "PYTEST_CURRENT_TEST")}
        environment["XDG_CACHE_HOME"] = str(cache_dir)
        return fork_server.run([name, *arguments], cwd=cwd, environment=environment, stdin=stdin, timeout=timeout)

    return ran


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Start a headless Chromium; without one, or without playwright, the tests that need it are skipped."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if path is None:
        pytest.skip(f"no browser is installed: {', '.join(BROWSERS)}")
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="session")
def story() -> str:
    """Return the sample text."""
    return (ROOT / "gpt_pretrain" / "data" / "sample.txt").read_text(encoding="utf-8")


def tiny_model(**changes: object) -> GPTModel:
    """Build a small model with random weights that are large enough for distinct predictions."""
    fields: dict[str, object] = {
        "vocab_size": 97,
        "context_length": 16,
        "emb_dim": 32,
        "n_heads": 4,
        "n_layers": 3,
        "drop_rate": 0.1,
    }
    torch.manual_seed(3)
    model = GPTModel(GPTConfig(**(fields | changes)))  # type: ignore[arg-type]
    with torch.no_grad():  # with small weights, greedy texts soon repeat themselves
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=0.3)
            else:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


@pytest.fixture(autouse=True)
def _restore_random_state() -> Iterator[None]:
    """Restore the random state of the process after each test."""
    state = torch.random.get_rng_state()
    yield
    torch.random.set_rng_state(state)
