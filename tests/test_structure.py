"""The house rules that a machine can check."""

import ast
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import gpt_pretrain
from gpt_pretrain.config.custom_parts import PLACEHOLDERS
from gpt_pretrain.config.inference_schema import GenerateSettings
from gpt_pretrain.config.schema import TrainSettings
from tests.conftest import ROOT

PACKAGE = sorted((ROOT / "gpt_pretrain").rglob("*.py"))
HYDRA = {
    "gpt_pretrain.commands.command_line.argument_checks",
    "gpt_pretrain.commands.custom_callbacks",
    "gpt_pretrain.commands.command_line.hydra_errors",
    "gpt_pretrain.commands.command_line.hydra_grammar",
    "gpt_pretrain.commands.process.job",
    "gpt_pretrain.commands.notebook",
    "gpt_pretrain.commands.run_folder_check",
    "gpt_pretrain.commands.script",
    "gpt_pretrain.commands.command_line.stored_overrides",
    "gpt_pretrain.config.custom_targets",
}
# The rooms of the package, from the bottom up: each may import those before it, and none behind it.
ROOMS = [
    *("errors", "system", "model", "tokenizers", "generation", "config", "runs", "texts", "data", "prepare"),
    *("checkpoints", "evaluation", "serving", "training", "sweeps", "commands"),
]
# What each part must not load.
FORBIDDEN = {
    "gpt_pretrain.errors": ("torch", "lightning", "omegaconf"),
    "gpt_pretrain.model": ("lightning", "omegaconf"),
    "gpt_pretrain.generation": ("lightning", "omegaconf"),
    "gpt_pretrain.tokenizers": ("torch", "lightning", "omegaconf"),
    "gpt_pretrain.checkpoints": ("lightning", "omegaconf"),
    "gpt_pretrain.serving": ("lightning", "omegaconf"),
    "gpt_pretrain.texts": ("torch", "lightning"),
    "gpt_pretrain.runs.folder": ("torch", "lightning", "omegaconf"),
    "gpt_pretrain.runs.report": ("torch", "lightning"),
    "gpt_pretrain.runs.charts": ("torch", "lightning"),
    "gpt_pretrain.commands.compare": ("torch", "lightning"),
    "gpt_pretrain.config": ("torch", "lightning"),
    "gpt_pretrain.training.lit_module": ("gpt_pretrain.training.callbacks", "gpt_pretrain.training.trainer"),
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
        assert imported not in ("train", "generate", "evaluate", "serve"), "nothing imports an entry script"
        if name not in HYDRA:
            assert not within(imported, "hydra"), f"{name} knows Hydra"
        for part, forbidden in FORBIDDEN.items():
            if within(name, part):
                assert not any(within(imported, other) for other in forbidden), f"{name} imports {imported}"


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


@pytest.mark.parametrize("file", PACKAGE, ids=name_of)
def test_rooms_import_downwards(file: Path) -> None:
    room = room_of(name_of(file))
    if room in ("", "__main__"):
        return
    above = {room_of(name) for name in imports(file) if within(name, "gpt_pretrain")} - {""}
    assert not {name for name in above if ROOMS.index(name) > ROOMS.index(room)}


def test_the_model_file_can_be_read_in_one_go() -> None:
    assert len((ROOT / "gpt_pretrain" / "model" / "gpt2.py").read_text().splitlines()) <= 300


@pytest.mark.parametrize("name", ["train.py", "generate.py", "evaluate.py", "serve.py"])
def test_entry_scripts_stay_short(name: str) -> None:
    assert len((ROOT / name).read_text().splitlines()) <= 80


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = "import sys, gpt_pretrain; print(sorted({name.partition('.')[0] for name in sys.modules} & set(sys.argv[1:])))"
    heavy = ["torch", "lightning", "transformers", "numpy", "omegaconf", "hydra"]
    done = subprocess.run([sys.executable, "-c", code, *heavy], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_public_names_are_loaded_when_used() -> None:
    assert set(gpt_pretrain.__all__) == set(gpt_pretrain._MODULES)
    assert set(gpt_pretrain.__all__) <= set(dir(gpt_pretrain))
    for name in gpt_pretrain.__all__:
        assert getattr(gpt_pretrain, name).__name__ == name
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = gpt_pretrain.nothing


def test_asking_for_help_loads_nothing_heavy() -> None:
    code = (
        "import sys, train; print([m for m in ('torch', 'lightning', 'transformers', 'matplotlib', 'rich') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_generating_does_not_wait_for_lightning() -> None:
    code = (
        "import sys, gpt_pretrain.checkpoints.pretrained, gpt_pretrain.generation.prompts, gpt_pretrain.system.devices, gpt_pretrain.config.inference_rules;"
        "print([m for m in ('lightning', 'transformers', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_reports_and_comparisons_do_not_wait_for_torch() -> None:
    code = (
        "import sys, gpt_pretrain.commands.compare, gpt_pretrain.runs.report.run_page, gpt_pretrain.sweeps.report_page;"
        "print([m for m in ('torch', 'lightning', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_file_map_of_the_readme_is_true() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```text\n(train\.py.*?)```", readme, re.DOTALL)
    listed = [
        path.rstrip(",") for line in block.splitlines() for path in line.split("   ")[0].split(" ") if re.search(r"[./]", path)
    ]
    for path in listed:
        assert (ROOT / path).exists(), path
    assert {f"gpt_pretrain/{room}/" for room in ROOMS if room != "errors"} <= set(listed)
    assert len(block.splitlines()) <= 17


def test_the_root_of_the_package_has_rooms_only() -> None:
    found = {path.name for path in (ROOT / "gpt_pretrain").iterdir() if path.name != "__pycache__"}
    assert found == {"__init__.py", "__main__.py", "py.typed", "errors.py", *ROOMS} - {"errors"}
    for room in set(ROOMS) - {"errors"}:
        assert ast.get_docstring(ast.parse((ROOT / "gpt_pretrain" / room / "__init__.py").read_text())), room


def test_a_public_name_means_one_thing() -> None:
    places: dict[str, list[str]] = {}
    for file in [*PACKAGE, *(ROOT / "hydra_plugins").glob("*.py")]:
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
                places.setdefault(node.name, []).append(file.name)
    assert {name: files for name, files in places.items() if len(files) > 1} == {}


def test_docstrings_are_imperative_sentences() -> None:
    odd = []
    for file in PACKAGE:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            text = ast.get_docstring(node) if isinstance(node, ast.ClassDef | ast.FunctionDef) else None
            if text is not None and text.split()[0] in ("What", "Whether", "How", "Where", "Which", "When", "Of"):
                odd.append(f"{name_of(file)}.{node.name}: {text.splitlines()[0]}")
    assert odd == []


def test_the_sample_text_is_plain() -> None:
    text = (ROOT / "gpt_pretrain" / "data" / "sample.txt").read_text(encoding="utf-8")
    assert text.isascii()


def test_the_readme_fits_three_screens() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


@pytest.mark.slow
def test_the_guide_builds_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    settings = (tmp_path / "site" / "settings" / "index.html").read_text(encoding="utf-8")
    assert "optimizer.lr" in settings
    assert "Usage: gpt-pretrain export" in settings
    for page in (tmp_path / "site").rglob("*.html"):  # nothing is loaded from a server
        assert re.findall(r"<(?:script|link|img)[^>]+(?:src|href)=.?https?://", page.read_text(encoding="utf-8")) == []


def test_every_setting_is_explained() -> None:
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        hooks = importlib.import_module("hooks")
    finally:
        sys.path.pop(0)
    shown = re.findall(r"^\| `([\w.]+)` \| .*? \| .*? \| (.*?) \|$", hooks.settings_page(), re.MULTILINE)
    assert [name for name, meaning in shown if not meaning] == []
    names = {name for name, _ in shown}
    expected = {name for kind in (TrainSettings, GenerateSettings) for name, _ in hooks.schema_types(kind)}
    assert expected - names == set()


def test_the_options_of_typed_groups_include_their_types() -> None:
    """Each built-in option of a group that may be the user's own names the types of the group, so that its settings are checked."""
    for group in PLACEHOLDERS.keys() | {"model", "data"}:
        for file in sorted((ROOT / "conf" / group).glob("*.yaml")):
            text, others = file.read_text(encoding="utf-8"), [one.stem for one in (ROOT / "conf" / group).glob("*.yaml")]
            extends = any(f"\n  - {name}\n" in text for name in others)
            typed = extends or f"/{group}_schema@_here_" in text or "_target_: ???" in text
            assert typed, f"{file}: add to its defaults: /{group}_schema@_here_"
