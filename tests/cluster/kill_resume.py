"""Kill a training run at random moments, resume it, and compare its end bit by bit.

    python tests/cluster/kill_resume.py --kills 50

One uninterrupted run comes first. Then the same run is started repeatedly, and all ranks of each
start are killed with SIGKILL at a random moment: while it starts and reads a checkpoint, between
updates, or during a save. The next start must resume from the newest checkpoint that was complete
at the kill. When a killed run reaches its end, its checkpoint and selector must equal those of the
uninterrupted run byte by byte. The next run then starts in an empty folder. A kill counts if both
conditions hold. If all do, the last line is `N of N resumed bit-equal` and the exit code is 0.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import re
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT)]

from tests.cluster.workspace import Workspace  # noqa: E402

RESUMED = re.compile(r"resuming at step (\d+) of")
BEGUN = re.compile(r"resuming at step|calibrated on")
PAYLOADS = ("weights.safetensors", "exp_avg.safetensors", "exp_avg_sq.safetensors")
LIMIT_S = 300.0
MOMENTS = ("start", "training", "save")


def rank_main(rank: int, ranks: int, port: int, arguments: list[str], log: str) -> None:
    """Run autoselect/train.py as one rank in a new process group, with output into a file."""
    os.setsid()
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(ranks),
        "LOCAL_RANK": str(rank),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    from autoselect.train import main

    sys.exit(main(arguments))


@dataclass
class Run:
    """One start of all ranks on one output folder."""

    output: Path
    steps: int
    processes: list[multiprocessing.Process] = field(default_factory=list)
    started: float = 0.0

    @property
    def log(self) -> Path:
        return self.output.with_suffix(".log")

    def start(self, workspace: Workspace, ranks: int) -> None:
        """Start the ranks from a server process that has already imported the libraries."""
        arguments = workspace.arguments(self.output, self.steps) + ["--tracking", "false"]
        context = multiprocessing.get_context("forkserver")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.log.unlink(missing_ok=True)
        self.started = time.monotonic()
        self.processes = [
            context.Process(
                target=rank_main, args=(rank, ranks, port, arguments, f"{self.log}"), daemon=False
            )
            for rank in range(ranks)
        ]
        for process in self.processes:
            process.start()

    def alive(self) -> bool:
        return any(process.is_alive() for process in self.processes)

    def kill(self) -> None:
        """Send SIGKILL to every rank and all processes it started."""
        for process in self.processes:
            assert process.pid is not None
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                process.kill()  # not yet a group of its own, or gone already
        for process in self.processes:
            process.join()

    def wait(self) -> None:
        """Wait for the end of a run that is not killed.

        Raises:
            AssertionError: it failed or took too long.
        """
        for process in self.processes:
            process.join(max(0.0, LIMIT_S - (time.monotonic() - self.started)))
        codes = [process.exitcode for process in self.processes]
        if codes != [0] * len(codes):
            self.kill()
            raise AssertionError(f"exit codes {codes}:\n{self.log.read_text()[-4000:]}")

    def resumed_at(self) -> int:
        """Return the step from which this start resumed, 0 for a new run."""
        found = RESUMED.search(self.log.read_text()) if self.log.exists() else None
        return int(found[1]) if found else 0

    def has_begun(self) -> bool:
        """Return True if the run has read a checkpoint, or has found that none exists."""
        return self.log.exists() and BEGUN.search(self.log.read_text()) is not None

    def saving(self) -> bool:
        return any((self.output / "checkpoints").glob("*.partial"))

    def pointer(self) -> int:
        """Return the step of the newest complete checkpoint, 0 without one."""
        path = self.output / "checkpoints" / "latest"
        return int(path.read_text().strip().removeprefix("step-")) if path.exists() else 0


def result_bytes(run: Run) -> dict[str, bytes]:
    """Return everything that has to be equal at the end of a run."""
    final = run.output / "checkpoints" / f"step-{run.steps:08d}"
    files = {name: (final / name).read_bytes() for name in PAYLOADS}
    selector = run.output / "selector" / "selector.safetensors"
    return files | {"selector": selector.read_bytes()}


class Executioner:
    """Kill runs at random moments, scaled by the measured speed of this machine."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.start_s = 1.0
        self.save_interval_s = 1.0

    def kill(self, run: Run, moment: str) -> bool:
        """Wait for the moment and kill all ranks; return False if the run ended before."""
        if moment == "start":
            self._until(run, lambda: False, self.chance.uniform(0.0, self.start_s))
        else:
            self._until(run, run.has_begun)
            self.start_s = time.monotonic() - run.started
            self._let_some_saves_pass(run)
            if moment == "save":
                self._until(run, run.saving)
                self._until(run, lambda: False, self.chance.uniform(0.0, 0.02))
            else:
                self._until(run, lambda: False, self.chance.uniform(0.0, self.save_interval_s))
        if not all(process.is_alive() for process in run.processes):
            return False
        run.kill()
        return True

    def _let_some_saves_pass(self, run: Run) -> None:
        for _ in range(self.chance.choice([0, 0, 1, 2])):
            before, start = run.pointer(), time.monotonic()
            self._until(run, lambda before=before: run.pointer() != before)
            self.save_interval_s = time.monotonic() - start

    def _until(self, run: Run, happened: Callable[[], bool], limit_s: float = LIMIT_S) -> None:
        """Wait for an event, the end of a rank, or the time limit."""
        deadline = time.monotonic() + limit_s
        while time.monotonic() < deadline and not happened():
            if not all(process.is_alive() for process in run.processes):
                return
            time.sleep(0.001)


