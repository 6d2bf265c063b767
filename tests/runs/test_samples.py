"""Samples: their file, their Markdown table, and their memorized spans."""

import html
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt_pretrain.runs.samples import Sample, markdown_code_block, markdown_table, pick_evenly, read_samples
from tests.helpers.resource_limits import allocating_at_most

texts = st.text(
    st.characters(exclude_categories=("Cs",), exclude_characters="\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"), max_size=60
)


@given(st.lists(st.tuples(texts, st.booleans(), st.none() | st.integers(0, 50)), max_size=4))
def test_samples_are_read_as_they_were_written(
    tmp_path_factory: pytest.TempPathFactory, contents: list[tuple[str, bool, int | None]]
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
        for number, (text, drawn, length) in enumerate(contents)
    ]
    file = tmp_path_factory.mktemp("samples") / "samples.txt"
    file.write_text("".join(map(str, samples)), encoding="utf-8", newline="")
    assert read_samples(file) == samples


@pytest.mark.parametrize("sampler", ["", ", temperature 0.7, top_k 25"])
def test_samples_of_version_0_1_0_can_be_read(tmp_path: Path, sampler: str) -> None:
    file = tmp_path / "samples.txt"
    file.write_text(
        f"--- epoch 1, step 5, 384 tokens seen{sampler}; 7 of 50 new tokens in a row stand in the training text\nEvery\neffort\n"
        f"--- epoch 2, step 11, 768 tokens seen{sampler}; longest memorized span: 8 of 50 new tokens\nmoves\n"
    )
    old, new = read_samples(file)
    assert old == Sample(1, 5, 384, "Every\neffort", sampler.removeprefix(", ") or None, new_tokens=50, run_length=7)
    assert new == Sample(2, 11, 768, "moves", sampler.removeprefix(", ") or None, new_tokens=50, run_length=8)
    assert "longest memorized span: 7 of 50 new tokens" in str(old)


def test_a_text_that_looks_like_a_heading_is_read_as_text(tmp_path: Path) -> None:
    forged = "one\n--- epoch 9, step 9, 9 tokens seen\ntwo"
    file = tmp_path / "samples.txt"
    file.write_text(str(Sample(1, 2, 3, forged)) + str(Sample(2, 4, 6, "end")), encoding="utf-8")
    first, second = read_samples(file)
    assert first.text == forged.replace("\n---", "\n ---")
    assert second.text == "end"
    assert read_samples(tmp_path / "none.txt") == []


def test_markup_in_a_table_has_no_effect() -> None:
    text = "<b>bold</b> | **x** [a](b)\n`c` \\ _d_ \x07"
    (row,) = markdown_table([Sample(1, 2, 3, text, None, 5, 4)]).splitlines()[2:]
    cells = row.split(" | ")
    assert len(cells) == 5
    assert not re.search(r"[<>*`\\\[\]_]", row)
    assert html.unescape(cells[-1].removesuffix(" |")) == "<b>bold</b> | **x** [a](b)\u23ce`c` \\ _d_  "
    assert cells[3] == "4 of 5"


def test_picking_evenly_keeps_both_ends() -> None:
    assert pick_evenly(range(5), 5) == [0, 1, 2, 3, 4]
    assert pick_evenly(range(100), 4) == [0, 33, 66, 99]


def test_a_run_stores_samples_with_memorized_spans_and_a_grid(train: Callable[..., float], tmp_path: Path) -> None:
    overrides = [
        "callbacks=grid",
        "callbacks.loss_curve=false",
        "callbacks.grid.prompts=['One','Two']",
        "sampler.max_new_tokens=30",
    ]
    train(*overrides, "trainer.max_epochs=3", "optimizer.lr=1e-2")
    samples = read_samples(tmp_path / "run" / "samples.txt")
    assert len(samples) == 3 * (1 + 2 * 3 * 2)
    own = [sample for sample in samples if sample.sampler is None]
    assert [sample.epoch for sample in own] == [1, 2, 3]
    story = (Path(__file__).parents[2] / "gpt_pretrain" / "data" / "sample.txt").read_text(encoding="utf-8")
    training = story[: int(0.9 * len(story))]
    for sample in samples:
        assert sample.new_tokens == 30
        new = sample.text.removeprefix("Every effort moves you").removeprefix("One").removeprefix("Two")
        if new.isascii() and len(new) == 30:  # A token is a byte.
            longest = max(n for n in range(31) if any(new[i : i + n] in training for i in range(31 - n)))
            assert sample.run_length == longest
    file = tmp_path / "run" / "samples.txt"
    before = file.read_text(encoding="utf-8")
    train(*overrides, "trainer.max_epochs=4", "optimizer.lr=1e-2", f"resume='{tmp_path / 'run'}'")
    assert file.read_text(encoding="utf-8").startswith(before)
    assert len(read_samples(file)) == 4 * 13


def test_long_samples_are_shown_without_their_middle() -> None:
    text = "<" * 300_000
    with allocating_at_most(megabytes=20):
        shown = markdown_table([Sample(1, 2, 3, text, None, 5, 4)])
    assert len(shown) < 200_000 and "more characters" in shown
    assert len(markdown_code_block("x" * 300_000)) < 30_000
