"""Spread work over processes, with a progress bar, results in order, and bounded memory."""

import multiprocessing
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from tqdm import tqdm

from autoselect.config import ConfigError

Job = TypeVar("Job")
Result = TypeVar("Result")

_QUEUED_PER_WORKER = 2


def map_processes(
    work: Callable[[Job], Result],
    jobs: Sequence[Job],
    workers: int,
    description: str,
) -> Iterator[Result]:
    """Yield `work(job)` for the job of every shard, in order; few results wait in memory.

    Args:
        work: function at module level, so that it can be sent to another process.
        workers: number of processes; 1 works in this one.
        description: text of the progress bar, which only a terminal shows.

    Raises:
        ConfigError: a process was killed.
    """
    with tqdm(total=len(jobs), desc=description, unit="shard", disable=None) as progress:
        if workers <= 1:
            for job in jobs:
                yield work(job)
                progress.update()
            return
        # A fresh interpreter per worker: forking one that has threads can deadlock.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, mp_context=context) as pool:
            waiting: deque[Future[Result]] = deque()
            try:
                for job in jobs:
                    waiting.append(pool.submit(work, job))
                    if len(waiting) >= workers * _QUEUED_PER_WORKER:
                        yield waiting.popleft().result()
                        progress.update()
                while waiting:
                    yield waiting.popleft().result()
                    progress.update()
            except BrokenProcessPool as error:
                raise ConfigError(
                    f"workers={workers}: one of these processes was killed, probably because the "
                    "memory is full; run it again with fewer --workers"
                ) from error