def one_chain(
    run: Run, workspace: Workspace, ranks: int, executioner: Executioner, kills: int, done: int
) -> tuple[int, bool]:
    """Start, kill and resume one run until it ends.

    Args:
        run: a run in an empty folder.
        workspace: model and data of the run.
        ranks: number of ranks.
        executioner: chooses the moments of kills.
        kills: largest number of kills.
        done: kills in earlier runs, for messages and for the order of moments.

    Returns:
        The number of kills, and True if every start resumed from the newest complete checkpoint.
    """
    killed, honest, complete = 0, True, 0
    while True:
        run.start(workspace, ranks)
        was_killed = killed < kills and executioner.kill(run, MOMENTS[(done + killed) % 3])
        if not was_killed:
            run.wait()
        if run.has_begun() and run.resumed_at() != complete:
            print(f"went on from {run.resumed_at()}, but {complete} was complete", flush=True)
            honest = False
        if not was_killed:
            return killed, honest
        killed += 1
        where = f"after it went on from {complete}" if run.has_begun() else "while it started"
        inside = ", inside a save" if run.saving() else ""
        complete = run.pointer()
        print(f"kill {done + killed}: {where}{inside}; complete now: {complete}", flush=True)


def kill_and_resume(workspace: Workspace, options: argparse.Namespace) -> int:
    """Make all kills, and return how many were resumed bit-equal."""
    reference = Run(workspace.folder / "uninterrupted", options.steps)
    reference.start(workspace, options.ranks)
    reference.wait()
    expected = result_bytes(reference)
    print(f"uninterrupted run: {options.steps} updates", flush=True)
    executioner = Executioner(options.seed)
    done, good, chain = 0, 0, 0
    while done < options.kills:
        run = Run(workspace.folder / f"killed-{chain}", options.steps)
        left = options.kills - done
        killed, honest = one_chain(run, workspace, options.ranks, executioner, left, done)
        equal = honest and result_bytes(run) == expected
        print(f"run {chain}: {killed} kills, {'bit-equal' if equal else 'NOT EQUAL'}", flush=True)
        good += killed if equal else 0
        done += killed
        chain += 1
        if equal:
            shutil.rmtree(run.output)
    return good


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="keeps everything there; default: a new one")
    options = parser.parse_args()
    os.environ |= {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    os.environ["PYTHONWARNINGS"] = "ignore:resource_tracker"  # what killed ranks leave behind
    preload = ["autoselect.train", "autoselect.training.run", "deepspeed"]
    multiprocessing.get_context("forkserver").set_forkserver_preload(preload)
    with tempfile.TemporaryDirectory(prefix="kill-resume-") as temporary:
        folder = options.folder or Path(temporary)
        for old in [*folder.glob("killed-*"), *folder.glob("uninterrupted*")]:
            shutil.rmtree(old) if old.is_dir() else old.unlink()
        workspace = Workspace(folder).make()
        good = kill_and_resume(workspace, options)
    print(f"{good} of {options.kills} resumed bit-equal")
    return 0 if good == options.kills else 1


if __name__ == "__main__":
    sys.exit(main())
