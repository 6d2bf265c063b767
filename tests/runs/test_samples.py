"""Samples: their file, the tables made of them, and how much of them is learnt by heart."""

import html
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt_pretrain.runs.samples import Sample, read_samples, samples_table, thin_out

texts = st.text(
    st.characters(exclude_categories=("Cs",), exclude_characters="\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"), max_size=60
)


@given(st.lists(st.tuples(texts, st.booleans(), st.none() | st.integers(0, 50)), max_size=4))
def test_a_file_gives_back_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, parts: list[tuple[str, bool, int | None]]
) -> None:
    samples = [
        Sample(
            epoch=number + 1,
            step=9 * number,
            tokens_seen=512 * number,
            text=text,
            sampler="temperature 0.7, top_k null" if drawn else None,
            new_tokens=0 if length is None else 50,
            run_length=length,
        )
        for number, (text, drawn, length) in enumerate(parts)
    ]
    file = tmp_path_factory.mktemp("samples") / "samples.txt"
    file.write_text("".join(map(str, samples)), encoding="utf-8", newline="")
    assert read_samples(file) == samples


def test_a_text_that_looks_like_a_head_stays_a_text(tmp_path: Path) -> None:
    forged = "one\n--- epoch 9, step 9, 9 tokens seen\ntwo"
    file = tmp_path / "samples.txt"
    file.write_text(str(Sample(1, 2, 3, forged)) + str(Sample(2, 4, 6, "end")), encoding="utf-8")
    first, second = read_samples(file)
    assert first.text == forged.replace("\n---", "\n ---")
    assert second.text == "end"
    assert read_samples(tmp_path / "none.txt") == []


def test_a_table_shows_characters_and_no_markup() -> None:
    text = "<b>bold</b> | **x** [a](b)\n`c` \\ _d_ \x07"
    (row,) = samples_table([Sample(1, 2, 3, text, None, 5, 4)]).splitlines()[2:]
    cells = row.split(" | ")
    assert len(cells) == 5
    assert not re.search(r"[<>*`\\\[\]_]", row)
    assert html.unescape(cells[-1].removesuffix(" |")) == "<b>bold</b> | **x** [a](b)\u23ce`c` \\ _d_  "
    assert cells[3] == "4 of 5"


def test_thinning_keeps_both_ends() -> None:
    assert thin_out(range(5), 5) == [0, 1, 2, 3, 4]
    assert thin_out(range(100), 4) == [0, 33, 66, 99]


def test_runs_keep_samples_with_their_memorised_part_and_a_grid(train, tmp_path: Path) -> None:
    words = ["callbacks=grid", "callbacks.loss_curve=false", "callbacks.grid.prompts=['One','Two']", "sampler.max_new_tokens=30"]
    train(*words, "trainer.max_epochs=3", "optimizer.lr=1e-2")
    samples = read_samples(tmp_path / "run" / "samples.txt")
    assert len(samples) == 3 * (1 + 2 * 3 * 2)
    own = [sample for sample in samples if sample.sampler is None]
    assert [sample.epoch for sample in own] == [1, 2, 3]
    story = (Path(__file__).parents[2] / "gpt_pretrain" / "data" / "sample.txt").read_text(encoding="utf-8")
    training = story[: int(0.9 * len(story))]
    for sample in samples:
        assert sample.new_tokens == 30
        new = sample.text.removeprefix("Every effort moves you").removeprefix("One").removeprefix("Two")
        if new.isascii() and len(new) == 30:  # a token is a byte
            longest = max(n for n in range(31) if any(new[i : i + n] in training for i in range(31 - n)))
            assert sample.run_length == longest
    whole = tmp_path / "run" / "samples.txt"
    before = whole.read_text(encoding="utf-8")
    train(*words, "trainer.max_epochs=4", "optimizer.lr=1e-2", f"resume='{tmp_path / 'run'}'")
    assert whole.read_text(encoding="utf-8").startswith(before)
    assert len(read_samples(whole)) == 4 * 13
