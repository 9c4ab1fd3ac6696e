"""The sample order: a pure function of (seed, epoch) that can be computed at any position.

The samples of all shards are numbered 0..N-1. An epoch permutes them in two levels, so that any
piece of it can be computed alone and reads stay nearly sequential:

1. consecutive samples form chunks of `CHUNK_SAMPLES`; the chunks are shuffled;
2. `WINDOW_CHUNKS` chunks, consecutive in that order, form a window; its samples are shuffled.

At any moment reads therefore touch at most `WINDOW_CHUNKS` short stretches of the shards (two
windows while one ends and the next begins). The training stream joins epoch 0, epoch 1, ... end to
end. Global batch g is positions [g * B, (g + 1) * B) of it: a batch may span two epochs, nothing is
dropped or padded, and every sample comes exactly once per epoch.

The shuffles sort by SplitMix64 hashes (Steele, Lea and Flood, OOPSLA 2014), so the order is the
same with every version of every library, on every machine.
"""

import functools

import numpy as np
from numpy.typing import NDArray

CHUNK_SAMPLES = 64
WINDOW_CHUNKS = 32

_GOLDEN = 0x9E3779B97F4A7C15
_MASK = 2**64 - 1


def _mix(value: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Apply the finaliser of SplitMix64 elementwise; arithmetic is modulo 2^64."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def _permutation(length: int, *key: int) -> NDArray[np.int64]:
    """Return a permutation of 0..length-1 that depends only on `key`."""
    state = np.zeros(1, dtype=np.uint64)
    for part in key:
        state = _mix(state + np.uint64((part * _GOLDEN + _GOLDEN) & _MASK))
    counters = np.arange(1, length + 1, dtype=np.uint64) * np.uint64(_GOLDEN)
    return np.argsort(_mix(state + counters), kind="stable")


@functools.lru_cache(maxsize=4)
def _chunk_order(
    num_samples: int, seed: int, epoch: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the epoch's order of chunks, and the first position of every window plus the end."""
    order = _permutation(-(-num_samples // CHUNK_SAMPLES), seed, epoch)
    sizes = np.minimum(num_samples - order * CHUNK_SAMPLES, CHUNK_SAMPLES)
    ends = np.cumsum(sizes)[WINDOW_CHUNKS - 1 :: WINDOW_CHUNKS]
    if len(ends) == 0 or ends[-1] != num_samples:
        ends = np.append(ends, num_samples)
    return order, np.concatenate([[0], ends])


@functools.lru_cache(maxsize=4)
def _window(num_samples: int, seed: int, epoch: int, window: int) -> NDArray[np.int64]:
    """Return the shuffled sample ids of one window."""
    order, _ = _chunk_order(num_samples, seed, epoch)
    chunks = order[window * WINDOW_CHUNKS : (window + 1) * WINDOW_CHUNKS]
    ids = (chunks[:, None] * CHUNK_SAMPLES + np.arange(CHUNK_SAMPLES)).ravel()
    ids = ids[ids < num_samples]
    return ids[_permutation(len(ids), seed, epoch, window)]


def epoch_slice(
    num_samples: int, seed: int, epoch: int, start: int, stop: int
) -> NDArray[np.int64]:
    """Return the sample ids at positions [start, stop) of an epoch's order, [stop - start].

    `num_samples` is N, epochs count from 0, and 0 <= start <= stop <= N.
    """
    assert 0 <= start <= stop <= num_samples, (start, stop, num_samples)
    if start == stop:
        return np.empty(0, dtype=np.int64)
    _, starts = _chunk_order(num_samples, seed, epoch)
    first = int(np.searchsorted(starts, start, side="right")) - 1
    last = int(np.searchsorted(starts, stop, side="left"))
    parts = [_window(num_samples, seed, epoch, window) for window in range(first, last)]
    return np.concatenate(parts)[start - starts[first] : stop - starts[first]]


def stream_slice(num_samples: int, seed: int, start: int, stop: int) -> NDArray[np.int64]:
    """Return the sample ids at positions [start, stop) of the stream of epochs, [stop - start]."""
    assert num_samples > 0
    parts = []
    while start < stop:
        epoch, inside = divmod(start, num_samples)
        count = min(stop - start, num_samples - inside)
        parts.append(epoch_slice(num_samples, seed, epoch, inside, inside + count))
        start += count
    return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)


def global_batch(num_samples: int, seed: int, step: int, batch_size: int) -> NDArray[np.int64]:
    """Return the sample ids of global batch `step`, [batch_size], the same at any world size."""
    return stream_slice(num_samples, seed, step * batch_size, (step + 1) * batch_size)


def rank_share(
    batch: NDArray[np.int64], micro_batch: int, accumulation: int, rank: int, world_size: int
) -> NDArray[np.int64]:
    """Return the sample ids that one rank works on, [accumulation, micro_batch].

    `batch`, [accumulation * world_size * micro_batch], is laid out as [accumulation, world_size,
    micro_batch]: in each accumulation round the ranks together hold one contiguous piece of the
    batch, and rank r, 0..world_size-1, the r-th part of it.
    """
    return batch.reshape(accumulation, world_size, micro_batch)[:, rank]
