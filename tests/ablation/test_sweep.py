"""Cells that run at the same time give the same results as in sequence and do not collide."""

import threading
import time

import pytest

from autoselect.ablation import cells
from autoselect.ablation.cells import LOG, Cell, evaluate_baselines
from autoselect.ablation.collect import collect
from autoselect.ablation.sweep import run_cells
from autoselect.config import ConfigError
from autoselect.config.programs import call

JOBS = 3


def sweep(plan, out, jobs=JOBS):
    for cell in run_cells(plan, out, list(plan.cells()), jobs):
        evaluate_baselines(plan, out, cell)
    return collect(plan, out)


@pytest.fixture
def shards_elsewhere(monkeypatch):
    """Replace rendering of the reference shards; the value lists the requested names."""
    asked = []
    monkeypatch.setattr("autoselect.ablation.sweep.resolve_shards", asked.append)
    return asked


def test_side_by_side_gives_the_same_result(plan, programs, shards_elsewhere, tmp_path):
    expected = sweep(plan, tmp_path / "one" / "the" / "out", jobs=1)
    assert shards_elsewhere == [], "one cell at a time renders what it needs"
    done = sorted(map(str, programs.calls))
    programs.calls = []
    assert sweep(plan, tmp_path / "many" / "the" / "out") == expected
    assert sorted(map(str, programs.calls)) == done, "every step once, shared selectors included"
    assert shards_elsewhere == ["reference"], "rendered once, before the first cell"


def test_ranks_of_different_cells_never_meet(
    plan, programs, shards_elsewhere, tmp_path, monkeypatch
):
    """Trainings that run at the same time have their own ports and log files."""
    together = threading.Barrier(JOBS, timeout=30)
    at_work, most = {}, []

    def watched(command, again, folder=None, log=None):
        if command[0] == "deepspeed" and len(most) < JOBS:
            port = next(word for word in command if word.startswith("--master_port"))
            assert port not in at_work
            at_work[port] = log
            most.append(len(at_work))
            together.wait()
        programs(command, again, folder, log)

    monkeypatch.setattr(cells, "call", watched)
    sweep(plan, tmp_path)
    assert max(most) == JOBS
    assert len(set(at_work.values())) == JOBS and all(log.name == LOG for log in at_work.values())


def test_a_cell_that_fails_ends_the_sweep(plan, programs, shards_elsewhere, tmp_path, monkeypatch):
    """Cells that are running end normally, and cells that have not started do not start."""

    def failing(command, again, folder=None, log=None):
        if command[0] == "deepspeed" and "channel" in str(log):
            raise ConfigError(f"the step in {log} ended with code 1")
        time.sleep(0.3)
        programs(command, again, folder, log)

    monkeypatch.setattr(cells, "call", failing)
    with pytest.raises(ConfigError, match=r"channel/seed-0/log\.txt ended with code 1"):
        sweep(plan, tmp_path, jobs=2)
    finished = [Cell.of(tmp_path, *work) for work in plan.cells()]
    finished = [cell for cell in finished if cell.is_finished]
    assert finished and len(finished) < 6, "of the two others with three seeds"
    assert all(cell.read()["outcome"] for cell in finished)


def test_output_goes_into_the_log(tmp_path, capfd):
    log = tmp_path / LOG
    call(["sh", "-c", "echo said; echo complained >&2"], "again", log=log)
    with pytest.raises(ConfigError, match=r"the step in .*log\.txt ended with code 3; mend"):
        call(["sh", "-c", "exit 3"], "again", log=log)
    lines = log.read_text().splitlines()
    assert lines == [
        "$ sh -c 'echo said; echo complained >&2'",
        "said",
        "complained",
        "$ sh -c 'exit 3'",
    ]
    assert capfd.readouterr().out == ""
