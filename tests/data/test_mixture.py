"""Mixtures of several sources."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gpt_pretrain.config.schema import SourceSettings
from gpt_pretrain.data.datamodule import TextDataModule
from gpt_pretrain.data.dataset import Batch, TokenWindows, WindowDataset
from gpt_pretrain.data.files import LocalFiles
from gpt_pretrain.data.mixture import MixedWindows, allocate_validation_windows, allocate_windows
from gpt_pretrain.data.sampler import DistributedBatchSampler
from gpt_pretrain.data.token_stream import Shard
from gpt_pretrain.errors import UserError
from tests.helpers.data_settings import data_settings
from tests.helpers.made_shards import BYTE, stream, write_llmc, write_nanogpt, write_shards
from tests.helpers.training_runs import Train, checkpoint, same_weights


class Numbers(WindowDataset):
    """Windows of one token: the window's index plus an offset for the source."""

    remote = False

    def __init__(self, size: int, first: int) -> None:
        self.size, self.first = size, first

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, windows: np.ndarray) -> Batch:
        ids = torch.from_numpy(windows)[:, None] + self.first
        return ids, ids + 1


def mixed(sizes: list[int], weights: list[float]) -> MixedWindows:
    return MixedWindows([Numbers(size, 1000 * number) for number, size in enumerate(sizes)], weights)


sources = st.lists(st.tuples(st.integers(1, 40), st.floats(0.1, 5)), min_size=1, max_size=4)


