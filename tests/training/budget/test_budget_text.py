import dataclasses

import numpy as np
import pytest

from gpt_pretrain.config.schema import DataSettings, TrainSettings
from gpt_pretrain.errors import UserError
from gpt_pretrain.tokenizers.build import build_tokenizer
from gpt_pretrain.training.budget import choice, pilot, text_facts
from gpt_pretrain.training.budget.choice import TextFacts
from gpt_pretrain.training.budget.law import Training
from gpt_pretrain.training.budget.ngrams import frequency_bits, ngram_bits
from gpt_pretrain.training.budget.typed import unstudied
from gpt_pretrain.training.optimization import muon


def test_counted_ngrams_predict_a_repeated_text_and_not_noise():
    noise = np.random.default_rng(1).integers(0, 256, 20_000, dtype=np.uint8).tobytes()
    assert ngram_bits(b"hello world, " * 1000, b"hello world, " * 50) < 0.2
    assert ngram_bits(noise[:15_000], noise[15_000:]) > 7.5
    assert ngram_bits(b"a", b"b") > 0


TEXT = "".join(f"{number} boats lay at the shore, and {number * number % 89} more came.\n" for number in range(3000))


def test_a_pilot_without_time_is_short_and_says_so():
    tokenizer = build_tokenizer("byte")
    small, bits = pilot.run_pilot(tokenizer, TEXT[:100_000], TEXT[100_000:110_000], unique_bytes=100_000, seconds=0.0)
    assert small.trained_bytes == pilot.FEWEST_STEPS * pilot.BATCH * pilot.CONTEXT
    assert 1.0 < bits < 8.0


def test_counting_stops_where_time_is_short():
    assert len(text_facts.counted(TEXT, TEXT[:5000])) == 3
    assert [*text_facts.counted(TEXT, TEXT[:5000], seconds=0.0)] == [20_000, 125_000]


def test_a_sample_comes_from_all_parts_of_a_text():
    text = "".join(chr(ord("a") + number // 1000) for number in range(16_000))
    assert set(text_facts.spread(text, 4000)) == set(text)
    assert len(text_facts.spread(text, 4000)) == 4000
    assert text_facts.spread(text, 20_000) == text


def test_measuring_alone_does_not_wait_for_other_ranks(monkeypatch):
    monkeypatch.delattr(muon, "_orthogonalize_together")
    tokenizer = build_tokenizer("byte")
    pilot.run_pilot(tokenizer, TEXT[:20_000], TEXT[20_000:22_000], unique_bytes=20_000, seconds=0.0)


def test_frequencies_of_bytes_are_their_entropy():
    assert frequency_bits(b"abcd" * 50_000, b"abcd" * 10) == pytest.approx(2.0, abs=0.02)
    assert 8 <= frequency_bits(b"", b"x") < 8.1


def test_a_short_text_has_its_pilot_with_a_ready_vocabulary() -> None:
    tokenizer, facts = build_tokenizer("gpt2"), list[TextFacts]()
    for n_bytes in (5_000, 10_000_000):
        facts.append(
            text_facts.text_facts(TEXT[:5_000], TEXT[5_000:6_000], [], unique_bytes=n_bytes, tokenizer=tokenizer, seconds=0.0)
        )
    assert [one.difficulty.pilot.vocab_size == tokenizer.vocab_size for one in facts] == [True, False]
    distinct = len(set(tokenizer.encode_ordinary(TEXT[:5_000])))
    assert facts[0].distinct_tokens == {tokenizer.vocab_size: distinct}
    assert distinct < facts[1].distinct_tokens[tokenizer.vocab_size] <= tokenizer.vocab_size
    assert facts[0].training(1e5, tokenizer.vocab_size, 1e4).distinct_tokens == distinct


@pytest.mark.parametrize("pilot_bytes", [20_000.0, 80_000.0])
def test_a_large_vocabulary_is_known_by_a_whole_pilot_with_it(pilot_bytes: float) -> None:
    config = choice.architectures([50_257])[0]
    pilot = Training(98_304, 50_257, 20_000, pilot_bytes, 4.0)
    other = "a vocabulary of 50,257 tokens"
    assert (other in unstudied(TrainSettings(), set(), config, pilot)) == (pilot_bytes < 80_000)
    assert other in unstudied(TrainSettings(), set(), config, dataclasses.replace(pilot, vocab_size=1024))


@pytest.mark.parametrize("text", ["a", "ab", "short text"], ids=range(3))
def test_a_text_too_short_to_be_described_is_refused(tmp_path, text):
    (tmp_path / "text.txt").write_text(text)
    settings = DataSettings(
        name="text", path=str(tmp_path / "text.txt"), url=None, sha256=None, cache_dir=str(tmp_path), train_ratio=0.9
    )
    with pytest.raises(UserError, match="too few to learn from"):
        text_facts.describe_text(settings, [512])
