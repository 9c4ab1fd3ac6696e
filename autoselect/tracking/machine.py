"""Measure the machine while a run goes on: CPU, memory, and GPUs if there are any.

The values are those of MLflow's own monitors, under the names that its page of system metrics
shows. They go through the journal like all others, so an outage of the server loses none.
"""

import os
import socket
import threading
from collections.abc import Callable, Mapping

from autoselect.config.extras import extra

with extra("tracking"):
    from mlflow.system_metrics.metrics.base_metrics_monitor import BaseMetricsMonitor
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor

PREFIX = "system/"
SECONDS = 10.0
"""Time between two measurements."""


def node_name() -> str:
    """Return the name of this machine: Slurm's, if Slurm started this process."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


class MachineMetrics:
    """A thread that measures this machine.

    Args:
        log: takes the values by name, and the number of the measurement.
        first: number of the first measurement.
    """

    def __init__(self, log: Callable[[Mapping[str, float], int], None], first: int) -> None:
        self._log, self._number = log, first
        self._monitors: list[BaseMetricsMonitor] = [CPUMonitor()]
        try:
            self._monitors.append(GPUMonitor())
        except (ImportError, RuntimeError):
            pass  # no GPU, or nothing that asks it
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="machine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def measure(self) -> None:
        """Measure once."""
        values: dict[str, float] = {}
        for monitor in self._monitors:
            monitor.collect_metrics()
            values |= monitor.aggregate_metrics()
            monitor.clear_metrics()
        self._log({f"{PREFIX}{name}": value for name, value in values.items()}, self._number)
        self._number += 1

    def end(self) -> None:
        """Measure a last time, and end the thread."""
        if self._thread.is_alive():
            self._ending.set()
            self._thread.join()

    def _run(self) -> None:
        self._monitors[0].collect_metrics()  # the share of the CPU counts from the first call on
        self._monitors[0].clear_metrics()
        while not self._ending.wait(SECONDS):
            self.measure()
        self.measure()
