"""Signals that ask a run to end: SIGTERM, SIGUSR1, and SIGINT of Ctrl-C."""

from __future__ import annotations

import logging
import signal
from types import FrameType

import torch

from autoselect.ranks.exchange import any_true
from autoselect.ranks.processes import EXIT_PREEMPTED, leave

logger = logging.getLogger(__name__)
ENDING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class SignalFlag:
    """Remembers a signal, so that the run ends after the step it is in.

    All ranks ask `raised_anywhere` once per step, so a signal on one rank stops all of them at the
    same step, with one checkpoint.

    Args:
        met: True if the ranks have met. Before, SIGTERM ends the process as usual: launchers send
            it to ranks that would wait in vain for one that failed.
    """

    def __init__(self, met: bool = True) -> None:
        self.received: signal.Signals | None = None
        signal.signal(signal.SIGUSR1, self._remember)
        if met:
            self.ranks_met()

    def ranks_met(self) -> None:
        """Remember SIGTERM from now on."""
        signal.signal(signal.SIGTERM, self._remember)

    def steps_begin(self) -> None:
        """Remember Ctrl-C from now on, unless it is ignored, as in jobs that a script started."""
        if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
            signal.signal(signal.SIGINT, self._remember)

    def end_at_once(self) -> None:
        """Let a signal end the process with `EXIT_PREEMPTED`, also one that was remembered.

        For work after the last step: all of it is on the disk, and the same command goes on.
        """
        for number in ENDING:
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._leave)
        if self.received is not None:
            self._leave(self.received, None)

    def _leave(self, number: int, frame: FrameType | None) -> None:
        for other in ENDING:
            signal.signal(other, signal.SIG_IGN)
        logger.warning("stopped by %s after the last step", signal.Signals(number).name)
        leave(EXIT_PREEMPTED)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        if number == signal.SIGINT:
            logger.warning("Ctrl-C: a checkpoint follows this step; press it again to end at once")
            signal.signal(signal.SIGINT, signal.SIG_DFL)

    def raised_anywhere(self, device: torch.device) -> bool:
        """Return True if a signal arrived on at least one rank (a collective)."""
        return any_true(self.received is not None, device)
