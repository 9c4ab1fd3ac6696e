"""Starting runs, looking at what arrived, and ways in which a delivery can fail."""

import os
import subprocess
import sys
import threading
from pathlib import Path

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException, get_error_code

from autoselect.tracking import Tracker, delivery
from autoselect.tracking.errors import ServerUnreachableError
from autoselect.tracking.store import Store, default_uri


def client():
    return MlflowClient(default_uri())


def start(**more):
    return Tracker.start(
        "project", "a run", {"steps": 10, "gate.kind": "vp"}, {"kind": "t"}, **more
    )


def history(run_id, name):
    return [(m.step, m.value) for m in client().get_metric_history(run_id, name)]


def journals():
    return list(Path("mlruns/spool").glob("*.jsonl"))


CHILD = """
import os, sys
from autoselect.tracking import Tracker
tracker = Tracker.start("project", "child")
print(tracker.run_id, flush=True)
if sys.argv[1] == "exit":
    sys.exit(3)
os.kill(os.getpid(), 9)
"""


def run_child(how):
    done = subprocess.run(
        [sys.executable, "-c", CHILD, how], capture_output=True, text=True, env=os.environ
    )
    assert done.stdout, done.stderr
    return done.stdout.split()[-1]


def hold_deliveries(monkeypatch):
    """Hold metrics on their way; return an event set when they wait, and one to let them go."""
    delivering, go_on = threading.Event(), threading.Event()
    real = delivery.log_metrics

    def slow(store, run_id, events):
        delivering.set()
        assert go_on.wait(60)
        real(store, run_id, events)

    monkeypatch.setattr(delivery, "log_metrics", slow)
    return delivering, go_on


class Outage:
    """Makes every store fail while `down`."""

    def __init__(self, monkeypatch):
        self.down = False
        monkeypatch.setattr(Store, "create", self._failing(Store.create))
        for name in ("log_params", "log_metrics", "carry_out"):
            monkeypatch.setattr(delivery, name, self._failing(getattr(delivery, name)))

    def _failing(self, real):
        def call(*arguments):
            if self.down:
                raise ServerUnreachableError("connection refused")
            return real(*arguments)

        return call


def denied(*_, **__):
    raise MlflowException("the token has expired", error_code=get_error_code(401))
