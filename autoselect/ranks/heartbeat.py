"""Detection of the rank that is dead or stalled, which a broken collective does not name.

Every rank has a thread that writes beats into a key-value store hosted by rank 0: a counter, and
how far the training loop is. Rank 0 reads them and decides:

* dead: the beats of a rank stopped;
* failed: a rank reported its own error before it left;
* stalled: a rank stays behind in the loop while the others wait for it.

All ranks read the verdict, log it and leave, well within 120 s. If the main thread of a rank is
stuck in native code, its beat thread ends the process. Work that each rank does by itself, such as
loading the model, may take much longer on one rank: the others wait for it at the store, without a
collective that could time out, and it counts as stalled only after `Times.apart`.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from types import TracebackType

import torch.distributed as dist

from autoselect.ranks.judge import (
    Beat,
    Judge,
    RankFailedError,
    RankLostError,
    Times,
    Verdict,
    Watch,
)
from autoselect.ranks.processes import RankInfo
from autoselect.ranks.rank_zero import open_store

logger = logging.getLogger(__name__)
LONGEST_PAUSE_S = 0.25


class Heartbeat:
    """Context manager around the whole run, on every rank; created after `init_distributed`.

    with Heartbeat(info) as heartbeat:
        with heartbeat.independently("loading the model"):
            ...                                           # no collective inside is needed
        heartbeat.progress("building the engine")         # at the same places on every rank
        ...
        for step in ...:
            batch = next(batches)
            heartbeat.progress(f"update {step}")      # before the step's collectives
    """

    on_lost: Callable[[str], None] | None = None
    """Called in the beat thread with the verdict, just before it ends a stuck process."""

    def __init__(self, info: RankInfo, times: Times | None = None) -> None:
        """Open the store and start the thread, unless there is one rank only."""
        self.info = info
        self.times = times or Times()
        self.verdict: Verdict | None = None
        self._own = Beat(host=socket.gethostname())
        self._closing = threading.Event()
        self._decided = threading.Event()
        self._thread: threading.Thread | None = None
        self._meetings = 0
        if info.world_size > 1:
            self._store = self._open_store()
            self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
            self._thread.start()

    def _open_store(self) -> dist.TCPStore:
        store = open_store(timeout_s=self.times.dead)
        self._write(store)
        dist.barrier()  # from here on every rank's key exists, and reading never waits
        return store

    def progress(self, doing: str) -> None:
        """Report how far the loop is; call it at the same places of the loop on every rank."""
        self._own.progress += 1
        self._own.doing = doing

    @contextmanager
    def independently(self, doing: str) -> Iterator[None]:
        """Enclose work that each rank does by itself; afterwards every rank waits for all others.

        Raises:
            RankLostError, RankFailedError: another rank died, failed, or took longer than
                `Times.apart`.
            DistNetworkError: rank 0 does not answer.
        """
        self.progress(doing)
        yield
        if self._thread is None:
            return
        self._own.waiting = True
        self.progress(f"waiting for the others after {doing}")
        self._meetings += 1
        self._meet(f"meeting {self._meetings}")
        self._own.waiting = False

    def _meet(self, meeting: str) -> None:
        came, pause = self._come(meeting, 1), 0.01
        while came < self.info.world_size:
            if self._decided.wait(pause):
                assert self.verdict is not None
                raise self.verdict.error()
            pause = min(2 * pause, LONGEST_PAUSE_S)
            came = self._come(meeting, 0)

    def _come(self, meeting: str, ranks: int) -> int:
        """Add to the number of ranks that reached a meeting, and return it."""
        with _answering():
            return self._store.add(meeting, ranks)

    def close(self) -> None:
        """End the watch after a successful run (a collective).

        Ranks that are still at work see that this one is done, not dead.
        """
        if self._thread is None:
            return
        self._closing.set()
        self._thread.join()
        self._thread = None
        self._own.done = True
        with _answering():
            self._write(self._store)
        dist.barrier()

    def __enter__(self) -> Heartbeat:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the watch; after an error, tell the others or find out which rank caused it.

        Raises:
            RankLostError: another rank is dead or stalled and could not be reached.
            RankFailedError: another rank had an error of its own.
        """
        if self._thread is None:
            return
        if error is None:
            self.close()
            return
        if self.verdict is not None and isinstance(error, RankLostError | RankFailedError):
            self._leave()
            return
        if not lost_contact(error):
            self._own.failed = f"{type(error).__name__}: {error}"
            if self._decided.wait(3 * self.times.beat):
                time.sleep(2 * self.times.beat)  # the store lives here; let the others read
            self._closing.set()
            return
        self._own.lost_contact = True
        self._decided.wait(2 * self.times.dead)
        unknown = Verdict("the other ranks cannot be reached, for an unknown reason")
        verdict = self.verdict or unknown
        self._leave()
        raise verdict.error() from error

    def _leave(self) -> None:
        """End the watch after a verdict; rank 0 hosts the store, so it lets the others read it."""
        if self.info.is_main:
            time.sleep(3 * self.times.beat)
        self._closing.set()

    def _write(self, store: dist.TCPStore) -> None:
        self._own.count += 1
        store.set(str(self.info.rank), json.dumps(asdict(self._own)))

    def _run(self) -> None:
        judge = Judge(self.times, self.info.world_size)
        watch, last_answer = Watch(self.times), 0.0
        while not self._closing.wait(self.times.beat):
            try:
                self._write(self._store)
                verdict = self._look(judge)
                last_answer = watch.until(time.monotonic())
            except RuntimeError:  # DistStoreError, DistNetworkError and plain RuntimeError
                silent = watch.until(time.monotonic()) - last_answer
                if self._closing.is_set() or silent < self.times.dead:
                    continue
                host = os.environ["MASTER_ADDR"]
                verdict = Verdict(f"rank 0 ({host}) is dead: no answer for {silent:.0f} s")
            if verdict is not None and not self._closing.is_set():
                self._announce(verdict)
                return

    def _look(self, judge: Judge) -> Verdict | None:
        if not self.info.is_main:
            if not self._store.check(["verdict"]):
                return None
            return Verdict(**json.loads(self._store.get("verdict")))
        values = self._store.multi_get([str(rank) for rank in range(self.info.world_size)])
        verdict = judge.look([Beat(**json.loads(value)) for value in values], time.monotonic())
        if verdict is not None:
            self._store.set("verdict", json.dumps(asdict(verdict)))
        return verdict

    def _announce(self, verdict: Verdict) -> None:
        """Log the verdict, wait for the main thread to end, and end the process if it does not."""
        self.verdict = verdict
        self._decided.set()
        if self._own.failed is None:  # a rank that failed logs its own error
            logger.error("%s; this run ends", verdict.text)
        if self._closing.wait(self.times.leave):
            return
        if self.on_lost is not None:
            self.on_lost(verdict.text)
        logging.shutdown()
        sys.stderr.flush()
        sys.stdout.flush()
        os._exit(verdict.exit_code)


@contextmanager
def _answering() -> Iterator[None]:
    """Turn errors of the store into DistNetworkError: rank 0 does not answer."""
    try:
        yield
    except RuntimeError as error:  # DistStoreError, DistNetworkError and plain RuntimeError
        raise dist.DistNetworkError(f"rank 0 does not answer: {error}") from error


def lost_contact(error: BaseException) -> bool:
    """Return True if an error of NCCL or gloo means that another rank did not answer."""
    if isinstance(error, dist.DistError):
        return True
    return isinstance(error, RuntimeError) and "gloo" in str(error).lower()
