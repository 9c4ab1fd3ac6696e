"""Loader workers outlive the signals that are meant for the training process."""

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
    """Holds signals back while workers start, so that none meets one without its shield.

    The mask is inherited; signals for this process arrive when it is lifted again.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SHIELDED)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class SignalShield:
    """Leaves signals to the training process, which finishes its step and ends the workers.

    Slurm and terminals signal whole process groups; a worker that died of it would take the step
    and the checkpoint with it. Only once the training process exits does SIGTERM end a worker:
    that is how Python's multiprocessing ends those that are left.
    """

    def __init__(self) -> None:
        self._exiting = multiprocessing.RawValue("b", 0)
        atexit.register(self._note_exit)

    def _note_exit(self) -> None:
        self._exiting.value = 1

    def __call__(self, worker: int) -> None:
        """Runs in a new worker."""
        for number in _SHIELDED:
            signal.signal(number, self._answer)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SHIELDED)

    def _answer(self, number: int, frame: FrameType | None) -> None:
        if self._exiting.value and number == signal.SIGTERM:
            os._exit(0)
