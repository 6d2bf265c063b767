"""Downloads from the Hugging Face hub, from a local server that speaks its protocol."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from tests.conftest import ROOT
from tests.helpers.hub_server import Hub


@pytest.fixture(scope="module")
def model_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Return the files of a small model with GPT-2's vocabulary."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config(n_positions=16, n_embd=8, n_layer=1, n_head=2)).save_pretrained(folder)
    return {name: (folder / name).read_bytes() for name in ("config.json", "model.safetensors")}


@pytest.fixture
def hub(model_files: dict[str, bytes]) -> Iterator[Hub]:
    hub = Hub()
    extra = {"tokenizer.json": b"{}", "pytorch_model.bin": b"x", "README.md": b"x"}
    hub.files = {f"{model}/{name}": data for model in ("gpt2", "some/model") for name, data in (model_files | extra).items()}
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield hub
    hub.stall = False
    hub.shutdown()
    thread.join()
    hub.server_close()


@pytest.fixture
def environment(hub: Hub, tmp_path: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    return kept | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}


Fetch = Callable[..., subprocess.CompletedProcess[str]]

FETCH = """
import sys
from gpt_pretrain.errors import UserError
from gpt_pretrain.system.hub import fetch
try:
    print(fetch(*sys.argv[1:]))
except UserError as error:
    sys.exit(f"error: {error}")
"""


def fetching(environment: dict[str, str], model: str, file: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", FETCH, model, file]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture
def fetch(environment: dict[str, str]) -> Fetch:
    """Download a model's file in a separate process."""

    def fetched(model: str = "some/model", file: str = "model.safetensors", **changes: str) -> Any:
        process = fetching(environment | changes, model, file)
        out, error = process.communicate(timeout=100)
        return subprocess.CompletedProcess(process.args, process.returncode, out, error)

    return fetched


@pytest.mark.slow
def test_a_model_is_downloaded_once_and_generates_text(hub: Hub, environment: dict[str, str], tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "generate.py"), "pretrained=gpt2", "sampler.max_new_tokens=3"]
    first = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert first.returncode == 0, first.stderr
    assert first.stdout.startswith("Every effort moves you")
    assert "gpt2/model.safetensors" in first.stderr, "a progress bar"
    assert sorted(hub.asked_for()) == ["config.json", "model.safetensors"], "and nothing else"
    assert (tmp_path / "home" / "hub" / "models--gpt2").is_dir()
    asked = len(hub.requests)
    again = subprocess.run(
        command, cwd=tmp_path, env=environment | {"HF_HUB_OFFLINE": "1"}, capture_output=True, text=True, check=False
    )
    assert (again.returncode, again.stdout) == (0, first.stdout)
    assert len(hub.requests) == asked, "offline mode sends no request"


def test_an_interrupted_download_resumes(hub: Hub, fetch: Fetch, model_files: dict[str, bytes]) -> None:
    hub.cut_after, hub.cuts = 300_000, 1
    done = fetch()
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).read_bytes() == model_files["model.safetensors"]
    (start,) = hub.ranges()
    assert 0 < int(re.findall(r"\d+", start)[0]) <= 300_000


def test_a_killed_download_resumes_in_the_next_process(
    hub: Hub, fetch: Fetch, environment: dict[str, str], tmp_path: Path, model_files: dict[str, bytes]
) -> None:
    hub.cut_after, hub.cuts, hub.stall = 1_000_000, 1, True
    process = fetching(environment, "some/model", "model.safetensors")
    parts = lambda: list((tmp_path / "home").rglob("*.part"))  # noqa: E731
    for _ in range(1000):
        if parts() and parts()[0].stat().st_size > 0:
            break
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    hub.stall = False
    got = parts()[0].stat().st_size
    assert 0 < got < len(model_files["model.safetensors"])
    done = fetch()
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).read_bytes() == model_files["model.safetensors"]
    assert hub.ranges() == [f"bytes={got}-"]
    assert parts() == []


def test_a_wrong_checksum_is_rejected_and_the_file_discarded(hub: Hub, fetch: Fetch, tmp_path: Path) -> None:
    hub.spoil = True
    done = fetch()
    assert done.returncode == 1
    assert re.search(
        r"error: some/model: model\.safetensors arrived damaged: its SHA-256 is \w{64}, but the hub states \w{64}", done.stderr
    )
    assert [path for path in (tmp_path / "home").rglob("*") if path.is_file() and path.stat().st_size > 1000] == []
    hub.spoil = False
    assert fetch().returncode == 0


def test_missing_models_files_and_connections_are_reported(hub: Hub, fetch: Fetch) -> None:
    assert "no such file or folder here, and no such model on the hub" in fetch("some/other").stderr
    assert "no such model on the hub" in (refusal := fetch("gtp2-medium").stderr) and "Did you mean gpt2-medium?" in refusal
    del hub.files["some/model/model.safetensors"]
    assert "this model has no model.safetensors on the hub" in fetch().stderr
    assert "HF_HUB_OFFLINE is set" in fetch(HF_HUB_OFFLINE="1").stderr
    assert "127.0.0.1:9 cannot be reached" in fetch(HF_ENDPOINT="http://127.0.0.1:9").stderr
