"""The measures of generated texts equal plain computations."""

import json
from pathlib import Path

import pytest
import torch

from gpt_pretrain.checkpoints.checkpoint_file import read_checkpoint
from gpt_pretrain.evaluation import generated_text
from gpt_pretrain.evaluation.generated_text import (
    distinct_fraction,
    find_training_tokens,
    mean_log_probability,
    measure_texts,
    save_measured_texts,
)
from gpt_pretrain.generation.prompts import Continuation
from gpt_pretrain.runs.metadata import MAX_LISTED, read_metadata, update_metadata
from gpt_pretrain.tokenizers.build import build_tokenizer
from tests.conftest import tiny_model


@pytest.mark.parametrize(("prompt", "new"), [(1, 1), (3, 9), (10, 6), (16, 4), (40, 3)])
def test_log_probability_equals_scoring_one_token_at_a_time(prompt: int, new: int) -> None:
    model = tiny_model()  # context_length is 16
    ids = torch.randint(97, (prompt + new,), generator=torch.Generator().manual_seed(prompt)).tolist()
    with torch.no_grad():
        single = [
            model(torch.tensor([ids[max(0, position - 16) : position]]))[0, -1].log_softmax(-1)[ids[position]].item()
            for position in range(prompt, prompt + new)
        ]
    found = mean_log_probability(model, ids[:prompt], ids[prompt:])
    if prompt + new <= 17 or new == 1:
        assert found == pytest.approx(sum(single) / new, abs=1e-5)
    assert found is not None
    assert found < 0
    assert mean_log_probability(model, ids, []) is None


def test_beyond_the_context_each_token_is_scored_with_at_least_half_a_context() -> None:
    model = tiny_model()
    ids = torch.randint(97, (50,), generator=torch.Generator().manual_seed(0)).tolist()

    def log_probability(position: int, begin: int) -> float:
        return model(torch.tensor([ids[begin:position]]))[0, -1].log_softmax(-1)[ids[position]].item()

    with torch.no_grad():
        naive, begin, end = 0.0, 0, 17
        for position in range(1, 50):
            if position >= end:
                begin, end = position - 8, position - 8 + 17
            naive += log_probability(position, begin)
    assert mean_log_probability(model, ids[:1], ids[1:]) == pytest.approx(naive / 49, abs=1e-4)


def test_distinct_fraction_counts_distinct_n_grams() -> None:
    assert distinct_fraction([1, 2, 1, 2, 1], 1) == 2 / 5
    assert distinct_fraction([1, 2, 1, 2, 1], 2) == 2 / 4
    assert distinct_fraction([1, 2, 1, 2, 1], 3) == 2 / 3
    assert distinct_fraction([1], 2) is None


def test_run_metadata_remain_readable_with_very_many_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generated_text, "measure_texts", lambda *_, **__: {"run_length": None})
    update_metadata(tmp_path, overrides=["n_samples=100000"])
    texts = [Continuation("a", [1], [2])] * 100_000
    save_measured_texts(tmp_path, tiny_model(), texts, {}, build_tokenizer("byte"))
    metadata = read_metadata(tmp_path)
    assert metadata["overrides"] == ["n_samples=100000"]
    assert metadata["texts"] == ["a"] * MAX_LISTED
    assert (tmp_path / "samples.txt").read_text().count("a") == 100_000


def test_measures_are_means_and_serializable() -> None:
    texts = [Continuation("a", [1, 2], [3, 3, 3, 3]), Continuation("b", [1, 2], [4, 5, 6, 7])]
    found = measure_texts(tiny_model(), texts, training=None)
    assert found["distinct_1"] == (1 / 4 + 1) / 2
    assert found["run_length"] is None
    assert json.loads(json.dumps(found)) == found


def test_the_training_text_is_found_only_if_unchanged(train, tmp_path: Path) -> None:
    book = tmp_path / "book.txt"
    book.write_text("The quick brown fox jumps over the lazy dog. " * 300)
    train("data=text", f"data.path={book}", "trainer.max_epochs=1", "callbacks=minimal", "logger=none")
    content = read_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")
    tokenizer = build_tokenizer("byte")
    tokens = find_training_tokens(content, tokenizer)
    assert tokens is not None
    assert bytes(tokens.read(0, 9).tolist()) == b"The quick"
    book.write_text("Another text.")
    assert find_training_tokens(content, tokenizer) is None
    book.unlink()
    assert find_training_tokens(content, tokenizer) is None
    assert find_training_tokens({}, tokenizer) is None
