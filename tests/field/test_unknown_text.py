"""Text that a vocabulary lacks is counted and named by every way in, not replaced in silence."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from gpt_pretrain.commands.generate import _with_warnings
from gpt_pretrain.data.token_cache import tokenize_text
from gpt_pretrain.generation.prompt_files import NumberedPrompt
from gpt_pretrain.prepare.segments import RecordCounts, total_counts
from gpt_pretrain.prepare.tokenizing import encode_batch
from gpt_pretrain.texts.chunks import Chunk, ReadPosition
from gpt_pretrain.texts.text import Text
from gpt_pretrain.tokenizers.build import build_tokenizer
from gpt_pretrain.tokenizers.unknown import UnknownText, describe_unknown, unknown_parts, unknown_prompt

Script = Callable[..., "subprocess.CompletedProcess[str]"]

TINY = [
    *("model=tiny", "model.emb_dim=16", "model.n_layers=1", "model.n_heads=2", "model.context_length=16", "data.batch_size=4"),
    *("trainer.accelerator=cpu", "trainer.precision=32-true", "trainer.max_steps=2", "callbacks=minimal", "logger=csv"),
]


@pytest.mark.parametrize(
    ("kind", "text", "parts"),
    [
        ("word_pieces", "der sinn, ωμ ω [UNK] q", ["ωμ", "ω", "q"]),
        ("unigram", "der QXQ sinn", ["Q", "X"]),
        ("words", "Der Sinn des Zebras [UNK]", ["Zebras"]),
        ("byte_level", "ωμ", []),
        ("llama_like", "ωμ", []),
    ],
)
def test_the_parts_that_a_vocabulary_lacks_are_found(
    kind: str, text: str, parts: list[str], vocabularies: dict[str, Path]
) -> None:
    tokenizer = build_tokenizer(str(vocabularies[kind]))
    unknown = UnknownText(tokenizer)
    unknown.add(text, tokenizer.encode_ordinary(text))
    assert bool(unknown.tokens) is bool(parts)
    assert unknown.example == (parts[0] if parts else "")
    assert list(unknown_parts(text, tokenizer)) == parts
    assert (unknown_prompt(text, tokenizer) is None) is (not parts)


@pytest.mark.parametrize("name", ["gpt2", "byte", "characters:ab", "ids:10"])
def test_named_tokenizers_lack_nothing(name: str) -> None:
    assert build_tokenizer(name).unknown_id is None


def test_a_sentence_names_number_share_and_example() -> None:
    assert "996 of 1,000 tokens (100%)" in describe_unknown(996, 1000, "")
    assert describe_unknown(1234, 5678, "ω").startswith(
        "1,234 of 5,678 tokens (22%) stand for text that the vocabulary lacks, such as 'ω'."
    )


def test_a_cached_text_keeps_its_count(tmp_path: Path, vocabularies: dict[str, Path]) -> None:
    (tmp_path / "x.txt").write_text("der sinn ω des lebens μ. " * 40, encoding="utf-8")
    tokenizer = build_tokenizer(str(vocabularies["word_pieces"]))
    for _ in range(2):
        split = tokenize_text(Text((tmp_path / "x.txt",)), tokenizer, train_ratio=0.9, cache_dir=tmp_path / "cache")
        assert (split.unknown_tokens, split.unknown_example) == (80, "ω")


def test_a_worker_counts_unknown_text(vocabularies: dict[str, Path]) -> None:
    chunk = Chunk("x.txt", 1, "der sinn ω μ", ReadPosition(), 0, begins=True, ends=True)
    batch = encode_batch([chunk], str(vocabularies["word_pieces"]), "text")
    assert (batch.unknown, batch.unknown_example) == (2, "ω")


def test_journals_of_earlier_versions_have_no_count() -> None:
    assert RecordCounts(records=1).unknown == total_counts([]).unknown == 0


def test_every_way_in_says_it(script: Script, tmp_path: Path, vocabularies: dict[str, Path]) -> None:
    shutil.copytree(vocabularies["word_pieces"], tmp_path / "mine")
    (tmp_path / "x.txt").write_text("der sinn des lebens ω ist die freude. " * 60, encoding="utf-8")
    done = script("-m", "gpt_pretrain", "prepare", "x.txt", "out=corpus", "tokenizer=mine", "workers=1", "val_fraction=0")
    assert done.returncode == 0, done.stderr
    assert "Warning: 60 of " in done.stdout
    assert "stand for text that the vocabulary lacks, such as 'ω'" in done.stdout
    done = script("train.py", *TINY, "tokenizer=mine", "data.path=x.txt", "hydra.run.dir=run", "start_context=der Ω")
    assert done.returncode == 0, done.stderr
    shown = done.stdout + done.stderr
    assert "stand for text that the vocabulary lacks, such as 'ω'" in shown
    done = script("train.py", *TINY, "data=shards", "data.path=corpus", "data.train_ratio=0.9", "hydra.run.dir=run2")
    assert done.returncode == 0, done.stderr
    assert "stand for text that the vocabulary lacks." in done.stdout + done.stderr
    done = script("generate.py", "checkpoint=run", "prompt=der ω", "sampler.max_new_tokens=2")
    assert done.returncode == 0, done.stderr
    assert "warning: The vocabulary lacks 'ω': the model reads [UNK] instead." in done.stderr


def test_prompts_of_a_file_are_warned_about(vocabularies: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    texts = ["der", *(f"der {letter * 2}" for letter in "ζψωφλ")]
    prompts = [NumberedPrompt(line, text, {"text": "x", "id": line}) for line, text in enumerate(texts, start=1)]
    assert list(_with_warnings(prompts, build_tokenizer(str(vocabularies["word_pieces"])))) == prompts
    told = capsys.readouterr().err.splitlines()
    assert told[0] == "warning: line 1: the answer's field text will replace the prompt's."
    assert told[1].startswith("warning: line 2: The vocabulary lacks 'ζζ': the model reads ")
    assert told[4:] == ["warning: The vocabulary also lacks parts of 2 further prompts."]
