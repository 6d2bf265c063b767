"""The commands in README.md and the guide work as they are written."""

from __future__ import annotations

import gzip
import os
import re
import shlex
import shutil
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.helpers import vocabularies
from tests.helpers.fork_server import ForkServer

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# Why a command is not run here, by what it contains.
NOT_RUN = {
    "installs packages": r"^make|pip install|-m venv|^\.venv/|^source |^eval|^PLAYS=",
    "starts a server": r"^tensorboard|^python serve\.py|^curl http://127|interactive=true",
    "needs a network": r"https://|pretrained=gpt2|init_from=gpt2|models=\[.*gpt2|data=the_verdict|roneneldan|s3://|experiment=chapter5$|\$PLAYS",
    "needs several devices or machines": r"devices=[48]|num_nodes|nnodes|hparams_search=(slurm|ray)|^sudo|^srun",
    "takes minutes, and has tests of its own": r"verify_resume|crash_harness|-m model=tiny|hparams_search=|benchmarks|trial=|budget=",
    "is a program of the system": r"^(grep|find|sha256sum) ",
    "is an example with names to be filled in": r"NODE_RANK=i|pretrained=(DIR|model\.pth|out/ckpt\.pt)",
}
# What makes a training short; a run that is resumed keeps its model.
SHORT = ["trainer.max_steps=2", "eval_iter=1", "trainer.accelerator=cpu"]
SMALL = ["model.emb_dim=24", "model.n_heads=2", "model.n_layers=1", "model.context_length=32", "model.drop_rate=0"]


def commands(page: Path) -> list[str]:
    """Return the commands in the bash blocks of a page, in their order."""
    blocks = re.findall(r"```bash\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    lines = [line for block in blocks if not block.startswith("#!") for line in block.replace("\\\n", " ").splitlines()]
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def write_examples(page: Path, folder: Path) -> None:
    """Write the files that a page shows under their names."""
    for name, content in re.findall(r'```\w+ title="([\w./-]+)"\n(.*?)```', page.read_text(encoding="utf-8"), re.DOTALL):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content, encoding="utf-8")


def reason(command: str) -> str | None:
    """Return why a command is not run here, or None."""
    return next((why for why, pattern in NOT_RUN.items() if re.search(pattern, command.split("  #")[0].strip())), None)


@pytest.fixture(scope="module")
def prepared(fork_server: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the texts, runs and the sweep that the commands speak of."""
    folder = tmp_path_factory.mktemp("guide")
    text = (ROOT / "gpt_pretrain" / "data" / "sample.txt").read_text(encoding="utf-8")
    vocabularies.byte_level(folder / "my-vocabulary")
    folders = ("books/one.txt", "books/two.txt", "plays/one.txt", "their-dataset/data/part.txt")
    for name in ("book.txt", "held_out.txt", "questions.txt", "start.txt", "their-text.txt", "wiki.txt", *folders):
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).write_text(text[:40] if name in ("questions.txt", "start.txt") else text, encoding="utf-8")
    (folder / "tasks").mkdir()
    items = '{"context": "The cat sat on the", "choices": ["mat.", "moon."], "label": 0}\n' * 2
    (folder / "tasks" / "cats.jsonl").write_text(items, encoding="utf-8")
    (folder / "more").mkdir()
    lines = "".join(
        f'{{"text": "Document {number}: {text[number : number + 200].encode("ascii").decode()!r}"}}\n' for number in range(60)
    )
    lines = re.sub(r"'|\\n", " ", lines)
    (folder / "documents.jsonl").write_text(lines, encoding="utf-8")
    (folder / "more" / "some.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    base = ["train.py", "model=tiny", *SMALL, *SHORT]
    for name in ("RUN", "RUN2"):
        assert run(fork_server, [*base, f"seed={len(name)}", f"hydra.run.dir=outputs/{name}"], folder).returncode == 0
    shutil.copytree(folder / "outputs" / "RUN", folder / "their-run")
    sweep = ["train.py", "-m", "model=tiny", *SMALL, *SHORT, "optimizer.lr=1e-3,2e-3"]
    assert run(fork_server, sweep, folder).returncode == 0
    assert run(fork_server, ["-m", "gpt_pretrain", "prepare", "documents.jsonl", "out=corpus"], folder).returncode == 0
    return folder


def run(server: ForkServer, arguments: list[str], folder: Path):
    """Run a command in a folder, with a token cache there."""
    return server.run(arguments, cwd=folder, environment=os.environ | {"XDG_CACHE_HOME": str(folder / "cache")})


def as_arguments(command: str) -> list[str]:
    """Return what Python is given for a command, shortened where it trains."""
    words = shlex.split(command, comments=True)
    if words[0] == "gpt-pretrain":
        return ["-m", "gpt_pretrain", *words[1:]]
    assert words[0] == "python", command
    arguments = words[1:]
    if arguments[0] != "train.py" or "--help" in arguments or "--cfg" in arguments:
        return arguments
    keys = {argument.split("=")[0] for argument in arguments}
    short = [one for one in SHORT if one.split("=")[0] not in keys]
    if keys & {"resume", "sweep_resume"}:
        return [*arguments, "trainer.max_steps=4"]
    if "budget" in keys:  # which alone decides the length
        arguments = ["budget=12000 tokens" if argument.startswith("budget=") else argument for argument in arguments]
        short = short[1:]
    own_model = "model._target_" in keys or "model=recurrent" in arguments
    return [
        *arguments,
        *short,
        *([] if "init_from" in keys or own_model else [one for one in SMALL if one.split("=")[0] not in keys]),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_of_a_page_works(page: Path, fork_server: ForkServer, prepared: Path, tmp_path: Path) -> None:
    chosen = [command for command in commands(page) if reason(command) is None]
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    write_examples(page, tmp_path)
    failed = []
    for command in chosen:
        if "out=corpus" in command:
            shutil.rmtree(tmp_path / "corpus")
        done = run(fork_server, as_arguments(command), tmp_path)
        if done.returncode != 0 or "Traceback" in done.stderr:
            failed.append(f"{command}\n  -> {done.returncode}: {done.stderr[-600:]}")
    assert not failed, "\n".join(failed)


@pytest.mark.slow
@pytest.mark.parametrize("page", ["chapter5", "python", "weights"])
def test_the_python_of_a_page_runs(page: str, fork_server: ForkServer, prepared: Path, tmp_path: Path) -> None:
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    assert run(fork_server, ["-m", "gpt_pretrain", "export", "checkpoint=outputs/RUN", "out=my-gpt"], tmp_path).returncode == 0
    for number, code in enumerate(re.findall(r"```python\n(.*?)```", (ROOT / "docs" / f"{page}.md").read_text(), re.DOTALL)):
        script = tmp_path / f"example{number}.py"
        script.write_text(code, encoding="utf-8")
        done = run(fork_server, [str(script)], tmp_path)
        assert done.returncode == 0, done.stderr


def test_links_and_pictures_of_the_readme_exist() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)", readme):
        assert (ROOT / target).exists(), target


def test_the_guide_names_existing_files() -> None:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for name in re.findall(r"`((?:gpt_pretrain|conf|tests|benchmarks)/[\w./]+)`", text):
            assert (ROOT / name).exists(), f"{page.name}: {name}"


def test_the_architecture_page_names_existing_files() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    for name in re.findall(r"`((?:[a-z_]+/)+(?:\w+\.py)?)`", text):
        assert (ROOT / "gpt_pretrain" / name).exists() or (ROOT / name).exists(), name
