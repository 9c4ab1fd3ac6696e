"""Decision which rank is dead, failed or stalled, from the beats of all ranks.

It takes and returns plain data; `autoselect.ranks.heartbeat` carries it between the processes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

LONGEST_LOOK = 5
"""Beats between two looks that count as watched."""

EXIT_RANK_LOST = 70
"""Exit code of a rank that left because another one is dead or stalled; a restart may help."""

EXIT_RANK_FAILED = 1
"""Exit code of a rank that left because another one had an error; a restart would repeat it."""


class RankLostError(RuntimeError):
    """Another rank is dead or stalled; the message names it."""


class RankFailedError(RuntimeError):
    """Another rank ended with an error of its own; the message names both."""


@dataclass(frozen=True)
class Verdict:
    """Which rank ends the run, as a sentence; `failed` if by an error of its own."""

    text: str
    failed: bool = False

    @property
    def exit_code(self) -> int:
        return EXIT_RANK_FAILED if self.failed else EXIT_RANK_LOST

    def error(self) -> RuntimeError:
        return RankFailedError(self.text) if self.failed else RankLostError(self.text)


@dataclass(frozen=True)
class Times:
    """Waiting times in seconds; all but `apart` together stay under 120.

    Attributes:
        beat: time between two beats.
        dead: time without a beat after which a rank is dead.
        stalled: longest time that a rank may stay behind; below the timeout of collectives.
        apart: the same while the others wait outside any collective.
        leave: time that the main thread has to end by itself after a verdict.
    """

    beat: float = 1.0
    dead: float = 15.0
    stalled: float = 80.0
    apart: float = 3600.0
    leave: float = 15.0


@dataclass
class Beat:
    """What one rank reports about itself.

    Attributes:
        host: name of its machine.
        count: number of its beats so far.
        progress: number of places of the loop that it has passed.
        doing: name of the last place.
        waiting: True while it waits for the others outside any collective.
        failed: its own error, as text.
        lost_contact: True if one of its collectives broke.
        done: True after it ended without an error.
    """

    host: str
    count: int = 0
    progress: int = 0
    doing: str = "starting"
    waiting: bool = False
    failed: str | None = None
    lost_contact: bool = False
    done: bool = False


class Watch:
    """Counts the seconds during which somebody watched.

    A pause of all ranks, as of a suspended job or a frozen machine, therefore makes none late.
    """

    def __init__(self, times: Times) -> None:
        self.longest = LONGEST_LOOK * times.beat
        self.watched, self.last_look = 0.0, math.inf

    def until(self, now: float) -> float:
        """Return the seconds watched up to this look; a longer time between two was a pause.

        Args:
            now: seconds of a clock that never goes back.
        """
        self.watched += min(max(0.0, now - self.last_look), self.longest)
        self.last_look = now
        return self.watched


class Judge:
    """Remembers when each rank last beat, and since when it stays behind; used by rank 0."""

    def __init__(self, times: Times, world_size: int) -> None:
        self.times = times
        self.counts = [-1] * world_size
        self.beaten_at = [0.0] * world_size
        self.behind_since: list[tuple[int, bool, float] | None] = [None] * world_size
        self.contact_lost_at: float | None = None
        self.watch = Watch(times)

    def look(self, beats: list[Beat], now: float) -> Verdict | None:
        """Return the verdict on the latest beats of all ranks, or None while all is well.

        Args:
            beats: by rank.
            now: seconds of a clock that never goes back.
        """
        now = self.watch.until(now)
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
            ahead = [other for other in beats if other.progress > beat.progress]
            patient = all(other.waiting for other in ahead)
            behind = self._behind(rank, beat, bool(ahead), patient, now)
            if behind > (self.times.apart if patient else self.times.stalled):
                return Verdict(
                    f"{names[rank]} is stalled: {behind:.0f} s behind the others, "
                    f"after '{beat.doing}'"
                )
        return self._all_alive_but_apart(beats, names, now)

    def _behind(self, rank: int, beat: Beat, is_behind: bool, patient: bool, now: float) -> float:
        """Return the seconds that a rank has been at its present place while another is ahead.

        They count anew once the others stop waiting for it: the beat in which a late rank says
        that it has come may arrive after theirs.
        """
        if not is_behind or beat.done:
            self.behind_since[rank] = None
            return 0.0
        since = self.behind_since[rank]
        if since is None or since[:2] != (beat.progress, patient):
            since = (beat.progress, patient, now)
            self.behind_since[rank] = since
        return now - since[2]

    def _all_alive_but_apart(
        self, beats: list[Beat], names: list[str], now: float
    ) -> Verdict | None:
        """Blame the ranks that did not join a collective which broke although all ranks beat."""
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
