"""The house rules that a machine can check."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

PACKAGE = sorted((ROOT / "gpt_pretrain").rglob("*.py"))
HYDRA = {"gpt_pretrain.cli"}  # what the commands share
# What each part must not know.
FORBIDDEN = {
    "gpt_pretrain.errors": ("torch", "lightning", "omegaconf", "gpt_pretrain"),
    "gpt_pretrain.config": ("torch", "lightning", "omegaconf"),
    "gpt_pretrain.model": ("lightning", "omegaconf", "gpt_pretrain.settings"),
    "gpt_pretrain.generation": ("lightning", "omegaconf", "gpt_pretrain.settings", "gpt_pretrain.lit_module"),
    "gpt_pretrain.optim": ("lightning", "gpt_pretrain.lit_module", "gpt_pretrain.callbacks"),
    "gpt_pretrain.tokenizer": ("torch", "lightning", "omegaconf"),
    "gpt_pretrain.checkpoint": ("lightning", "omegaconf"),
    "gpt_pretrain.runs": ("torch", "lightning", "omegaconf"),
    "gpt_pretrain.wording": ("torch", "lightning", "omegaconf", "gpt_pretrain"),
    "gpt_pretrain.run_files": ("torch", "lightning"),
    "gpt_pretrain.charts": ("torch", "lightning"),
    "gpt_pretrain.report": ("torch", "lightning"),
    "gpt_pretrain.compare": ("torch", "lightning"),
    "gpt_pretrain.settings": ("torch", "lightning"),
    "gpt_pretrain.rules": ("torch", "lightning"),
    "gpt_pretrain.data": ("gpt_pretrain.lit_module", "gpt_pretrain.callbacks", "gpt_pretrain.model"),
    "gpt_pretrain.lit_module": ("gpt_pretrain.callbacks", "gpt_pretrain.trainer"),
}


def name_of(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(file: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            found.add(node.module or "")
    return found


def within(name: str, parent: str) -> bool:
    return name == parent or name.startswith(parent + ".")


@pytest.mark.parametrize("file", PACKAGE, ids=name_of)
def test_imports_point_one_way(file: Path) -> None:
    name = name_of(file)
    for imported in imports(file):
        assert imported not in ("train", "generate"), "nothing imports an entry script"
        if name not in HYDRA:
            assert not within(imported, "hydra"), f"{name} knows Hydra"
        for part, forbidden in FORBIDDEN.items():
            if within(name, part):
                assert not any(within(imported, other) for other in forbidden), f"{name} imports {imported}"


def test_the_model_file_can_be_read_in_one_go() -> None:
    assert len((ROOT / "gpt_pretrain" / "model.py").read_text().splitlines()) <= 300


@pytest.mark.parametrize("name", ["train.py", "generate.py"])
def test_entry_scripts_stay_short(name: str) -> None:
    assert len((ROOT / name).read_text().splitlines()) <= 80


def test_asking_for_help_loads_nothing_heavy() -> None:
    code = (
        "import sys, train; print([m for m in ('torch', 'lightning', 'transformers', 'matplotlib', 'rich') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_generating_does_not_wait_for_lightning() -> None:
    code = (
        "import sys, gpt_pretrain.checkpoint, gpt_pretrain.prompts, gpt_pretrain.hardware, gpt_pretrain.rules;"
        "print([m for m in ('lightning', 'transformers', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_reports_and_comparisons_do_not_wait_for_torch() -> None:
    code = (
        "import sys, gpt_pretrain.compare, gpt_pretrain.report.run_page, gpt_pretrain.report.sweep_page;"
        "print([m for m in ('torch', 'lightning', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_readme_s_file_map_is_true() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```text\n(train\.py.*?)```", readme, re.DOTALL)
    listed = {line.split()[0] for line in block.splitlines() if line.strip()}
    for path in listed:
        assert (ROOT / path).exists(), path
    there = {"train.py", "generate.py", "conf/"}
    there |= {f"gpt_pretrain/{file.name}" for file in (ROOT / "gpt_pretrain").glob("*.py") if file.name != "__init__.py"}
    there |= {f"gpt_pretrain/{folder.parent.name}/" for folder in (ROOT / "gpt_pretrain").glob("*/__init__.py")}
    assert there <= listed


def test_the_sample_text_is_plain() -> None:
    text = (ROOT / "gpt_pretrain" / "data" / "sample.txt").read_text(encoding="utf-8")
    assert text.isascii()


def test_the_readme_has_no_gaps_left() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"\b(?!TENSORBOARD|HPARAMS|MARLOW|SLURM|SBATCH|SIGTERM|SIGUSR)[A-Z]{5,}\b", readme) == []
