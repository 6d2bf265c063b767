"""The program installed without its source folder: a wheel is built, and its command line is used in another folder."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from gpt_pretrain.system.checkout import CHECKOUT

SOURCES = ("pyproject.toml", "README.md", "LICENSE", "conf", "gpt_pretrain", "hydra_plugins")
SCRIPTS = ("train.py", "generate.py", "evaluate.py", "serve.py")
SHORT = ("model=tiny", "trainer.max_steps=2", "eval_freq=1", "eval_iter=1", "callbacks.loss_curve=false", "logger=none")


def build(kind: str, source: Path, to: Path) -> Path:
    """Build a wheel or a source distribution as pip does, without its isolated environment."""
    program = f"from setuptools import build_meta; print('built:', build_meta.build_{kind}({str(to)!r}))"
    done = subprocess.run([sys.executable, "-c", program], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return to / done.stdout.rpartition("built: ")[2].strip()


def names(wheel: Path) -> set[str]:
    """Return the files of a wheel without those that describe it."""
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the source folder, since building writes into it."""
    folder = tmp_path_factory.mktemp("source")
    for name in (*SOURCES, *SCRIPTS):
        if (CHECKOUT / name).is_dir():
            shutil.copytree(CHECKOUT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(CHECKOUT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", source, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the installed packages."""
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def run(site: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the installed `gpt-pretrain ARGUMENTS` in a folder."""
    environment = os.environ | {"PYTHONPATH": str(site)}
    command = [sys.executable, "-P", "-m", "gpt_pretrain", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def test_a_wheel_has_every_file_of_the_program(source: Path, wheel: Path) -> None:
    files = [path.relative_to(source) for name in ("gpt_pretrain", "hydra_plugins") for path in (source / name).rglob("*")]
    beside = [Path(script) for script in SCRIPTS] + [path.relative_to(source) for path in (source / "conf").rglob("*.yaml")]
    expected = {str(path) for path in files if (source / path).is_file() and "__pycache__" not in path.parts}
    assert names(wheel) == expected | {f"gpt_pretrain/scripts/{path}" for path in beside}


@pytest.mark.slow
def test_a_source_distribution_builds_the_same_wheel(source: Path, wheel: Path, tmp_path: Path) -> None:
    archive = build("sdist", source, tmp_path)
    shutil.unpack_archive(archive, tmp_path, filter="data")
    unpacked = tmp_path / archive.name.removesuffix(".tar.gz")
    assert names(build("wheel", unpacked, tmp_path)) == names(wheel)


def test_an_installed_program_trains_resumes_and_generates(site: Path, tmp_path: Path) -> None:
    trained = run(site, tmp_path, "train", *SHORT)
    assert trained.returncode == 0, trained.stderr
    assert "gpt-pretrain train resume=outputs/" in trained.stdout
    assert "python train.py" not in trained.stdout + trained.stderr
    resumed = run(site, tmp_path, "train", "resume=latest", "trainer.max_steps=3")
    assert resumed.returncode == 0, resumed.stderr
    written = run(site, tmp_path, "generate", "prompt=The sea", "sampler.max_new_tokens=3", "sampler.temperature=0")
    assert written.returncode == 0, written.stderr
    assert written.stdout.startswith("The sea")


def test_an_installed_program_explains_itself_in_its_own_words(site: Path, tmp_path: Path) -> None:
    for script in SCRIPTS:
        shown = run(site, tmp_path, script.removesuffix(".py"), "--help")
        assert shown.returncode == 0, shown.stderr
        assert f"gpt-pretrain {script.removesuffix('.py')} " in shown.stdout
        assert f"python {script}" not in shown.stdout
    mistaken = run(site, tmp_path, "train", "model=tny")
    assert mistaken.returncode != 0
    assert "Did you mean tiny?" in mistaken.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ("trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu"),
        ("-m", "optimizer.lr=1e-3,2e-3"),
        ("--config-dir", "own", "experiment=mine"),
    ],
    ids=["two processes", "sweep", "own settings"],
)
def test_an_installed_program_starts_what_needs_its_scripts(site: Path, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    (tmp_path / "own" / "experiment").mkdir(parents=True)
    (tmp_path / "own" / "experiment" / "mine.yaml").write_text("# @package _global_\nseed: 7\n")
    done = run(site, tmp_path, "train", *arguments, *SHORT)
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "outputs").rglob("last.ckpt"))
