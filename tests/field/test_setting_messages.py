"""Settings with a value that they cannot have: each message names the rule, in the words of a reader."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

Script = Callable[..., "subprocess.CompletedProcess[str]"]

PREPARE = ("-m", "gpt_pretrain", "prepare", "out=corpus", "tokenizer=byte", "text.txt")

# Name of a case: the command, and what its message says.
CASES = {
    "temperatures": (
        ("train.py", "callbacks=grid", "callbacks.grid.temperatures=[-1]"),
        "callbacks.grid.temperatures=[-1.0]: must be one or more numbers of at least 0.",
    ),
    "top_ks": (
        ("train.py", "callbacks=grid", "callbacks.grid.top_ks=[]"),
        "callbacks.grid.top_ks=[]: must be one or more numbers of at least 1, or null for all tokens.",
    ),
    "held_out_texts": (("train.py", "evaluation.texts=5"), 'must be a list of texts, such as ["One", "Two"]'),
    "sources": (
        ("train.py", "data=mixture", "data.sources=5"),
        "must be a list of mappings, such as [{path: a.txt, weight: 1}]",
    ),
    "role": (("train.py", "optimizer.matrices=5"), "must be a group of settings, which are set one by one: lr, weight_decay"),
    "decay_of_a_role": (
        ("train.py", "optimizer=muon", "optimizer.matrices.weight_decay=-1"),
        "must be at least 0, or null for optimizer.weight_decay, or 0 for vectors.",
    ),
    "tokens": (("train.py", "trainer.max_tokens=0"), "must be at least 1 token, or null for max_epochs and max_steps only."),
    "bytes_of_held_out_texts": (("train.py", "evaluation.max_bytes=0"), "must be at least 1 byte, or null for all of each text."),
    "heads": (
        ("generate.py", "checkpoint=run", "n_heads=0"),
        "n_heads=0: must be at least 1 attention head, or null for the heads that the weights name.",
    ),
    "empty_stop": (
        ("generate.py", "checkpoint=run", 'stop=["", "a"]'),
        'stop=["", a]: must be at most 16 texts of 1 to 1,000 characters.',
    ),
    "tokens_of_a_batch": (
        ("evaluate.py", "checkpoint=run", "batch_tokens=0"),
        "batch_tokens=0: must be at least 1 token, or null for what suits the device.",
    ),
    "kind_alone": (
        ("train.py", "model.kind=gpt2"),
        "model.kind=gpt2 and model.init=modern do not go together. Type neither, and choose an option with model.kind=gpt2 and an "
        "optimizer that suits it, such as model=tiny or model=gpt2_124m.",
    ),
    "kind_of_an_option": (
        ("train.py", "model=tiny", "model.kind=modern"),
        "model.kind=modern and model.init=gpt2 do not go together. Type neither, and choose an option with model.kind=modern and an "
        "optimizer that suits it, such as model=modern_tiny or model=modern_124m.",
    ),
    "batch": (("train.py", "data.batch_size=0"), "data.batch_size=0: must be at least 1 sequence, or null for the usual number."),
    "host": (
        ("serve.py", "host=my server"),
        "host=my server: must be a name or an address of this machine without http://, brackets",
    ),
    "text_field": ((*PREPARE, "text_field="), "text_field=: must name the field that holds the text, such as text."),
    "tasks": ((*PREPARE, "executor=local", "tasks=0"), "tasks=0: must be at least 1 task, or null for one task per file."),
    "unknown_option": (("-m", "gpt_pretrain", "report", "--xyzzy"), "--help shows how to use this command."),
}


@pytest.mark.parametrize("name", CASES)
def test_a_value_that_a_setting_cannot_have_is_explained(script: Script, tmp_path: Path, name: str) -> None:
    (tmp_path / "text.txt").write_text("The quick brown fox jumps over the lazy dog. " * 60)
    (tmp_path / "run").mkdir()
    command, message = CASES[name]
    done = script(*command)
    assert message in " ".join(done.stderr.split())
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_no_vocabulary_of_an_impossible_size_is_trained(script: Script, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("The quick brown fox jumps over the lazy dog. " * 60)
    done = script("train.py", "data.path=text.txt", "tokenizer=bpe", "tokenizer.vocab_size=10")
    assert done.stderr.startswith("error: tokenizer.vocab_size=10: must be between 257 tokens")
    assert "Training a vocabulary" not in done.stdout
