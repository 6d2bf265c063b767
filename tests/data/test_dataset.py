import tracemalloc
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gpt_pretrain.data.datamodule import TextDataModule
from gpt_pretrain.data.dataset import TokenWindows
from gpt_pretrain.data.files import LocalFiles
from gpt_pretrain.data.sampler import DistributedBatchSampler, shuffled_indices
from gpt_pretrain.data.token_stream import Shard
from gpt_pretrain.errors import UserError
from gpt_pretrain.tokenizers.build import build_tokenizer
from tests.helpers.data_settings import data_settings


def tokens_of(path: Path, count: int) -> Shard:
    np.arange(count, dtype="<u2").tofile(path)
    return Shard(LocalFiles(path.parent), path.name, count, 2)


def data_of(folder: Path, *, context_length: int = 32, seed: int = 1, **changes: object) -> TextDataModule:
    data = TextDataModule(data_settings(folder, **changes), build_tokenizer("byte"), context_length=context_length, seed=seed)
    data.prepare_data()
    return data


@given(count=st.integers(0, 60), context_length=st.integers(1, 12), stride=st.integers(1, 15))
def test_windows_match_their_definition(
    tmp_path_factory: pytest.TempPathFactory, count: int, context_length: int, stride: int
) -> None:
    tokens = list(range(count))
    windows = TokenWindows(tokens_of(tmp_path_factory.getbasetemp() / "w", count), context_length=context_length, stride=stride)
    starts = range(0, len(tokens) - context_length, stride)
    assert len(windows) == len(starts)
    if len(starts):
        inputs, targets = windows[np.arange(len(windows))]
        assert inputs.tolist() == [tokens[s : s + context_length] for s in starts]
        assert targets.tolist() == [tokens[s + 1 : s + context_length + 1] for s in starts]
        assert inputs.dtype == targets.dtype == torch.int64


