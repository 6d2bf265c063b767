"""Vocabularies of one's own: trained the same way each time, and read alike by this program and by transformers."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from gpt_pretrain.errors import UserError
from gpt_pretrain.tokenizers.base import END_OF_TEXT, decode
from gpt_pretrain.tokenizers.bpe_training import PATTERNS, train_bpe, train_bpe_sizes
from gpt_pretrain.tokenizers.build import build_tokenizer
from gpt_pretrain.tokenizers.saving import tokenizer_files
from gpt_pretrain.tokenizers.vocabulary import VocabularyTokenizer
from tests.conftest import ROOT
from tests.helpers.vocabularies import PROBES, TEXT


def save(tokenizer: VocabularyTokenizer, folder: Path) -> Path:
    folder.mkdir()
    for name, content in tokenizer_files(tokenizer).items():
        (folder / name).write_text(content, encoding="utf-8")
    return folder


@pytest.fixture(scope="module", params=sorted(PATTERNS))
def trained(request: pytest.FixtureRequest) -> VocabularyTokenizer:
    return train_bpe(TEXT, 360, pattern=request.param, special_tokens=["<|user|>"])


@pytest.fixture(scope="module")
def opened(trained: VocabularyTokenizer, tmp_path_factory: pytest.TempPathFactory):
    return AutoTokenizer.from_pretrained(save(trained, tmp_path_factory.mktemp("vocabulary") / "own"), local_files_only=True)


def test_the_end_of_text_is_the_last_token_and_there_once(trained: VocabularyTokenizer) -> None:
    tokens = [trained.token_bytes(token_id) for token_id in range(trained.vocab_size)]
    assert trained.vocab_size == 360 and trained.eos_id == 359
    assert tokens.count(END_OF_TEXT.encode()) == tokens.count(b"<|user|>") == 1
    assert tokens[:256] == [bytes([byte]) for byte in range(256)]
    assert len(set(tokens)) == len(tokens)


@settings(max_examples=150, deadline=None)
@given(st.one_of(st.text(), st.lists(st.sampled_from([*TEXT, *PROBES, END_OF_TEXT, "<|user|>", " ", "\n", "a1"])).map("".join)))
def test_transformers_gives_the_same_ids_and_the_same_text(trained, opened, text: str) -> None:
    ids = trained.encode(text)
    assert opened.encode(text, add_special_tokens=False) == ids
    assert decode(trained, ids) == opened.decode(ids, clean_up_tokenization_spaces=False) == text


def test_the_folder_is_the_same_tokenizer(trained: VocabularyTokenizer, tmp_path: Path) -> None:
    assert build_tokenizer(str(save(trained, tmp_path / "own"))).definition == trained.definition


def test_the_order_of_the_texts_and_their_parts_make_no_difference() -> None:
    texts = [f"{line}\n" for text in TEXT[:2] for line in text.split("\n")]
    assert train_bpe(texts, 400).definition == train_bpe(texts[::-1], 400).definition


def test_neither_threads_nor_hash_tables_make_a_difference() -> None:
    code = (
        "from gpt_pretrain.tokenizers.bpe_training import train_bpe; from tests.helpers.vocabularies import TEXT;"
        "print(train_bpe(TEXT, 400).name)"
    )
    names = []
    for threads in ("1", "2"):
        environment = os.environ | {"RAYON_NUM_THREADS": threads, "PYTHONHASHSEED": threads}
        command = [sys.executable, "-c", code]
        names.append(subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout)
    assert names[0] == names[1]


def test_nothing_is_learned_from_special_tokens() -> None:
    texts = [f"one{END_OF_TEXT}two<|user|>" * 50]
    tokens = train_bpe(texts, 300, special_tokens=["<|user|>", END_OF_TEXT, "<|user|>"])
    learned = {tokens.token_bytes(token_id) for token_id in range(256, tokens.vocab_size)}
    assert learned == {b"ne", b"one", b"tw", b"two", b"<|user|>", END_OF_TEXT.encode()}


@pytest.mark.parametrize("unit", [" ", "ACGT", "=", "\n"], ids=["blanks", "genome", "signs", "lines"])
def test_long_runs_of_one_kind_take_no_time(unit: str) -> None:
    text = unit * 300_000
    tokenizer = train_bpe([text], 300)
    assert decode(tokenizer, tokenizer.encode(text[:5000])) == text[:5000]


def test_a_short_text_gives_fewer_tokens() -> None:
    assert train_bpe([], 300).vocab_size == 257
    assert train_bpe(["ab ab"], 300).vocab_size < 260


def test_several_sizes_are_trained_at_once() -> None:
    several = train_bpe_sizes(TEXT, [400, 280, 5000], special_tokens=["<|user|>"])
    alone = [train_bpe(TEXT, size, special_tokens=["<|user|>"]) for size in (400, 280, 5000)]
    assert [one.definition for one in several] == [one.definition for one in alone]


def test_a_vocabulary_has_room_for_the_bytes_and_the_special_tokens() -> None:
    with pytest.raises(UserError, match="vocab_size=257 must be at least 258"):
        train_bpe(TEXT, 257, special_tokens=["<|user|>"])


def test_an_error_of_the_texts_is_the_error_of_the_training() -> None:
    def texts():
        yield "text"
        raise UserError("The file has changed.")

    with pytest.raises(UserError, match="The file has changed"):
        train_bpe(texts(), 300)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with its parent")
def test_the_training_ends_when_its_parent_is_killed() -> None:
    # Standard input stays open, so that the worker waits for more text.
    start = "import subprocess, gpt_pretrain.tokenizers.bpe_training as b; subprocess.run(b._worker_command(300, '.'))"
    parent = subprocess.Popen([sys.executable, "-c", start], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT)
    assert parent.stdin is not None and parent.stdout is not None
    children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children")
    while not children.read_text():
        assert parent.poll() is None
        time.sleep(0.01)
    parent.kill()
    ended, _, _ = select.select([parent.stdout], [], [], 20)
    parent.communicate()
    assert ended
