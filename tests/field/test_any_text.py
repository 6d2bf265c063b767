"""Texts of any size and shape are tokenized alike, with little memory."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gpt_pretrain.tokenizers.build import build_tokenizer
from gpt_pretrain.tokenizers.splitting import encode_prompt
from tests.conftest import ROOT
from tests.helpers import corpora

GPT2 = build_tokenizer("gpt2")
MILLION = 1_000_100  # tiktoken's regular expression gives up after a million steps

# Runs that tiktoken cannot encode as a whole, and some that it can.
SHAPES = {
    "spaces": "word" + " " * MILLION + "word again. " * 10,
    "line feeds": "head" + "\n" * 3 * MILLION + "tail text. " * 10,
    "only spaces and tabs": "\t " * MILLION,
    "letters": "ACGT" * (MILLION // 4) + "GATTACA",
    "punctuation": "=" * MILLION,
    "emoji": "😀" * (MILLION // 2),
}

MEASURE = """
import resource, sys
from pathlib import Path
from gpt_pretrain.data.token_cache import tokenize_text
from gpt_pretrain.texts.text import Text
from gpt_pretrain.tokenizers.build import build_tokenizer
tokenizer = build_tokenizer("gpt2")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
tokenize_text(Text((Path(sys.argv[1]),)), tokenizer, train_ratio=0.9, cache_dir=Path(sys.argv[2]))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def training_tokens(cache_dir: Path) -> np.ndarray:
    [file] = cache_dir.glob("tokens/*/train.bin")
    return np.fromfile(file, "<u2")


@pytest.mark.parametrize("shape", SHAPES)
def test_any_shape_of_text_has_the_same_tokens_in_training_and_in_a_corpus(tmp_path: Path, shape: str) -> None:
    from gpt_pretrain.data.token_cache import tokenize_text
    from gpt_pretrain.texts.text import Text

    source = tmp_path / "text.txt"
    source.write_text(SHAPES[shape] + "end", encoding="utf-8")
    corpora.prepare(source, out=tmp_path / "corpus", tokenizer="gpt2", val_fraction=0.0)
    split = tokenize_text(Text((source,)), GPT2, train_ratio=1.0, cache_dir=tmp_path)
    prepared = corpora.tokens(tmp_path / "corpus", "train")
    np.testing.assert_array_equal(split.train.read(), prepared[:-1])
    assert b"".join(GPT2.token_bytes(token_id) for token_id in prepared[:-1].tolist()).decode() == SHAPES[shape] + "end"


@pytest.mark.parametrize(
    "line", ["今天天气很好我们去公园散步然后回家吃饭。\n", "今天天气很好我们去公园散步", "\N{GRINNING FACE}", " "]
)
def test_memory_does_not_grow_with_the_text(tmp_path: Path, line: str) -> None:
    (tmp_path / "text.txt").write_text(line * (8_000_000 // len(line.encode())) + "end", encoding="utf-8")
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "text.txt"), str(tmp_path / "cache")]
    grown = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert int(grown) < 60_000, "kilobytes"


def test_a_prompt_of_a_million_spaces_has_the_tokens_of_a_corpus(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(SHAPES["spaces"])
    corpora.prepare(tmp_path / "text.txt", out=tmp_path / "corpus", tokenizer="gpt2", val_fraction=0.0)
    assert encode_prompt(SHAPES["spaces"], GPT2) == corpora.tokens(tmp_path / "corpus", "train")[:-1].tolist()