@given(count=st.integers(13, 60), context_length=st.integers(1, 12), stride=st.integers(1, 15), epoch=st.integers(0, 5))
def test_shifted_windows_begin_at_another_token_in_each_epoch(
    tmp_path_factory: pytest.TempPathFactory, count: int, context_length: int, stride: int, epoch: int
) -> None:
    tokens = tokens_of(tmp_path_factory.getbasetemp() / "w", count)
    plain = TokenWindows(tokens, context_length=context_length, stride=stride)
    shifted = TokenWindows(tokens, context_length=context_length, stride=stride, shifted=True)
    positions = np.arange(len(plain))
    order = plain.epoch_indices(positions, len(plain), seed=1, epoch=epoch)
    indices = shifted.epoch_indices(positions, len(shifted), seed=1, epoch=epoch)
    (shift,) = set((indices - order) // len(plain))
    assert len(shifted) == len(plain) and 0 <= shift < stride
    assert epoch or not shift, "the first epoch has the windows of a run without shifts"
    inputs, targets = shifted[indices]
    starts = np.minimum(order * stride + shift, count - context_length - 1)
    assert inputs.tolist() == [list(range(start, start + context_length)) for start in starts]
    assert targets.tolist() == (inputs + 1).tolist()


def test_all_shifts_appear(tmp_path: Path) -> None:
    windows = TokenWindows(tokens_of(tmp_path / "w", 50), context_length=8, stride=8, shifted=True)
    first = [windows[windows.epoch_indices(np.arange(1), 6, seed=3, epoch=epoch)][0][0, 0].item() % 8 for epoch in range(60)]
    assert set(first) == set(range(8))


@given(n=st.integers(0, 50), batch=st.integers(1, 9), seed=st.integers(0, 5), epoch=st.integers(0, 3))
def test_an_epoch_reads_no_window_twice_and_drops_the_last_short_batch(n: int, batch: int, seed: int, epoch: int) -> None:
    sampler = DistributedBatchSampler(n, batch, seed=seed)
    sampler.set_epoch(epoch)
    batches = [windows.tolist() for windows in sampler]
    assert len(batches) == len(sampler) == n // batch
    assert all(len(windows) == batch for windows in batches)
    read = sum(batches, [])
    assert len(set(read)) == len(read)
    assert set(read) <= set(range(n))


@given(n=st.integers(1, 50), batch=st.integers(1, 9), epoch=st.integers(0, 3), data=st.data())
def test_the_order_depends_on_seed_and_epoch_alone_from_any_start(n: int, batch: int, epoch: int, data: st.DataObject) -> None:
    whole = DistributedBatchSampler(n, batch, seed=7)
    whole.set_epoch(epoch)
    batches = [windows.tolist() for windows in whole]
    start = data.draw(st.integers(0, len(batches)))
    later = DistributedBatchSampler(n, batch, seed=7)
    later.epoch, later.start = epoch, start
    assert [windows.tolist() for windows in later] == batches[start:]
    assert len(later) == len(whole)
    assert [windows.tolist() for windows in later] == batches, "the next iteration starts at the first batch"


@given(n=st.integers(1, 3000), seed=st.integers(0, 2**32 - 1), epoch=st.integers(0, 2**31))
def test_the_order_is_a_permutation_that_can_be_computed_at_any_position(n: int, seed: int, epoch: int) -> None:
    whole = shuffled_indices(np.arange(n), n, seed=seed, epoch=epoch)
    assert sorted(whole.tolist()) == list(range(n))
    some = np.arange(n)[:: max(1, n // 7)]
    assert shuffled_indices(some, n, seed=seed, epoch=epoch).tolist() == whole[some].tolist()


@pytest.mark.parametrize("n", [9, 16, 17])
def test_each_window_appears_at_each_position_equally_often(n: int) -> None:
    counts = np.zeros((n, n))
    for epoch in range(4000):
        counts[np.arange(n), shuffled_indices(np.arange(n), n, seed=1, epoch=epoch)] += 1
    chi_squared = ((counts - 4000 / n) ** 2 / (4000 / n)).sum()
    freedom = (n - 1) ** 2
    assert abs(chi_squared - freedom) < 5 * (2 * freedom) ** 0.5


def test_neighboring_windows_are_scattered() -> None:
    order = shuffled_indices(np.arange(100_000), 100_000, seed=3, epoch=0)
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.02
    assert abs(np.corrcoef(order, np.arange(100_000))[0, 1]) < 0.02


def test_the_order_of_a_billion_windows_needs_little_memory() -> None:
    tracemalloc.start()
    try:
        batches = iter(DistributedBatchSampler(10**9, 8, seed=5))
        first = np.concatenate([next(batches) for _ in range(1000)])
        later = DistributedBatchSampler(10**9, 8, seed=5)
        later.start = 10**8
        next(iter(later))
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()
    assert len(set(first.tolist())) == 8000
    assert first.max() > 9.9e8


def test_each_epoch_and_seed_has_its_own_order() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        batches = DistributedBatchSampler(50, 5, seed=seed)
        batches.set_epoch(epoch)
        return np.concatenate(list(batches)).tolist()

    assert len({tuple(order(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9


def test_validation_keeps_the_order_and_the_last_short_batch() -> None:
    assert [windows.tolist() for windows in DistributedBatchSampler(7, 3)] == [[0, 1, 2], [3, 4, 5], [6]]
    assert len(DistributedBatchSampler(7, 3)) == 3


@pytest.mark.parametrize("num_workers", [0, 2])
def test_loaders_yield_the_windows_of_both_sets(tmp_path: Path, story: str, num_workers: int) -> None:
    data = data_of(tmp_path, num_workers=num_workers)
    text = story.encode()[: data.split.train.count]
    starts = list(range(0, len(text) - 32, 32))
    batches = list(data.train_dataloader())
    assert len(batches) == len(starts) // 4
    read = [bytes(row) for inputs, _ in batches for row in inputs.tolist()]
    assert set(read) <= {text[s : s + 32] for s in starts}
    assert read != [text[s : s + 32] for s in starts[: len(read)]], "training windows are shuffled"
    val_text = story.encode()[data.split.train.count :]
    val = [bytes(row) for inputs, _ in data.val_dataloader() for row in inputs.tolist()]
    assert val == [val_text[s : s + 32] for s in range(0, len(val_text) - 32, 32)]


@pytest.mark.parametrize("n_batches", [1, 3, 1000])
def test_the_losses_of_a_few_batches_are_of_windows_from_the_whole_validation_set(tmp_path: Path, n_batches: int) -> None:
    data = data_of(tmp_path)
    windows = [row for inputs, _ in data.val_dataloader() for row in inputs.tolist()]
    _, batches = data.eval_batches(n_batches)
    positions = [windows.index(row) for inputs, _ in batches for row in inputs.tolist()]
    assert len(positions) == min(len(windows), 4 * n_batches) == len(set(positions))
    gaps = np.diff([*positions, len(windows)])
    assert positions[0] == 0 and max(gaps) - min(gaps) <= 1
    assert all(len(inputs) == 4 for inputs, _ in batches[:-1])


def test_loading_leaves_the_global_random_state_unchanged(tmp_path: Path) -> None:
    data = data_of(tmp_path)
    state = torch.random.get_rng_state()
    list(data.train_dataloader()), list(data.val_dataloader()), data.eval_batches(3)
    assert torch.equal(state, torch.random.get_rng_state())


def test_a_window_longer_than_a_set_is_rejected_with_the_largest_that_works(tmp_path: Path) -> None:
    data = data_of(tmp_path)
    val_count = data.split.val.count
    with pytest.raises(UserError) as caught:
        data_of(tmp_path, context_length=val_count)
    assert len(caught.value.problems) == 1
    message = (
        f"model.context_length={val_count}: the validation set has {val_count:,} tokens, but a window needs {val_count + 1}."
    )
    assert message in caught.value.problems[0]
    assert f"works here is {val_count - 1}" in caught.value.problems[0]
    data_of(tmp_path, context_length=val_count - 1, batch_size=1)
    with pytest.raises(UserError) as caught:
        data_of(tmp_path, context_length=10**6)
    assert ["training" in problem for problem in caught.value.problems] == [True, False]


def test_a_batch_larger_than_the_training_set_is_rejected(tmp_path: Path) -> None:
    windows = len(data_of(tmp_path).train)
    with pytest.raises(UserError, match=rf"data\.batch_size={windows + 1}: the training set has only {windows} windows"):
        data_of(tmp_path, batch_size=windows + 1)
    data_of(tmp_path, batch_size=windows)


def test_data_is_ready_after_setup_alone(tmp_path: Path) -> None:
    data = TextDataModule(data_settings(tmp_path), build_tokenizer("byte"), context_length=32, seed=1)
    data.setup()
    expected = data_of(tmp_path)
    assert torch.equal(next(iter(data.train_dataloader()))[0], next(iter(expected.train_dataloader()))[0])


@pytest.mark.parametrize(("n", "size", "world"), [(13, 4, 2), (12, 4, 3), (5, 4, 4), (1, 1, 2), (40, 3, 5)])
@pytest.mark.parametrize("seed", [None, 7])
def test_ranks_share_the_batches_of_one_rank(n: int, size: int, world: int, seed: int | None) -> None:
    whole = [batch.tolist() for batch in DistributedBatchSampler(n, size, seed=seed)]
    shares = [
        [b.tolist() for b in DistributedBatchSampler(n, size, seed=seed, rank=rank, world_size=world)] for rank in range(world)
    ]
    assert len({len(share) for share in shares}) == 1, "all ranks make the same number of steps"
    assert [batch for batch in chain.from_iterable(zip(*shares, strict=True)) if batch] == whole
    later = DistributedBatchSampler(n, size, seed=seed, rank=world - 1, world_size=world)
    later.start = 1
    assert [b.tolist() for b in later] == shares[-1][1:]
    assert next(iter(DistributedBatchSampler(10**12, 8, seed=1, rank=3, world_size=512))).max() < 10**12
