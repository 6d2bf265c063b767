"""Choices that depend on the machine: device, precision, compilation and memory."""

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from gpt_pretrain.errors import UserError
from gpt_pretrain.model.kernels import chunks, loss
from gpt_pretrain.system import devices
from gpt_pretrain.system.devices import accelerator_device, pick_device
from gpt_pretrain.training import acceleration
from gpt_pretrain.training.acceleration import compile_model, precision_for
from tests.conftest import TINY_RUN, tiny_model
from tests.helpers.fork_server import ForkServer

CPU = torch.device("cpu")


@pytest.mark.parametrize(("times", "expected"), [(2.0, "bf16-mixed"), (1.3, "bf16-mixed"), (1.29, "32-true"), (0.5, "32-true")])
def test_auto_precision_on_a_cpu_depends_on_measured_speed(monkeypatch: pytest.MonkeyPatch, times: float, expected: str) -> None:
    monkeypatch.setattr(acceleration, "cpu_bf16_speedup", lambda: times)
    assert precision_for("auto", CPU)[0] == expected


def test_a_deterministic_run_measures_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acceleration, "cpu_bf16_speedup", lambda: pytest.fail("measured"))
    assert precision_for("auto", CPU, deterministic=True)[0] == "32-true"


def test_the_speed_is_measured_on_this_machine() -> None:
    precision, reason = precision_for("auto", CPU)
    assert precision in ("bf16-mixed", "32-true")
    assert "times as fast as fp32 on this CPU" in reason


def test_a_given_precision_is_used() -> None:
    assert precision_for("bf16-true", CPU) == ("bf16-true", "as configured")


def test_devices_that_the_machine_lacks_are_refused() -> None:
    assert pick_device("cpu") == CPU
    with pytest.raises(UserError, match="device=tpu"):
        pick_device("tpu")
    if not (torch.cuda.is_available() or torch.backends.mps.is_available()):
        with pytest.raises(UserError, match=r"trainer\.accelerator=gpu: this machine has no such device"):
            accelerator_device("gpu")


def test_auto_does_not_compile_on_a_cpu() -> None:
    assert compile_model(tiny_model(), "auto", CPU)[0] is False


@pytest.mark.slow
def test_a_compiled_model_gives_the_same_logits_and_keys() -> None:
    plain, compiled = tiny_model(), tiny_model()
    done, reason = compile_model(compiled, True, CPU)
    if not done:
        pytest.skip(f"this machine cannot compile: {reason}")
    token_ids = torch.randint(0, 97, (2, 16))
    with torch.no_grad():
        assert torch.allclose(plain(token_ids), compiled(token_ids), atol=1e-4)
    assert plain.state_dict().keys() == compiled.state_dict().keys()


@pytest.mark.slow
def test_the_compiled_loss_equals_the_plain_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        torch.compile(lambda x: x + 1)(torch.ones(3))
    except Exception as error:  # The compiler may lack a C++ compiler, Triton or Python's headers.
        pytest.skip(f"this machine cannot compile: {error}")
    hidden, weight = torch.randn(13, 8, requires_grad=True), torch.randn(97, 8, requires_grad=True)
    targets = torch.randint(0, 97, (13,))
    monkeypatch.setitem(chunks.LOGITS_BYTES, "cpu", 7 * 4 * 97)
    fast = loss.linear_cross_entropy(hidden, weight, targets, compiled=True)
    plain = F.cross_entropy(hidden @ weight.T, targets)
    torch.testing.assert_close(fast, plain, rtol=1e-5, atol=1e-6)
    pairs = zip(*(torch.autograd.grad(value, (hidden, weight)) for value in (fast, plain)), strict=True)
    for actual, expected in pairs:
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_without_a_compiler_training_continues_with_a_warning(fork_server: ForkServer, tmp_path: Path, cache_dir: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "CXX"}
    environment |= {
        "PATH": str(tmp_path),
        "XDG_CACHE_HOME": str(cache_dir),
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "inductor"),
    }
    overrides = [*TINY_RUN, "trainer.max_epochs=1", "compile=true", "callbacks=minimal", "logger=none"]
    done = fork_server.run(["train.py", *overrides], cwd=tmp_path, environment=environment)
    assert done.returncode == 0, done.stderr
    assert re.search(
        r"warning: compile=true is not possible on this machine, so the model is not compiled \(.*InvalidCxxCompiler", done.stdout
    )
    assert "compile off (not possible here)" in done.stdout


def test_the_user_s_malloc_settings_are_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []
    load: Callable[[None], object] = lambda name: called.append("libc")  # noqa: E731
    monkeypatch.setattr(devices.ctypes, "CDLL", load)
    monkeypatch.setenv("MALLOC_ARENA_MAX", "2")
    devices.keep_freed_memory()
    assert called == []
