"""From shards to the micro-batches of one rank, step by step, at any starting step.

What a step holds is decided by `order` alone. Worker processes each prepare whole steps ahead of
time and deliver them in order, so their number changes nothing but the speed.
"""

import signal
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch.utils.data import DataLoader, Dataset

from autoselect.config import ConfigError
from autoselect.data.faults import BadSample, Fault
from autoselect.data.order import global_batch, rank_share
from autoselect.data.quarantine import Quarantine
from autoselect.data.shards import Sample, ShardSet, blank_sample

Collate = Callable[[list[Sample]], Any]
_ENDLESS = 2**62


class _Steps(Dataset):
    """Maps a step's number to this rank's micro-batches and the faults met on the way."""

    def __init__(
        self,
        shards: ShardSet,
        collate: Collate,
        seed: int,
        micro_batch: int,
        accumulation: int,
        rank: int,
        world_size: int,
    ) -> None:
        self.shards = shards
        self.collate = collate
        self.seed = seed
        self.shape = (micro_batch, accumulation, rank, world_size)
        self.batch_size = micro_batch * accumulation * world_size

    def sample_ids(self, step: int) -> list[list[int]]:
        batch = global_batch(len(self.shards), self.seed, step, self.batch_size)
        return rank_share(batch, *self.shape).tolist()

    def __getitem__(self, step: int) -> tuple[list[Any], list[Fault]]:
        faults: list[Fault] = []
        micro_batches = [
            self.collate([self._sample(sample_id, faults) for sample_id in ids])
            for ids in self.sample_ids(step)
        ]
        return micro_batches, faults

    def _sample(self, sample_id: int, faults: list[Fault]) -> Sample:
        """Reads and decodes a sample; a bad one is noted and replaced by a blank."""
        try:
            sample = self.shards[sample_id]
            # Decoding here finds undecodable images before anything is collated.
            _ = sample.pictures
            return sample
        except BadSample as error:
            faults.append(error.fault)
            return blank_sample(sample_id, error.fault)


class Loader:
    """Yields, per optimiser step, the list of this rank's collated micro-batches, for ever.

    Global batch g of B = micro_batch * accumulation * world_size samples depends on the shards,
    the seed and B only; see `order` for how epochs join and how ranks share a batch.

    Args:
        shards: the data.
        collate: makes one micro-batch of `micro_batch` samples, whose `pictures` are decoded
            already. Unusable samples arrive as blanks (`Sample.quarantined`): text-only rows
            without an answer. With workers it runs in other processes, and its result travels
            between them.
        seed: of the order.
        micro_batch: samples per forward pass of one rank.
        accumulation: forward passes per optimiser step.
        rank: this process, 0..world_size-1.
        world_size: processes that share every global batch.
        start_step: first step to yield; costs nothing however large.
        stop_step: step before which to end; None for never.
        workers: processes that prepare steps ahead; 0 prepares them in this process.
        quarantine: counts unusable samples; one with the default budget when None.

    Raises:
        ConfigError: a size is out of range, or a key comes twice (checked at step 0 only, so that
            resuming stays quick).
        QuarantineBudgetError: too many samples are unusable, here or while iterating.
    """

    def __init__(
        self,
        shards: ShardSet,
        collate: Collate,
        seed: int,
        micro_batch: int,
        accumulation: int = 1,
        rank: int = 0,
        world_size: int = 1,
        start_step: int = 0,
        workers: int = 0,
        quarantine: Quarantine | None = None,
        stop_step: int | None = None,
    ) -> None:
        _check_sizes(micro_batch, accumulation, rank, world_size, start_step, workers)
        if start_step == 0:
            shards.check_keys()
        self.step = start_step
        self.stop_step = stop_step
        self.quarantine = quarantine or Quarantine(len(shards) + len(shards.faults))
        self.quarantine.add(shards.faults)
        self._workers = workers
        self._steps = _Steps(shards, collate, seed, micro_batch, accumulation, rank, world_size)

    @property
    def batch_size(self) -> int:
        """B, samples in a global batch."""
        return self._steps.batch_size

    @property
    def epoch(self) -> float:
        """Epochs completed before the next step, with its fraction."""
        return self.step * self.batch_size / len(self._steps.shards)

    def sample_ids(self, step: int) -> list[list[int]]:
        """Ids of this rank's samples in a step, [accumulation][micro_batch]."""
        return self._steps.sample_ids(step)

    def __iter__(self) -> Iterator[list[Any]]:
        """Goes on at `self.step`, which counts the steps handed out."""
        stop = _ENDLESS if self.stop_step is None else self.stop_step
        prepared = DataLoader(
            self._steps,
            batch_size=None,
            sampler=range(self.step, stop),
            num_workers=self._workers,
            collate_fn=_as_is,
            worker_init_fn=_shield_worker if self._workers else None,
        )
        for micro_batches, faults in prepared:
            self.quarantine.add(faults)
            self.step += 1
            yield micro_batches


def _as_is(step: Any) -> Any:
    """Keeps torch from turning tuples into lists and arrays into tensors."""
    return step


def _shield_worker(worker: int) -> None:
    """Leaves signals to the training process, which finishes its step and ends the workers.

    Slurm and terminals signal whole process groups; a worker that died of it would take the step
    and the checkpoint with it.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


def _check_sizes(
    micro_batch: int,
    accumulation: int,
    rank: int,
    world_size: int,
    start_step: int,
    workers: int,
) -> None:
    sizes: Sequence[tuple[str, int, int]] = (
        ("micro_batch", micro_batch, 1),
        ("accumulation", accumulation, 1),
        ("world_size", world_size, 1),
        ("start_step", start_step, 0),
        ("workers", workers, 0),
    )
    for name, value, least in sizes:
        if value < least:
            raise ConfigError(f"{name}={value} must be at least {least}")
    if not 0 <= rank < world_size:
        raise ConfigError(f"rank={rank} must be in 0..{world_size - 1} for world_size={world_size}")
