"""Which rank is dead or stalled? A collective that hangs or breaks does not say.

Every rank has a thread that writes a beat into a small key-value store (its own `TCPStore`, hosted
by rank 0): a counter, and how far the training loop is. Rank 0 reads them and gives the verdict:

* dead: the beats of a rank stopped;
* failed: a rank reported its own error before leaving;
* stalled: a rank stays behind in the loop while the others wait for it.

All ranks read the verdict, say it and leave, well within 120 s. A rank whose main thread is stuck
in native code is ended by its beat thread.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from types import TracebackType

import torch.distributed as dist

from autoselect.rank_zero import open_store
from autoselect.runtime import RankInfo

logger = logging.getLogger(__name__)

EXIT_RANK_LOST = 70
"""Exit code of a rank that had to leave because another one is dead or stalled: worth a restart."""

EXIT_RANK_FAILED = 1
"""Exit code of a rank that had to leave because of another one's error: a restart repeats it."""


class RankLostError(RuntimeError):
    """Another rank is dead or stalled; the message names it."""


class RankFailedError(RuntimeError):
    """Another rank ended with an error of its own; the message names both."""


@dataclass(frozen=True)
class Verdict:
    """Who is to blame, as a sentence, and whether by an error or by being lost."""

    text: str
    failed: bool = False

    @property
    def exit_code(self) -> int:
        return EXIT_RANK_FAILED if self.failed else EXIT_RANK_LOST

    def error(self) -> RuntimeError:
        return RankFailedError(self.text) if self.failed else RankLostError(self.text)


@dataclass(frozen=True)
class Times:
    """Patience, in seconds; the sum of the longest chain stays under 120.

    Attributes:
        beat: between two beats.
        dead: without a beat after which a rank is dead.
        stalled: a rank may stay behind the others, shorter than the collective timeout.
        leave: for the main thread to end by itself after the verdict.
    """

    beat: float = 1.0
    dead: float = 15.0
    stalled: float = 60.0
    leave: float = 15.0


@dataclass
class Beat:
    """What one rank says about itself."""

    host: str
    count: int = 0
    progress: int = 0
    doing: str = "starting"
    failed: str | None = None
    lost_contact: bool = False
    done: bool = False


