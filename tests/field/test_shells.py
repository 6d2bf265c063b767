"""What is printed and documented for a shell means the same in each shell of a user, where it is installed."""

from __future__ import annotations

import ast
import random
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from gpt_pretrain.runs.metadata import read_metadata
from gpt_pretrain.system.environment import decode_arguments
from gpt_pretrain.system.shell import quote_word
from tests.conftest import ROOT
from tests.field.test_advised_overrides import FILES, messages

# Commands that read lines as the shell's prompt does, with all expansions, but without the user's own settings.
SHELLS = {
    "bash": ["bash", "--norc", "--noprofile", "-i"],
    "zsh": ["zsh", "-f", "-i"],
    "fish": ["fish", "--no-config"],
    "dash": ["dash"],
}
END = "\x1f"  # of an argument
SHOW = "/usr/bin/printf '%s\\037'"
WORDS = [
    "plain", "", " ", "a b", "data.path=a b.txt", "prompt=It's late", "it's $5", "it\u2019s", 'say "no"', "two\nlines",
    "optimizer.lr=[1e-3,1e-4]", "callbacks={a: 1}", "data.path=*.txt", "a?b", "[ab]*", "{a,b}", "x{1..3}", "a&b", "a|b", "a;b",
    "<(a)", "a>b", "(a)", "$HOME", "${HOME}", "$(id)", "`id`", "~", "~root", "a=~", "data.path=~/a", "=ls", "==", "%self", "%1",
    "!", "!!", "a!b", "!$", "it's!", "#", "#a", "a#b", "-n", "--", "\\", "\\\\", "a\\'b", "\\n", "it's \\ and $x", "^a^b", "a^",
    "C:\\runs\\", "'", "''", '"', "'\"", "x='a'", "d\u00e9j\u00e0", "\u4f60\u597d", "\U0001f642", "s3://b/*?x=[1]", "@", "a@b",
]  # fmt: skip
ALPHABET = "ab =,'\"\\$`!#~*?[]{}()<>|&;%^@:/.-\u2019\u201c\u00e9"
FENCE = re.compile(r"```bash\n(.*?)```", re.DOTALL)
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
OWN = re.compile(r"(?:\.venv/bin/)?(?:python3? (?:train|generate|evaluate|serve)\.py|gpt-pretrain)\b")


def arguments_in(shell: str, lines: list[str], folder: Path) -> list[list[str] | None]:
    """Return what a program gets as arguments from each line in a shell; None if the shell refuses the line."""
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    folder.mkdir(exist_ok=True)
    typed = "".join(f"echo BEGIN\n{SHOW} {line}\n" for line in lines)
    done = subprocess.run(SHELLS[shell], input=typed, cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    shown = done.stdout.split("BEGIN\n")[1:]
    assert len(shown) == len(lines), done.stderr[-2000:]
    return [one.removesuffix(END).split(END) if one else None for one in shown]


@pytest.mark.parametrize("shell", SHELLS)
def test_a_quoted_word_is_one_word(shell: str, tmp_path: Path) -> None:
    drawn = random.Random(5)
    words = [*WORDS, *("".join(drawn.choices(ALPHABET, k=drawn.randint(1, 8))) for _ in range(100))]
    found = arguments_in(shell, [quote_word(word) for word in words], tmp_path / "empty")
    assert [(word, quote_word(word), one) for word, one in zip(words, found, strict=True) if one != [word]] == []


def test_messages_quote_lists_for_zsh() -> None:
    """In a message, [...] stands for any list, and other_programs.py quotes what it says when it is shown."""
    files = [file for file in FILES if file.suffix == ".py" and file.name != "other_programs.py"]
    texts = [text for file in files for text in messages(ast.parse(file.read_text(encoding="utf-8")))]
    bare = re.compile(r"(?<![\w.'\"])[a-z_.]+=\[(?!\.\.\.\])[^\]]+\](?!['\"])")
    assert [found[0] for text in texts for found in bare.finditer(text)] == []


def test_a_comment_behind_a_command_is_left_out() -> None:
    assert decode_arguments(["seed=1", "#", "the", "first", "seed=2"]) == ["seed=1"]
    assert decode_arguments(["prompt=#1", "#a"]) == ["prompt=#1", "#a"]


def test_a_commented_command_is_recorded_without_its_comment(script: Callable[..., object], tmp_path: Path) -> None:
    words = ("model=tiny", "tokenizer=byte", "trainer.max_steps=1", "trainer.accelerator=cpu", "callbacks=minimal", "logger=none")
    script("train.py", *words, "hydra.run.dir=run", "#", "my", "first", "run")
    assert read_metadata(tmp_path / "run")["command"].endswith("logger=none hydra.run.dir=run")


def documented() -> list[str]:
    """Return the lines of README and the guide for a shell, apart from those of scripts in files."""
    blocks = [block.replace("\\\n", " ") for page in PAGES for block in FENCE.findall(page.read_text(encoding="utf-8"))]
    return [line for block in blocks if not block.startswith("#!") for line in block.splitlines()]


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_documented_commands_mean_the_same_as_in_bash(shell: str, tmp_path: Path) -> None:
    lines = [line for line in documented() if OWN.match(line)]
    assert len(lines) > 100
    expected, found = (arguments_in(one, lines, tmp_path / "empty") for one in ("bash", shell))
    assert None not in expected
    others = [
        (line, one)
        for line, one, given in zip(lines, found, expected, strict=True)
        if one is None or decode_arguments(one) != given
    ]
    assert others == []


def test_comments_of_documented_commands_have_no_sign_that_zsh_expands() -> None:
    commented = [line.partition(" # ")[::2] for line in documented() if " # " in line]
    assert len(commented) > 40
    assert [comment for _, comment in commented if re.search(r"""['"()?*\[\]<>;&|!$`~{}\\^]""", comment)] == []
    assert [command for command, _ in commented if not OWN.match(command)] == [], "others would take it for their arguments"
