"""The time that a loop of equal steps still needs, for log lines."""

import time


class Remaining:
    """A count of steps, and when they began; as text, the time that the others need.

    Attributes:
        total: number of steps.
        done: how many are done; the caller counts.
    """

    def __init__(self, total: int) -> None:
        self.total, self.done = total, 0
        self._started = time.monotonic()

    def __str__(self) -> str:
        if not self.done:
            return "time left unknown"
        seconds = (time.monotonic() - self._started) / self.done * (self.total - self.done)
        return f"{seconds / 60:.0f} min left" if seconds >= 90 else f"{seconds:.0f} s left"