class Heartbeat:
    """Context manager around the training loop of every rank; created after `init_distributed`.

    with Heartbeat(info) as heartbeat:
        for step in ...:
            batch = next(batches)
            heartbeat.progress(f"update {step}")      # before the step's collectives
    """

    def __init__(
        self,
        info: RankInfo,
        times: Times | None = None,
        on_lost: Callable[[str], None] | None = None,
    ) -> None:
        """Opens the store and starts the thread; with one rank there is nothing to watch.

        Args:
            info: this rank.
            times: patience.
            on_lost: called in the beat thread with the verdict, just before a stuck process ends.
        """
        self.info = info
        self.times = times or Times()
        self.on_lost = on_lost
        self.verdict: Verdict | None = None
        self._own = Beat(host=socket.gethostname())
        self._closing = threading.Event()
        self._decided = threading.Event()
        self._thread: threading.Thread | None = None
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
        """Tells how far the loop is; call it at the same places of the loop on every rank."""
        self._own.progress += 1
        self._own.doing = doing

    def close(self) -> None:
        """Ends the watch after a run that went well (a collective)."""
        if self._thread is None:
            return
        self._own.done = True
        self._closing.set()
        dist.barrier()
        self._thread.join()
        self._thread = None

    def __enter__(self) -> Heartbeat:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Closes, or on an error tells the others and finds out whose fault it was.

        Raises:
            RankLostError: other ranks could not be reached, and one of them is dead or stalled.
            RankFailedError: one of them had an error of its own.
        """
        if self._thread is None:
            return
        if error is None:
            self.close()
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
        if self.info.is_main:
            time.sleep(3 * self.times.beat)
        self._closing.set()
        raise verdict.error() from error

    def _write(self, store: dist.TCPStore) -> None:
        self._own.count += 1
        store.set(str(self.info.rank), json.dumps(asdict(self._own)))

    def _run(self) -> None:
        judge = _Judge(self.times, self.info.world_size)
        last_answer = time.monotonic()
        while not self._closing.wait(self.times.beat):
            try:
                self._write(self._store)
                verdict = self._look(judge)
                last_answer = time.monotonic()
            except RuntimeError:  # DistStoreError, DistNetworkError and plain RuntimeError
                silent = time.monotonic() - last_answer
                if self._closing.is_set() or silent < self.times.dead:
                    continue
                host = os.environ["MASTER_ADDR"]
                verdict = Verdict(f"rank 0 ({host}) is dead: no answer for {silent:.0f} s")
            if verdict is not None and not self._closing.is_set():
                self._announce(verdict)
                return

    def _look(self, judge: _Judge) -> Verdict | None:
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
        """Says the verdict, lets the main thread end, and ends the process if it cannot."""
        self.verdict = verdict
        self._decided.set()
        logger.error("%s; this run ends", verdict.text)
        if self._closing.wait(self.times.leave):
            return
        if self.on_lost is not None:
            self.on_lost(verdict.text)
        logging.shutdown()
        sys.stderr.flush()
        sys.stdout.flush()
        os._exit(verdict.exit_code)


def lost_contact(error: BaseException) -> bool:
    """Whether an error says that another rank did not answer, by NCCL's or gloo's words."""
    if isinstance(error, dist.DistError):
        return True
    return isinstance(error, RuntimeError) and "gloo" in str(error).lower()


class _Judge:
    """Rank 0's view: when did each rank last beat, and since when does it stay behind?"""

    def __init__(self, times: Times, world_size: int) -> None:
        self.times = times
        self.counts = [-1] * world_size
        self.beaten_at = [0.0] * world_size
        self.behind_since: list[tuple[int, float] | None] = [None] * world_size
        self.contact_lost_at: float | None = None

    def look(self, beats: list[Beat], now: float) -> Verdict | None:
        """The verdict on the latest beats of all ranks, or None while all is well."""
        front = max(beat.progress for beat in beats)
        names = [f"rank {rank} ({beat.host})" for rank, beat in enumerate(beats)]
        for rank, beat in enumerate(beats):
            if beat.failed is not None:
                return Verdict(f"{names[rank]} failed: {beat.failed}", failed=True)
        for rank, beat in enumerate(beats):
            if beat.count != self.counts[rank]:
                self.counts[rank], self.beaten_at[rank] = beat.count, now
            silent = now - self.beaten_at[rank]
            if silent > self.times.dead and not beat.done:
                return Verdict(f"{names[rank]} is dead: no sign of life for {silent:.0f} s")
        for rank, beat in enumerate(beats):
            behind = self._behind(rank, beat, front, now)
            if behind > self.times.stalled:
                return Verdict(
                    f"{names[rank]} is stalled: {behind:.0f} s behind the others, "
                    f"after '{beat.doing}'"
                )
        return self._all_alive_but_apart(beats, names, now)

    def _behind(self, rank: int, beat: Beat, front: int, now: float) -> float:
        """Seconds for which the rank has stood at its present place while another is ahead."""
        if beat.progress >= front or beat.done:
            self.behind_since[rank] = None
            return 0.0
        since = self.behind_since[rank]
        if since is None or since[0] != beat.progress:
            since = (beat.progress, now)
            self.behind_since[rank] = since
        return now - since[1]

    def _all_alive_but_apart(
        self, beats: list[Beat], names: list[str], now: float
    ) -> Verdict | None:
        """A collective timed out although every process beats: who did not take part?"""
        if not any(beat.lost_contact for beat in beats):
            return None
        if self.contact_lost_at is None:
            self.contact_lost_at = now
        if now - self.contact_lost_at <= self.times.dead + 2 * self.times.beat:
            return None
        absent = [
            f"{name} after '{beat.doing}'"
            for name, beat in zip(names, beats, strict=True)
            if not beat.lost_contact
        ]
        if absent:
            blamed = ", ".join(absent)
            return Verdict(f"{blamed} is stalled: it did not join a collective of the others")
        return Verdict("all ranks are alive but cannot reach each other; check the network")
