"""The order is a permutation, reproducible at any position, and near-sequential."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoselect.data.order import (
    CHUNK_SAMPLES,
    WINDOW_CHUNKS,
    epoch_slice,
    global_batch,
    rank_share,
    stream_slice,
)

SIZES = [1, 2, 63, 64, 65, 100, 2047, 2048, 2049, 5000, 40_001]


def epoch_order(num_samples: int, seed: int, epoch: int) -> np.ndarray:
    return epoch_slice(num_samples, seed, epoch, 0, num_samples)


@pytest.mark.parametrize("num_samples", SIZES)
def test_every_sample_comes_exactly_once_per_epoch(num_samples: int) -> None:
    for epoch in range(3):
        order = epoch_order(num_samples, 7, epoch)
        assert np.array_equal(np.sort(order), np.arange(num_samples))


def test_epochs_and_seeds_differ() -> None:
    orders = [epoch_order(3000, seed, epoch).tolist() for seed in range(3) for epoch in range(3)]
    for first in range(len(orders)):
        for second in range(first):
            same = np.mean(np.array(orders[first]) == np.array(orders[second]))
            assert same < 0.05


PINNED = [1, 9, 0, 8, 4, 6, 7, 10, 2, 3, 5, 11]


def test_order_is_pinned_across_versions() -> None:
    assert epoch_order(12, 0, 0).tolist() == PINNED
    assert epoch_order(12, 0, 1).tolist() != PINNED


@settings(max_examples=100)
@given(data=st.data(), num_samples=st.integers(1, 9000), seed=st.integers(0, 2**63))
def test_a_slice_equals_the_slice_of_the_whole(
    data: st.DataObject, num_samples: int, seed: int
) -> None:
    start = data.draw(st.integers(0, num_samples))
    stop = data.draw(st.integers(start, num_samples))
    whole = epoch_order(num_samples, seed, 5)
    assert np.array_equal(epoch_slice(num_samples, seed, 5, start, stop), whole[start:stop])


def test_the_stream_joins_epochs_without_a_gap() -> None:
    num_samples, batch = 150, 64
    stream = np.concatenate([global_batch(num_samples, 3, step, batch) for step in range(8)])
    epochs = np.concatenate([epoch_order(num_samples, 3, epoch) for epoch in range(4)])
    assert np.array_equal(stream, epochs[: len(stream)])


def test_a_batch_may_span_several_epochs() -> None:
    assert np.array_equal(
        stream_slice(10, 1, 5, 38),
        np.concatenate([epoch_order(10, 1, epoch) for epoch in range(4)])[5:38],
    )


@pytest.mark.parametrize("split", [(1, 24, 1), (2, 6, 2), (6, 1, 4), (3, 4, 2), (24, 1, 1)])
def test_any_split_covers_the_same_global_batch(split: tuple[int, int, int]) -> None:
    micro_batch, accumulation, world_size = split
    batch = global_batch(1000, 3, 17, 24)
    shares = [
        rank_share(batch, micro_batch, accumulation, rank, world_size) for rank in range(world_size)
    ]
    assert np.array_equal(np.stack(shares, axis=1).ravel(), batch)


def test_a_window_reads_few_stretches_of_the_shards() -> None:
    num_samples = 200_000
    window = CHUNK_SAMPLES * WINDOW_CHUNKS
    ids = epoch_slice(num_samples, 11, 2, 5 * window, 6 * window)
    chunks = np.unique(ids // CHUNK_SAMPLES)
    assert len(chunks) == WINDOW_CHUNKS
    assert len(ids) == window


def test_neighbours_in_the_order_come_from_far_apart() -> None:
    order = epoch_order(100_000, 0, 0)
    jumps = np.abs(np.diff(order))
    assert np.mean(jumps <= CHUNK_SAMPLES) < 0.1
    assert abs(np.corrcoef(order, np.arange(len(order)))[0, 1]) < 0.05
