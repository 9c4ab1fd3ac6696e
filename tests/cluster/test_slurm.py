"""Training on a real Slurm of two nodes: preempted, crashed, failed and swept runs."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
from pathlib import Path

import pytest

from tests.cluster.slurm import Slurm
from tests.cluster.workspace import ROOT, Workspace

STEPS = 12
PAYLOADS = ("weights.safetensors", "exp_avg.safetensors", "exp_avg_sq.safetensors")
LIMIT_S = 900.0


class Jobs:
    """Submit the shipped scripts from the project folder."""

    def __init__(self, slurm: Slurm, project: Path) -> None:
        self.slurm, self.project = slurm, project

    def environment(self, **more: str) -> dict[str, str]:
        return {
            "PROJECT": str(self.project),
            "PYTHON": sys.executable,
            "PYTHONPATH": str(ROOT),
            "DEEPSPEED_CONFIG": str(self.project / "deepspeed.json"),
            "MLFLOW_TRACKING_URI": f"sqlite:///{self.project}/mlflow.db",
            "DS_ACCELERATOR": "cpu",
            "CUDA_VISIBLE_DEVICES": "",
            "OMP_NUM_THREADS": "1",
            **more,
        }

    def submit(self, script: str, options: list[str], arguments: list[str], **more: str) -> str:
        """Submit a script and return the id of the job."""
        return self.slurm.submit(
            f"--chdir={self.project}",
            f"--output={self.project}/job-%A.log",
            *options,
            str(self.project / "slurm" / script),
            *arguments,
            **self.environment(**more),
        )

    def train(self, output: str, *more_options: str, **more: str) -> str:
        """Submit train.sh on two nodes with one rank each."""
        arguments = Workspace(self.project).arguments(output, STEPS)[2:]  # without --deepspeed
        options = ["--nodes=2", "--ntasks-per-node=1", *more_options]
        return self.submit("train.sh", options, arguments, **more)

    def log(self, job: str) -> str:
        path = self.project / f"job-{job}.log"
        return path.read_text() if path.exists() else ""

    def wait_until(self, job: str, happened, what: str) -> None:
        deadline = time.monotonic() + LIMIT_S
        while not happened():
            state = self.slurm.field(job, "JobState")
            assert state in ("PENDING", "RUNNING", "CONFIGURING"), (what, state, self.log(job))
            assert time.monotonic() < deadline, (what, self.log(job))
            time.sleep(0.2)

    def results(self, output: str, steps: int = STEPS) -> dict[str, bytes]:
        folder = self.project / output
        final = folder / "checkpoints" / f"step-{steps:08d}"
        found = {name: (final / name).read_bytes() for name in PAYLOADS}
        return found | {"selector": (folder / "selector" / "selector.safetensors").read_bytes()}

    def pointer(self, output: str) -> int:
        path = self.project / output / "checkpoints" / "latest"
        return int(path.read_text().strip()[5:]) if path.exists() else 0


@pytest.fixture(scope="session")
def jobs(slurm: Slurm, project: Path) -> Jobs:
    return Jobs(slurm, project)


@pytest.fixture(scope="session")
def uninterrupted(jobs: Jobs) -> dict[str, bytes]:
    """Return the results of an undisturbed two-node job."""
    job = jobs.train("runs/plain")
    state = jobs.slurm.wait_for_end(job)
    assert state == "COMPLETED", jobs.log(job)
    assert jobs.slurm.field(job, "Restarts") == "0"
    assert "2 tasks on n[1-2], meeting at 127.0.0.1:" in jobs.log(job)
    return jobs.results("runs/plain")


def loss_steps(project: Path, output: str) -> tuple[str, list[int]]:
    """Return status and logged steps of the single tracking run of an output folder."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{project}/mlflow.db")
    ids = [experiment.experiment_id for experiment in client.search_experiments()]
    runs = [r for r in client.search_runs(ids) if r.data.params.get("output") == output]
    assert len(runs) == 1, [run.info.run_id for run in runs]
    history = client.get_metric_history(runs[0].info.run_id, "train/loss")
    return runs[0].info.status, [metric.step for metric in history]


def test_a_job_on_two_nodes_completes(jobs: Jobs, uninterrupted: dict[str, bytes]) -> None:
    assert all(uninterrupted.values())
    status, steps = loss_steps(jobs.project, "runs/plain")
    assert status == "FINISHED" and steps == list(range(1, STEPS + 1))


