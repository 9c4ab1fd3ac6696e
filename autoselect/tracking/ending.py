"""End an MLflow run with the status of the work in it."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from autoselect.tracking.tracker import Tracker

TERMINATED = 128 + signal.SIGTERM


@contextmanager
def ended_truthfully(tracker: Tracker) -> Iterator[Tracker]:
    """End the run as FINISHED, FAILED after an error, or KILLED after Ctrl-C or SIGTERM.

    SIGTERM is handled only in the main thread and only if the tracker is enabled.
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
    """Turn SIGTERM into an exception, so that the run is ended before the process."""
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
