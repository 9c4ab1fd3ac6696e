"""Signals that ask a run to end: SIGTERM, SIGUSR1, and SIGINT of Ctrl-C."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable
from functools import wraps
from types import FrameType
from typing import Any

import torch

from autoselect.ranks.processes import EXIT_PREEMPTED, any_true, leave

logger = logging.getLogger(__name__)
ENDING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
EXIT_INTERRUPTED = 128 + signal.SIGINT
"""Exit code after Ctrl-C where there is nothing to save."""


def interruptible(main: Callable[..., int]) -> Callable[..., int]:
    """Let a program end with one line and `EXIT_INTERRUPTED` where Ctrl-C is not remembered."""

    @wraps(main)
    def wrapped(*arguments: Any) -> int:
        try:
            return main(*arguments)
        except KeyboardInterrupt:
            logger.warning("interrupted; the same command resumes")
            return EXIT_INTERRUPTED

    return wrapped


class SignalFlag:
    """Remembers a signal, so that the run ends after the step it is in.

    All ranks ask `raised_anywhere` once per step, so a signal on one rank stops all of them at the
    same step, with one checkpoint. A second Ctrl-C ends the process at once.

    Args:
        met: True if the ranks have met. Before, SIGTERM and SIGINT end the process as usual:
            launchers send SIGTERM to ranks that would wait in vain for one that failed.
    """

    def __init__(self, met: bool = True) -> None:
        self.received: signal.Signals | None = None
        signal.signal(signal.SIGUSR1, self._remember)
        if met:
            self.ranks_met()

    def ranks_met(self) -> None:
        """Remember SIGTERM and SIGINT from now on."""
        signal.signal(signal.SIGTERM, self._remember)
        signal.signal(signal.SIGINT, self._remember)

    def end_at_once(self) -> None:
        """Let a signal end the process with `EXIT_PREEMPTED`, also one that was remembered.

        For work after the last step: all of it is on the disk, and the same command goes on.
        """
        for number in ENDING:
            signal.signal(number, self._leave)
        if self.received is not None:
            self._leave(self.received, None)

    def _leave(self, number: int, frame: FrameType | None) -> None:
        logger.warning("stopped by %s after the last step", signal.Signals(number).name)
        leave(EXIT_PREEMPTED)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def raised_anywhere(self, device: torch.device) -> bool:
        """Return True if a signal arrived on at least one rank (a collective)."""
        return any_true(self.received is not None, device)