@pytest.mark.parametrize("how", ["usr1", "preemption"])
def test_a_job_that_has_to_go_saves_requeues_and_ends_bit_equal(
    jobs: Jobs, uninterrupted: dict[str, bytes], how: str
) -> None:
    output, partition = f"runs/{how}", "main" if how == "usr1" else "preemptible"
    job = jobs.train(output, f"--partition={partition}")
    jobs.wait_until(job, lambda: jobs.pointer(output) >= 4, "a checkpoint")
    if how == "usr1":
        jobs.slurm.run("scancel", "--batch", "--signal=USR1", job)
    else:
        jobs.slurm.submit("--nodes=2", "--output=/dev/null", "--wrap=sleep 1")
    assert jobs.slurm.wait_for_end(job) == "COMPLETED", jobs.log(job)
    log = jobs.log(job)
    assert jobs.slurm.field(job, "Restarts") == "1", log
    assert "goes back to the queue" in log and "start 1:" in log
    stopped = re.search(r"stopped by a signal after step (\d+)", log)
    assert stopped is not None and f"resuming at step {stopped[1]} of {STEPS}" in log
    assert jobs.results(output) == uninterrupted
    status, steps = loss_steps(jobs.project, output)
    assert status == "FINISHED" and steps == list(range(1, STEPS + 1))


def test_a_node_that_dies_is_survived(jobs: Jobs, uninterrupted: dict[str, bytes]) -> None:
    job = jobs.train("runs/crashed")
    jobs.wait_until(job, lambda: jobs.pointer("runs/crashed") >= 2, "a checkpoint")
    jobs.slurm.kill_node("n2")
    kill_tasks_of_node(job, "n2")
    try:
        jobs.wait_until(job, lambda: jobs.slurm.field(job, "Restarts") == "1", "the requeue")
        jobs.slurm.run("scontrol", "hold", job)
        jobs.slurm.wait_until_down("n2")
    finally:
        jobs.slurm.start_node("n2")
    # What Slurm still has to tell the node of the first start would end the second one there.
    jobs.slurm.wait_until_idle()
    jobs.slurm.wait_until_all_is_told()
    jobs.slurm.run("scontrol", "release", job)
    assert jobs.slurm.wait_for_end(job) == "COMPLETED", jobs.log(job)
    assert re.search(r"resuming at step \d+ of", jobs.log(job))
    assert jobs.results("runs/crashed") == uninterrupted
    status, steps = loss_steps(jobs.project, "runs/crashed")
    assert status == "FINISHED" and steps == list(range(1, STEPS + 1))


def kill_tasks_of_node(job: str, node: str) -> None:
    """End the job's processes on a node with it, because slurmd's children outlive slurmd."""
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            variables = path.read_bytes().split(b"\0")
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
        if {f"SLURM_JOB_ID={job}".encode(), f"SLURMD_NODENAME={node}".encode()} <= set(variables):
            try:
                os.kill(int(path.parent.name), signal.SIGKILL)
            except ProcessLookupError:
                continue


def test_a_rank_that_exits_with_3_fails_the_job(jobs: Jobs, tmp_path: Path) -> None:
    """It ends although the other rank waits for it."""
    jobs.slurm.wait_until_idle()
    python = tmp_path / "python"
    python.write_text(
        '#!/bin/bash\nif [ "$SLURM_PROCID" = 1 ]; then sleep 12; exit 3; fi\n'
        f'exec "{sys.executable}" "$@"\n'
    )
    python.chmod(0o755)
    job = jobs.train("runs/failed", PYTHON=str(python))
    assert jobs.slurm.wait_for_end(job, 120) == "FAILED", jobs.log(job)
    assert jobs.slurm.field(job, "Restarts") == "0"
    assert jobs.slurm.field(job, "ExitCode") in ("3:0", "143:0")
    assert not (jobs.project / "runs/failed/selector").exists()


def test_an_array_of_four_keeps_outputs_apart(jobs: Jobs) -> None:
    values = ["2", "4", "6", "8"]
    arguments = Workspace(jobs.project).arguments("unused", 2)[2:]
    at = arguments.index("--output")
    del arguments[at : at + 2]
    job = jobs.submit(
        "sweep.sh",
        ["--array=0-3", "--ntasks=1", f"--output={jobs.project}/sweep-%A-%a.log"],
        [*arguments, "--gate.min_token_budget", "null"],
        SWEEP_VALUES=" ".join(values),
    )
    folder = jobs.project / "runs" / f"sweep-{job}"
    for index in range(len(values)):
        state = jobs.slurm.wait_for_end(f"{job}_{index}")
        log = (jobs.project / f"sweep-{job}-{index}.log").read_text()
        assert state == "COMPLETED", log
    outputs = sorted(path.name for path in folder.iterdir())
    assert outputs == [f"gate.token_budget-{value}" for value in values]
    selectors = {(path / "selector/selector.safetensors").read_bytes() for path in folder.iterdir()}
    assert len(selectors) == len(values)


def test_an_evaluation_as_a_job(jobs: Jobs, uninterrupted: dict[str, bytes]) -> None:
    arguments = ["--model", "vlm", "--selector", "runs/plain/selector", "--budgets", "8"]
    arguments += ["--shards", "shards/test-*.tar", "--methods", "random", "--out", "runs/eval"]
    job = jobs.submit("eval.sh", [], arguments)
    assert jobs.slurm.wait_for_end(job) == "COMPLETED", jobs.log(job)
    report = json.loads((jobs.project / "runs/eval/report.json").read_text())
    assert {row["method"] for row in report["rows"]} == {"autoselect", "random"}
