"""Every setting that README, the guide, help or a message advises exists and accepts the advised value."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_type_hints

import pytest

from gpt_pretrain.commands.command_line.argument_checks import override_problems
from gpt_pretrain.config import command_schema
from gpt_pretrain.config.overrides import full_form
from tests.conftest import CONF, ROOT

OVERRIDE = re.compile(r"(?<![\w./=\\'\"@-])([a-z_]+(?:\.[a-z_]+)*)=((?:\[[^\]]*\]|\{[^}]*\}|[^\s`\"'),;])*)")
CODE = re.compile(r"```bash\n.*?```|`[^`\n]+`", re.DOTALL)
SCHEMAS = ("ExportSettings", "PrepareSettings", "VocabularySettings", "ReportSettings", "CompareSettings", "LeaderboardSettings")
OF_COMMANDS = {name for schema in SCHEMAS for name in get_type_hints(getattr(command_schema, schema))}
HOLE = "HOLE"  # a value that a message fills in
# Words of this form that are no settings: examples of the form, other programs' settings, and fields of files and classes.
OTHERS = {"name", "setting", "group", "iambic", "read_timeout", "is_host", "install", "anon", "weights_only", "max_new_tokens"}
OTHERS |= {"lasting", "qkv_bias", "before", "after"}
OTHERS |= {
    "banned_ids",
    "batch_first",
    "encoding",
    "errors",
    "lines",
    "newline",
    "options",
    "orient",
    "provider",
    "return_tensors",
    "text",
    "eps",
    "training",
    "total_steps",
    "rank",
    "world_size",
}  # arguments of functions
OTHERS |= {"max_tokens", "version"}  # fields of requests and answers of the server
# Fields of config.json.
OTHERS |= {"activation_function", "head_dim", "intermediate_size", "model_type", "n_inner", "quant_method", "window_pattern"}
# Fields that are shown after their group.
OTHERS |= {"bigram_rows", "drop_rate", "emb_dim", "init", "kind", "n_kv_heads", "path"}
OTHERS |= {"temperature", "top_k", "top_p", "min_p", "repetition_penalty", "window_step"}
# The page of one's own parts has options and settings that only its reader's folder has.
PAGES = [file for file in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")) if file.name != "own-parts.md"]
FILES = [
    *(*PAGES, *CONF.rglob("*.yaml"), *sorted(ROOT.glob("*.py"))),
    *(*(ROOT / "gpt_pretrain").rglob("*.py"), *(ROOT / "hydra_plugins").rglob("*.py")),
]


def advised(file: Path) -> Iterator[tuple[str, str]]:
    """Yield the names and values of all overrides in a page, a config or the messages of a module."""
    content = file.read_text(encoding="utf-8")
    texts = CODE.findall(content) if file.suffix == ".md" else [content]
    for text in messages(ast.parse(content)) if file.suffix == ".py" else texts:
        for match in OVERRIDE.finditer(text):
            yield match[1], match[2].rstrip(".:?")


def messages(tree: ast.Module) -> Iterator[str]:
    """Yield the texts of several words in a module, apart from docstrings of functions and classes."""
    hidden = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        text = None
        if isinstance(node, ast.JoinedStr):
            hidden |= {id(part) for part in node.values}
            text = "".join(str(part.value) if isinstance(part, ast.Constant) else HOLE for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in hidden:
            text = node.value
        if text is not None and " " in text:
            yield re.sub(r"%[-,.\d]*[a-z]", HOLE, text)


def problems(name: str, value: str) -> list[str]:
    """Return what is wrong with an override, unless one of the programs takes it."""
    found = [
        list(override_problems(full_form(f"{name}={value}", script=script), script=script, sweep=True))
        for script in ("train", "generate", "evaluate", "serve")
    ]
    if name in OF_COMMANDS | OTHERS | {"sweep_resume"} or name.endswith("._target_") or not all(found):
        return []
    unknown = all("no such setting" in one[0] for one in found)
    filled_in = HOLE in value or "*" in value or "..." in value or value == "" or bool(re.search(r"[A-Z]{2}|^[A-Z]$", value))
    return found[0] if unknown or not filled_in else []


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_advised_settings_exist_and_take_the_value(file: Path) -> None:
    assert [(override, wrong) for override in advised(file) if (wrong := problems(*override))] == []


def test_wrong_advice_would_be_found() -> None:
    assert problems("optimizer.lrr", "1e-3")
    assert problems("trainer.max_step", "HOLE")
    assert problems("tokenizers", "gpt2")
    assert problems("max_rejects", "HOLE")
    assert problems("checkpoints", "")
    assert problems("model", "tinny")
    assert problems("data.batch_size", "many")
    assert sum(len(list(advised(file))) for file in FILES) > 300
    names = {file.name for file in FILES}
    assert {
        "README.md",
        "SECURITY.md",
        "own-vocabulary.md",
        "argument_checks.py",
        "gpt_pretrain_sweepers.py",
        "train.yaml",
    } <= names


def test_overrides_are_found_in_code_and_messages(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("Set `optimizer.lr=1e-3`, or `seed=1`.\n\n```bash\npython train.py modl=tiny # fast\n```\n\nx=1 is text.\n")
    assert list(advised(page)) == [("optimizer.lr", "1e-3"), ("seed", "1"), ("modl", "tiny")]
    module = tmp_path / "module.py"
    module.write_text(
        'def f(n):\n    """Set a.b=1 here."""\n    raise UserError(f"Choose data.batch_size={n} or eval_freq=2.")\n'
    )
    assert list(advised(module)) == [("data.batch_size", "HOLE"), ("eval_freq", "2")]
