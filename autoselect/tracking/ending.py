"""Ends a run as what happened to the work in it."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from autoselect.tracking.tracker import Tracker

TERMINATED = 128 + signal.SIGTERM


@contextmanager
def ended_truthfully(tracker: Tracker) -> Iterator[Tracker]:
    """FINISHED, FAILED after an error, KILLED after Ctrl-C and, in the main thread, SIGTERM.

    Args:
        tracker: of the run, or a disabled one, for which signals stay what they are.
    """
    with _terminations(tracker.run_id is not None):
        try:
            yield tracker
        except (KeyboardInterrupt, SystemExit):
            tracker.finish("KILLED")
            raise
        except BaseException:
            tracker.finish("FAILED")
            raise
        tracker.finish()


@contextmanager
def _terminations(wanted: bool) -> Iterator[None]:
    """Make SIGTERM an exception, so that the run is ended before the process."""
    if not wanted or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _terminated)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _terminated(number: int, frame: FrameType | None) -> None:
    raise SystemExit(TERMINATED)
