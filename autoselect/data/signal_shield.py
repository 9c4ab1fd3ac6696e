"""Let loader workers survive the signals that are meant for the training process."""

import atexit
import contextlib
import multiprocessing
import os
import signal
from collections.abc import Iterator
from types import FrameType

_SHIELDED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


@contextlib.contextmanager
def held_signals() -> Iterator[None]:
    """Block signals while workers start, so that none reaches a worker without its shield.

    Workers inherit the mask; signals for this process arrive when it is lifted.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SHIELDED)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class SignalShield:
    """Worker initialiser that leaves signals to the training process, which ends its workers.

    Slurm and terminals signal whole process groups. If a worker died of that, the step and its
    checkpoint would be lost. SIGTERM ends a worker only when the training process exits, because
    Python's multiprocessing ends leftover workers that way.
    """

    def __init__(self) -> None:
        self._exiting = multiprocessing.RawValue("b", 0)
        atexit.register(self._note_exit)

    def _note_exit(self) -> None:
        self._exiting.value = 1

    def __call__(self, worker: int) -> None:
        """Install the shield in a new worker."""
        for number in _SHIELDED:
            signal.signal(number, self._answer)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SHIELDED)

    def _answer(self, number: int, frame: FrameType | None) -> None:
        if self._exiting.value and number == signal.SIGTERM:
            os._exit(0)