@given(sources=sources, seed=st.integers(0, 9), epochs=st.integers(1, 5))
def test_each_source_gets_its_share_and_repeats_no_window_before_all_were_read(
    sources: list[tuple[int, float]], seed: int, epochs: int
) -> None:
    sizes, weights = [size for size, _ in sources], [weight for _, weight in sources]
    mix, total = mixed(sizes, weights), sum(sizes)
    read: list[list[int]] = [[] for _ in sizes]
    for epoch in range(epochs):
        numbers = mix.epoch_indices(np.arange(total), total, seed=seed, epoch=epoch)
        ids = mix[numbers][0][:, 0].tolist()
        of_source = Counter(token // 1000 for token in ids)
        for number, weight in enumerate(weights):
            assert abs(of_source[number] - weight / sum(weights) * total) <= 1
        for token in ids:
            read[token // 1000].append(token % 1000)
    for number, size in enumerate(sizes):
        times = Counter(read[number])
        assert set(times) <= set(range(size))
        assert len(read[number]) < size or set(times) == set(range(size))
        assert not times or max(times.values()) - (min(times.values()) if len(times) == size else 0) <= 1


@given(sources=sources, seed=st.integers(0, 9), epoch=st.integers(0, 3))
def test_the_order_can_be_computed_at_any_position(sources: list[tuple[int, float]], seed: int, epoch: int) -> None:
    mix = mixed([size for size, _ in sources], [weight for _, weight in sources])
    positions = np.arange(len(mix))
    whole = mix.epoch_indices(positions, len(mix), seed=seed, epoch=epoch)
    assert mix.epoch_indices(positions[::3], len(mix), seed=seed, epoch=epoch).tolist() == whole[::3].tolist()


def test_the_windows_of_a_mixture_are_moved_like_those_of_their_sources(tmp_path: Path) -> None:
    for name, first in (("a", 0), ("b", 1000)):
        np.arange(first, first + 50, dtype="<u2").tofile(tmp_path / name)
    sources = [
        TokenWindows(Shard(LocalFiles(tmp_path), name, 50, 2), context_length=8, stride=8, shifted=True) for name in ("a", "b")
    ]
    mixture, seen = MixedWindows(sources, [1.0, 1.0]), []
    for epoch in range(30):
        indices = mixture.epoch_indices(np.arange(len(mixture)), len(mixture), seed=3, epoch=epoch)
        mixture.prefetch(indices)
        inputs, targets = mixture[indices]
        assert torch.equal(targets, inputs + 1)
        starts = inputs[:, 0].tolist()
        assert len(set(starts)) == len(mixture) and sum(start >= 1000 for start in starts) == 6
        seen += [(start // 1000, start % 1000 % 8) for start in starts]
    assert {source for source, shift in seen if shift} == {0, 1}


def test_a_batch_keeps_the_order_of_its_indices() -> None:
    mix = mixed([5, 7, 3], [1, 1, 1])
    inputs, targets = mix[np.array([14, 0, 11, 5, 4, 12])]
    assert inputs[:, 0].tolist() == [2002, 0, 1006, 1000, 4, 2000]
    assert targets[:, 0].tolist() == [2003, 1, 1007, 1001, 5, 2001]


def test_sources_are_scattered_over_the_epoch() -> None:
    mix = mixed([3000, 3000], [1, 3])
    numbers = mix.epoch_indices(np.arange(6000), 6000, seed=1, epoch=0)
    ours = numbers < 3000
    assert abs(ours[:600].mean() - 0.25) < 0.06
    assert abs(np.corrcoef(ours[:-1], ours[1:])[0, 1]) < 0.05
    order = numbers[ours]
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.1


def test_each_epoch_seed_and_source_has_its_own_order() -> None:
    mix = mixed([50, 50], [1, 1])
    orders = {tuple(mix.epoch_indices(np.arange(100), 100, seed=seed, epoch=epoch)) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9
    numbers = mix.epoch_indices(np.arange(100), 100, seed=1, epoch=0)
    assert numbers[numbers < 50].tolist() != (numbers[numbers >= 50] - 50).tolist()


@given(st.lists(st.floats(0.01, 9), min_size=1, max_size=6), st.integers(0, 10**12))
def test_shares_add_up_to_the_total(weights: list[float], total: int) -> None:
    parts = allocate_windows(weights, total)
    assert sum(parts) == total
    assert all(abs(part - weight / sum(weights) * total) <= 1 + 1e-9 * total for part, weight in zip(parts, weights, strict=True))


def test_validation_windows_are_in_the_proportions_of_the_weights() -> None:
    assert allocate_validation_windows([100, 100], [1, 1], max_windows=None) == [100, 100]
    assert allocate_validation_windows([100, 100], [3, 1], max_windows=None) == [100, 33]
    assert allocate_validation_windows([100, 10], [1, 1], max_windows=None) == [10, 10]
    assert allocate_validation_windows([100, 100], [3, 1], max_windows=40) == [30, 10]
    assert allocate_validation_windows([100, 100], [1000, 1], max_windows=40) == [40, 1]


def corpora(folder: Path, story: str) -> list[SourceSettings]:
    """Write one source of each kind: the story as text, reversed as shards, and in capitals in nanoGPT's and llm.c's formats."""
    cut = int(0.9 * len(story))
    (folder / "story.txt").write_text(story)
    back, capitals = list(story.encode())[::-1], list(story.upper().encode())
    shards = write_shards(folder / "shards", train=[back[:cut]], val=[back[cut:]])
    nano = write_nanogpt(folder / "nano", train=capitals[:cut], val=capitals[cut:])
    llmc = write_llmc(
        folder / "llmc", train=[stream([capitals[:cut]], eos_first=True)], val=stream([capitals[cut:]], eos_first=True)
    )
    paths = {folder / "story.txt": 0.4, shards: 0.3, nano: 0.2, llmc: 0.1}
    return [SourceSettings(path=str(path), weight=weight) for path, weight in paths.items()]


def test_a_mixture_of_all_kinds_yields_windows_of_each(tmp_path: Path, story: str) -> None:
    chosen = data_settings(tmp_path, name="mixture", sources=corpora(tmp_path, story))
    data = TextDataModule(chosen, BYTE, context_length=32, seed=1)
    data.prepare_data()
    texts = [story, story[::-1], story.upper(), story.upper()]
    rows = [bytes(token for token in row if token < 256) for batch in data.train_dataloader() for row in batch[0].tolist()]
    counts = [sum(row in text.encode() for row in rows) for text in texts]
    expected = [0.4, 0.3, 0.3, 0.3]  # the last two sources have the same text
    assert [count / len(rows) for count in counts] == pytest.approx(expected, abs=0.03)
    assert len(rows) == len(data.train) // 4 * 4 == sum(map(len, data.train.sources)) // 4 * 4  # type: ignore[attr-defined]
    val = [bytes(token for token in row if token < 256) for batch in data.val_dataloader() for row in batch[0].tolist()]
    assert sum(row in story.encode() for row in val) / len(val) == pytest.approx(0.4, abs=0.03)


def overrides_of(sources: list[SourceSettings]) -> list[str]:
    listed = ", ".join(f"{{path: '{source.path}', weight: {source.weight}}}" for source in sources)
    return [
        "data=mixture",
        f"data.sources=[{listed}]",
        "data.batch_size=16",
        "data.stride=350",
        "data.shift_windows=true",
        "callbacks=minimal",
        "logger=none",
    ]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_resumed_run_on_a_mixture_equals_an_uninterrupted_one(
    train: Train, tmp_path: Path, story: str, num_workers: int
) -> None:
    overrides = [*overrides_of(corpora(tmp_path, story)), "data.respect_documents=true", f"data.num_workers={num_workers}"]
    train(*overrides, "trainer.max_tokens=15000", run_dir=tmp_path / "whole")
    train(*overrides, "trainer.max_tokens=9000", run_dir=tmp_path / "parts")
    train(*overrides, "trainer.max_tokens=15000", f"resume='{tmp_path / 'parts'}'", run_dir=tmp_path / "parts")
    a, b = checkpoint(tmp_path / "whole"), checkpoint(tmp_path / "parts")
    assert a["global_step"] == b["global_step"] == 30
    assert (a["train_losses"], a["val_losses"]) == (b["train_losses"], b["val_losses"])
    assert same_weights(a, b)


def test_a_resumed_run_cannot_change_the_weights(
    train: Train, tmp_path: Path, story: str, printed: Callable[[], list[str]]
) -> None:
    sources = corpora(tmp_path, story)
    train(*overrides_of(sources), "trainer.max_steps=1")
    assert any(f"40.2% of {sources[0].path}: each of 58 windows 1.5 times per epoch" in line for line in printed())
    sources[0].weight = 0.5
    with pytest.raises(UserError, match="the content of the text has changed"):
        train(*overrides_of(sources), "trainer.max_steps=2", f"resume='{tmp_path / 'run'}'")


def test_a_mixture_without_sources_or_with_several_tokenizers_is_rejected(train: Train, tmp_path: Path, story: str) -> None:
    with pytest.raises(UserError, match=r"data=mixture needs data\.sources="):
        train("data=mixture")
    sources = corpora(tmp_path, story)
    with pytest.raises(UserError, match="were made with different tokenizers"):
        train(*overrides_of(sources), base=["model=tiny", "model.context_length=32", "trainer.accelerator=cpu"])
    sources[1].weight = 0.0
    with pytest.raises(UserError, match="each weight must be above 0"):
        train(*overrides_of(sources))


def test_a_mixture_of_a_billion_windows_can_be_sampled() -> None:
    mix = mixed([10**9, 10**6], [1, 1])
    batches = iter(DistributedBatchSampler(len(mix), 8, seed=5, order=mix.epoch_indices))
    numbers = np.concatenate([next(batches) for _ in range(500)])
    assert abs((numbers < 10**9).mean() - 0.5) < 0.05
