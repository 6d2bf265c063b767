"""How numbers and commands are told."""

import math
import shlex

import pytest

from gpt_pretrain.system import formatting


@pytest.mark.parametrize(
    ("value", "text"), [(1.26, "1.3"), (2, "2.0"), (None, "-"), ("3", "-"), (math.nan, "-"), (math.inf, "-")]
)
def test_numbers(value: object, text: str) -> None:
    assert formatting.format_number(value, ".1f") == text


def test_perplexities_and_counts() -> None:
    assert (formatting.format_perplexity(0.0), formatting.format_perplexity(51.0)) == ("1.0", "beyond e^50")
    assert (formatting.format_count(1, "step"), formatting.format_count(1_000, "step")) == ("1 step", "1,000 steps")


def test_commands_survive_a_shell() -> None:
    folder, prompt = "outputs/it's $(one)", 'He said: "no" & `left`'
    assert shlex.split(formatting.generate_command(folder, start_context=prompt))[2:4] == [
        f"checkpoint={folder}",
        f"prompt={prompt}",
    ]
    assert shlex.split(formatting.tensorboard_command(folder)) == ["tensorboard", "--logdir", folder]
    assert shlex.split(formatting.resume_command(folder, limit=("max_steps", 3)))[2:] == [
        f"resume={folder}",
        "trainer.max_steps=6",
    ]
    assert formatting.resume_command("a") == "python train.py resume=a"
