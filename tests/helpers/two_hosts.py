"""Train one run on two hosts, made of network namespaces with a link between them and a torchrun agent in each.

While they train, the link is cut and restored or a worker is killed. The run must always equal an undisturbed one.

    python -m tests.helpers.two_hosts            # everything, about five minutes
    python -m tests.helpers.two_hosts long_cut   # one part
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import lightning as L

from tests.helpers.crash_harness import differences

ROOT = Path(__file__).parents[2]
ADDRESSES = ("10.77.0.1", "10.77.0.2")
PORT = 29500
LINK = "veth0"
PAUSE_SECONDS = 0.15  # added to each of the 75 steps, to leave time for a disturbance
RUN_SECONDS = 150  # time limit of one training
OVERRIDES = [
    *("trainer=ddp", "model=tiny", "tokenizer=byte", "model.emb_dim=32", "model.n_layers=2", "model.n_heads=2"),
    *("model.context_length=32", "model.drop_rate=0.1", "data.stride=350", "data.batch_size=1", "trainer.accelerator=cpu"),
    *("trainer.precision=32-true", "trainer.max_epochs=3", "trainer.limit_train_batches=25", "trainer.log_every_n_steps=1"),
    *("eval_freq=5", "eval_iter=1", "sampler.max_new_tokens=5", "callbacks.loss_curve=false", "logger=csv"),
    *("checkpoint.every_n_steps=5", "+callbacks.custom.pause._target_=tests.helpers.two_hosts.Pause"),
]


class Pause(L.Callback):
    """Make each step long enough to be disturbed."""

    def on_train_batch_end(self, *_: object) -> None:
        time.sleep(PAUSE_SECONDS)


@dataclass
class Host:
    """One of the two hosts.

    Attributes:
        namespace: Name of its network namespace.
        log: File with everything that is printed there.
        agent: Its torchrun process, or its train.py if that is started by hand; None before the start.
    """

    namespace: str
    log: Path
    agent: subprocess.Popen[bytes] | None = None

    def ip(self, *arguments: str) -> None:
        _ip("-n", self.namespace, *arguments)

    def text(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""


def missing_requirement() -> str | None:
    """Return why this machine cannot simulate two hosts, or None if it can."""
    if shutil.which("ip") is None:
        return "there is no `ip` command (package iproute2)"
    name = f"gpt-probe-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if made.returncode:
        return f"network namespaces are not permitted: {made.stderr.strip()}"
    pair = ["ip", "-n", name, "link", "add", LINK, "type", "veth", "peer", "name", "veth1"]
    linked = subprocess.run(pair, capture_output=True, text=True, check=False)
    _ip("netns", "delete", name)
    return f"pairs of virtual network devices are not permitted: {linked.stderr.strip()}" if linked.returncode else None


@contextmanager
def two_hosts(folder: Path) -> Iterator[tuple[Host, Host]]:
    """Create two namespaces with a link; at the end, kill the processes in them and remove them."""
    hosts = Host(f"gpt-{os.getpid()}-0", folder / "host0.log"), Host(f"gpt-{os.getpid()}-1", folder / "host1.log")
    try:
        for host in hosts:
            _ip("netns", "add", host.namespace)
        hosts[0].ip("link", "add", LINK, "type", "veth", "peer", "name", LINK, "netns", hosts[1].namespace)
        for host, address in zip(hosts, ADDRESSES, strict=True):
            host.ip("link", "set", "lo", "up")
            host.ip("address", "add", f"{address}/30", "dev", LINK)
            host.ip("link", "set", LINK, "up")
        yield hosts
    finally:
        for host in hosts:
            for pid in _processes(host):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if host.agent is not None:
                host.agent.wait()
            subprocess.run(["ip", "netns", "delete", host.namespace], capture_output=True, check=False)


def start(hosts: tuple[Host, Host], folder: Path, *, timeout: float | None, by_hand: bool) -> None:
    """Start the training on each host, with one rank there.

    Args:
        timeout: Seconds that a rank waits for the others; None for the default.
        by_hand: Start train.py without torchrun.
    """
    for number, host in enumerate(hosts):
        torchrun = [
            *("-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1", "--max-restarts", "3"),
            *("--rdzv-backend", "c10d", "--rdzv-id", folder.name, "--rdzv-endpoint", f"{ADDRESSES[0]}:{PORT}"),
            *("--local-addr", ADDRESSES[number]),
            # Both hosts have the same name, so torchrun needs is_host; its own read_timeout would be 60 s.
            *("--rdzv-conf", f"is_host={1 - number},read_timeout=300"),
        ]
        environment = _environment(timeout) | {"GLOO_SOCKET_IFNAME": LINK}
        if by_hand:
            environment |= {"NODE_RANK": str(number), "MASTER_ADDR": ADDRESSES[0], "MASTER_PORT": str(PORT)}
        overrides = [*OVERRIDES, *(["trainer.devices=1", "trainer.num_nodes=2"] if by_hand else [])]
        command = [sys.executable, *([] if by_hand else torchrun), str(ROOT / "train.py"), *overrides, _cache(folder)]
        with open(host.log, "wb") as stream:
            host.agent = subprocess.Popen(
                ["ip", "netns", "exec", host.namespace, *command],
                cwd=folder,
                env=environment,
                stdout=stream,
                stderr=stream,
                start_new_session=True,
            )


def wait(hosts: tuple[Host, Host]) -> list[int]:
    """Wait for the agents and return their exit codes.

    Raises:
        RuntimeError: If they do not end in time.
    """
    deadline = time.monotonic() + RUN_SECONDS
    codes = []
    for host in hosts:
        assert host.agent is not None
        try:
            codes.append(host.agent.wait(max(0.1, deadline - time.monotonic())))
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"a host has not ended after {RUN_SECONDS} s: {host.text()[-3000:]}") from None
    return codes


def wait_for_step(folder: Path, step: int) -> None:
    """Wait until the run in a folder has a checkpoint and has logged a step.

    Raises:
        RuntimeError: If that takes too long.
    """
    deadline = time.monotonic() + RUN_SECONDS
    while time.monotonic() < deadline:
        for file in folder.glob("outputs/*/metrics.csv"):
            lines = file.read_text(encoding="utf-8").count("\n")
            if lines > step and list(file.parent.glob("checkpoints/last.ckpt")):
                return
        time.sleep(0.05)
    raise RuntimeError(f"no step {step} after {RUN_SECONDS} s")


def cut(hosts: tuple[Host, Host], *, seconds: float) -> None:
    """Cut the link for some seconds: the first host loses the carrier, the second its device."""
    hosts[1].ip("link", "set", LINK, "down")
    time.sleep(seconds)
    hosts[1].ip("link", "set", LINK, "up")


def train_on_one_host(folder: Path) -> None:
    """Train the same run undisturbed, with two ranks on this machine."""
    folder.mkdir(parents=True)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(ROOT / "train.py")]
    done = subprocess.run(
        [*command, *OVERRIDES, _cache(folder)],
        cwd=folder,
        env=_environment(None),
        capture_output=True,
        text=True,
        check=False,
        timeout=RUN_SECONDS,
    )
    if done.returncode:
        raise RuntimeError(f"the undisturbed run failed: {(done.stdout + done.stderr)[-3000:]}")


def differences_after(folder: Path, disturbance: str) -> list[str]:
    """Train on two hosts with a disturbance, and return the differences from the undisturbed run in the folder beside."""
    timeout, disturb = DISTURBANCES[disturbance]
    folder.mkdir(parents=True)
    with two_hosts(folder) as hosts:
        start(hosts, folder, timeout=timeout, by_hand=disturbance == "by_hand")
        restarts = disturb(hosts, folder)
        codes = wait(hosts)
        texts = [host.text() for host in hosts]
    runs = list(folder.glob("outputs/*/run.json"))
    problems = [f"exit codes {codes}"] if codes != [0, 0] else []
    problems += [f"{len(runs)} run folders"] if len(runs) != 1 else []
    problems += [f"the second host prints {lines}"] if (lines := _own_lines(texts[1])) and not restarts else []
    finished = texts[0].count("\nDone: ")
    problems += [f"{finished} runs have finished"] if finished != 1 else []
    starts = texts[0].count("\nprecision ")
    problems += [f"started {starts} times"] if (starts > 1) != restarts or texts[0].count("Before training:") != 1 else []
    if not problems:
        (undisturbed,) = (folder.parent / "one_host" / "outputs").glob("*/run.json")
        problems = differences(undisturbed.parent, runs[0].parent)
    return problems


def _nothing(hosts: tuple[Host, Host], folder: Path) -> bool:
    return False


def _short_cut(hosts: tuple[Host, Host], folder: Path) -> bool:
    wait_for_step(folder, 20)
    cut(hosts, seconds=5)
    return False


def _long_cut(hosts: tuple[Host, Host], folder: Path) -> bool:
    wait_for_step(folder, 20)
    cut(hosts, seconds=20)
    return True


def _kill(hosts: tuple[Host, Host], folder: Path, *, number: int) -> bool:
    wait_for_step(folder, 20)
    (worker,) = (pid for pid in _processes(hosts[number]) if "torch.distributed.run" not in _command(pid))
    os.kill(worker, signal.SIGKILL)
    return True


# The timeout of the ranks in seconds, and the disturbance, which returns whether the ranks must restart.
DISTURBANCES: dict[str, tuple[float | None, Callable[[tuple[Host, Host], Path], bool]]] = {
    "nothing": (None, _nothing),
    "by_hand": (None, _short_cut),
    "short_cut": (None, _short_cut),
    "long_cut": (8, _long_cut),
    "kill_first": (None, lambda hosts, folder: _kill(hosts, folder, number=0)),
    "kill_second": (None, lambda hosts, folder: _kill(hosts, folder, number=1)),
}


def _cache(folder: Path) -> str:
    return f"data.cache_dir={folder.parent / 'cache'}"


def _environment(timeout: float | None) -> dict[str, str]:
    left_out = ("HYDRA_FULL_ERROR", "PYTEST_CURRENT_TEST")
    environment = {key: value for key, value in os.environ.items() if key not in left_out}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return environment if timeout is None else environment | {"GPT_PRETRAIN_TIMEOUT": str(timeout)}


def _own_lines(text: str) -> list[str]:
    """Return the lines that neither torch nor torchrun prints; a second torchrun may find that the first has ended already."""
    foreign = re.compile(r"\[?[WIE]\d{4} |\*{5}|Exception raised from |frame #\d|<omitting python frames>")
    return [line for line in text.splitlines() if line.strip() and not foreign.match(line)]


def _processes(host: Host) -> list[int]:
    listed = subprocess.run(["ip", "netns", "pids", host.namespace], capture_output=True, text=True, check=False)
    return [int(pid) for pid in listed.stdout.split()]


def _command(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8")


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(DISTURBANCES)}; all by default")
    arguments = parser.parse_args()
    if (reason := missing_requirement()) is not None:
        print(f"skipped: {reason}")
        return 0
    failed = False
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        train_on_one_host(folder / "one_host")
        for part in arguments.parts or DISTURBANCES:
            start_time = time.monotonic()
            problems = differences_after(folder / part, part)
            failed |= bool(problems)
            print(f"{part}: {'; '.join(problems) or 'equal to one host'} ({time.monotonic() - start_time:.0f} s)", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
