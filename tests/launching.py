"""Start programs like users: documented commands, and the ranks of tests/workers.

Importing torch, transformers and DeepSpeed costs more than most workers do. The workers are
therefore forked from one process that has imported them; their environment, output, exit code and
death are those of a process of their own.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from multiprocessing import forkserver
from pathlib import Path
from typing import Any
from unittest import mock

BIN = Path(sys.executable).parent
ROOT = Path(__file__).parents[1]
WORKERS = Path(__file__).parent / "workers"
IMPORTED = ("deepspeed", "transformers.models.llava.modeling_llava", "autoselect.train")
IMPORTED += ("autoselect.training.run", "autoselect.evaluation.run")
IMPORTED += ("autoselect.tuning.after_training", "mlflow.store.tracking.sqlalchemy_store")
IMPORTED += ("deepspeed.runtime.zero.muon.original_muon",)  # torch.compile, by every engine


def environment() -> dict[str, str]:
    """Return variables for worker processes: this checkout importable, one thread, no GPU."""
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": "cpu",
        "CUDA_VISIBLE_DEVICES": "",
    }


@cache
def forks() -> Any:
    """Return the context whose processes are forked with the libraries already imported.

    They come from one process without a GPU, which ends with this one.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(IMPORTED))
    with mock.patch.dict(os.environ, environment(), clear=True):
        forkserver.ensure_running()
    return context


def _become(
    script: Path, arguments: Sequence[str], variables: dict[str, str], folder: Path, log: Path
) -> None:
    """Run a script in the forked process as if Python had been started with it."""
    os.chdir(folder)
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ.clear()
    os.environ.update(variables)
    multiprocessing.set_start_method(None, force=True)  # that of this Python, for its own workers
    sys.argv = [str(script), *arguments]
    sys.path.insert(0, str(script.parent))
    runpy.run_path(str(script), run_name="__main__")


class Worker:
    """A running script; `wait` ends it.

    Args:
        script: a file of tests/workers, or another Python file.
        arguments: its command line.
        variables: its whole environment.
        folder: where it starts.
    """

    def __init__(
        self,
        script: str | Path,
        arguments: Sequence[str],
        variables: dict[str, str],
        folder: Path = ROOT,
    ) -> None:
        descriptor, name = tempfile.mkstemp(suffix=".log")
        os.close(descriptor)
        self.log = Path(name)
        self.process = forks().Process(
            target=_become, args=(WORKERS / script, list(arguments), variables, folder, self.log)
        )
        self.process.start()

    def signal(self, number: int) -> None:
        """Send a signal; nothing happens to a worker that has ended."""
        with suppress(ProcessLookupError):  # it may end between any question and the signal
            if self.process.is_alive():
                os.kill(self.process.pid, number)

    def wait(self, timeout: float) -> tuple[int, str]:
        """Return exit code and output; a worker that takes longer is killed.

        Args:
            timeout: in seconds.
        """
        self.process.join(timeout)
        self.process.kill()
        self.process.join()
        text = self.log.read_text(errors="replace")
        self.log.unlink()
        return self.process.exitcode, text


def start_ranks(
    ranks: int, script: str | Path, *arguments: str, folder: Path = ROOT
) -> list[Worker]:
    """Start one worker per rank, which meet on this machine; nothing ends them if one fails."""
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "WORLD_SIZE": str(ranks)}
    return [
        Worker(
            script,
            arguments,
            environment() | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            folder,
        )
        for rank in range(ranks)
    ]


def launch(ranks: int, script: str | Path, *arguments: str, folder: Path = ROOT) -> str:
    """Run a file of tests/workers in `ranks` processes; show their output if one fails.

    It returns the output of rank 0.
    """
    workers = start_ranks(ranks, script, *arguments, folder=folder)
    running = [worker.process for worker in workers]
    deadline = time.monotonic() + 900
    while any(p.is_alive() for p in running) and time.monotonic() < deadline:
        if any(process.exitcode for process in running):
            time.sleep(2)  # the others may say why
            break
        time.sleep(0.05)
    results = [worker.wait(0) for worker in workers]
    assert all(code == 0 for code, _ in results), [(code, log[-4000:]) for code, log in results]
    return results[0][1]


def train(folder: Path, ranks: int, *arguments: str) -> str:
    """Train in a folder, on ranks that begin as the launcher's do; return what rank 0 says."""
    with mock.patch.dict(os.environ):
        os.environ.pop("MLFLOW_TRACKING_URI", None)
        return launch(ranks, ROOT / "autoselect" / "train.py", *arguments, folder=folder)


def call(folder: Path, *command: str) -> str:
    """Run a documented command in a folder; return its output, and show it if the command fails."""
    variables = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    variables |= {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    variables.pop("MLFLOW_TRACKING_URI", None)
    if command[0] == "autoselect":
        code, log = Worker(BIN / "autoselect", command[1:], variables, folder).wait(900)
    else:
        ended = subprocess.run(
            command, cwd=folder, env=variables, capture_output=True, text=True, timeout=900
        )
        code, log = ended.returncode, ended.stdout + ended.stderr
    assert code == 0, f"{command}\n{log}"
    return log


def free_port() -> str:
    """Return a free TCP port of this machine."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return str(probe.getsockname()[1])
