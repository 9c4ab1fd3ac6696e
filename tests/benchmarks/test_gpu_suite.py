"""The GPU suite ends every process it starts, keeps its results, and reaches every kernel."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import gpu_suite
import pytest
import sanitizer_case
import torch
from gpu_suite import Stage
from torch.utils._python_dispatch import TorchDispatchMode

from autoselect.ops._native import EXTENSION, OPERATORS
from tests.forking import Program, run_after

BENCHMARKS = Path(gpu_suite.__file__).parent
BEYOND_TORCH_AND_TRANSFORMERS = (
    "braceexpand",
    "webdataset",
    "mlflow",
    "deepspeed",
    "matplotlib",
    "skimage",
    "pybind11",
)


@pytest.fixture(autouse=True)
def bare_gpu_machine(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)


def _stage(name, code, limit_s=60.0, **fields):
    return Stage(name, [sys.executable, "-c", textwrap.dedent(code)], limit_s, **fields)


def _is_running(pid):
    """Return True if a process exists and is not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _until(condition, seconds=30.0):
    """Wait for a condition; return False after the time limit."""
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


def test_a_stage_that_hangs_ends_with_its_children_and_keeps_output_and_result(tmp_path):
    child, result = tmp_path / "child", tmp_path / "result.json"
    hang = f"""
        import pathlib, subprocess, sys, time
        process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        print("as far as this")
        pathlib.Path({str(result)!r}).write_text('["first row"]')
        pathlib.Path({str(child)!r}).write_text(str(process.pid))
        time.sleep(600)
    """
    begin = time.monotonic()
    outcome = gpu_suite.run_stage(_stage("hang", hang, result=result), 8.0)
    assert time.monotonic() - begin < 60
    assert outcome["status"] == "failed" and outcome["reason"] == "not finished after 8 s"
    assert outcome["output_tail"] == "as far as this\n"
    assert outcome["result"] == ["first row"]
    assert _until(lambda: not _is_running(int(child.read_text())))


TERMINATED = """
import sys, torch, gpu_suite
torch.cuda.is_available = lambda: True
torch.cuda.get_device_name, torch.cuda.get_device_capability = str, lambda: (9, 0)
code = "import os, time; print(os.getpid(), file=open({pid!r}, 'w'), flush=True); time.sleep(600)"
hang = gpu_suite.Stage("hang", [sys.executable, "-c", code], 600)
gpu_suite.stages = lambda *_: [hang]
sys.argv = ["gpu_suite.py", "--json", {result!r}]
sys.exit(gpu_suite.main())
"""


def test_a_suite_that_is_terminated_leaves_no_stage_behind(tmp_path):
    pid = tmp_path / "pid"
    code = TERMINATED.format(pid=str(pid), result=str(tmp_path / "gpu.json"))
    suite = subprocess.Popen([sys.executable, "-c", code], cwd=BENCHMARKS)
    try:
        assert _until(lambda: pid.exists() and pid.read_text().endswith("\n"), 120)
        suite.terminate()
        assert suite.wait(60) == 128 + signal.SIGTERM
        assert _until(lambda: not _is_running(int(pid.read_text())))
    finally:
        suite.kill()


def test_a_process_that_leaves_the_session_does_not_hold_the_suite_up():
    leave = """
        import subprocess, sys
        code = "import time; time.sleep(120)"
        subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
        print("done")
    """
    begin = time.monotonic()
    outcome = gpu_suite.run_stage(_stage("leave", leave), 60.0)
    assert outcome["status"] == "passed" and outcome["output_tail"] == "done\n"
    assert time.monotonic() - begin < 110


def test_the_result_is_written_after_every_stage(monkeypatch, tmp_path):
    path = tmp_path / "results" / "gpu.json"
    kept = []

    def run_stage(stage, _limit_s):
        kept.append(list(json.loads(path.read_text())["stages"]) if path.exists() else [])
        return {"status": "passed"}

    monkeypatch.setattr(
        gpu_suite, "stages", lambda _folder, _budget_s: [_stage("a", ""), _stage("b", "")]
    )
    monkeypatch.setattr(gpu_suite, "run_stage", run_stage)
    assert gpu_suite.run_suite(path, 100.0)
    assert kept == [[], ["a"]]
    assert list(json.loads(path.read_text())["stages"]) == ["a", "b"]


def test_nothing_runs_after_a_failed_build(monkeypatch, tmp_path):
    steps = [_stage("build", "raise SystemExit(3)"), _stage("ops", "")]
    monkeypatch.setattr(gpu_suite, "stages", lambda _folder, _budget_s: steps)
    path = tmp_path / "gpu.json"
    assert not gpu_suite.run_suite(path, 100.0)
    outcomes = json.loads(path.read_text())["stages"]
    assert outcomes["build"]["status"] == "failed"
    assert outcomes["ops"] == {"status": "not run", "reason": "the build failed"}


def test_the_environment_keeps_the_callers_python_path(monkeypatch):
    root = str(gpu_suite.ROOT)
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    assert gpu_suite.environment()["PYTHONPATH"] == f"{root}{os.pathsep}/elsewhere"
    monkeypatch.delenv("PYTHONPATH")
    assert gpu_suite.environment()["PYTHONPATH"] == root


def test_the_slowest_sanitizer_comes_last_and_memcheck_sees_every_allocation(tmp_path):
    steps = {stage.name: stage for stage in gpu_suite.stages(tmp_path)}
    assert list(steps)[-1] == "racecheck"
    show = [sys.executable, "-c", "import os; print(os.environ['PYTORCH_NO_CUDA_MEMORY_CACHING'])"]
    stage = Stage("memcheck", show, 60.0, variables=steps["memcheck"].variables)
    assert gpu_suite.run_stage(stage, 60.0)["output_tail"] == "1\n"
    for stage in steps.values():
        script = [Path(part) for part in stage.command if part.endswith("_case.py")]
        assert all(path.exists() for path in script)
        assert len(script) == (stage.optional_tool == "compute-sanitizer")


SCRIPTS = ("bench_prefill", "bench_scorer", "flagship")
COLLECT = """
import os, pytest, sys
os.chdir({folder!r})
sys.path[0] = ""
sys.modules["hypothesis"] = None
sys.exit(pytest.main({arguments!r} + ["--collect-only"]))
"""


@pytest.fixture(scope="module")
def on_a_bare_machine(tmp_path_factory):
    """Return how programs ended where nothing but torch, transformers and pytest is installed."""
    steps = gpu_suite.stages(tmp_path_factory.mktemp("stages"))
    (tests,) = (stage.command[3:] for stage in steps if stage.name == "tests")
    programs = {script: Program(f"import {script}") for script in SCRIPTS}
    programs["tests"] = Program(
        COLLECT.format(folder=str(gpu_suite.ROOT), arguments=tests),
        {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
    )
    hide = f"import sys; sys.modules.update(dict.fromkeys({BEYOND_TORCH_AND_TRANSFORMERS!r}))"
    first = f"{hide}; import torch; import transformers.modeling_utils"
    runs = run_after(first, list(programs.values()), BENCHMARKS, dict(os.environ))
    return dict(zip(programs, runs, strict=True))


@pytest.mark.parametrize("script", SCRIPTS)
def test_benchmarks_of_models_load_with_torch_and_transformers_alone(script, on_a_bare_machine):
    run = on_a_bare_machine[script]
    assert run.returncode == 0, run.stderr


def test_the_gpu_tests_are_found_with_torch_transformers_and_pytest_alone(on_a_bare_machine):
    run = on_a_bare_machine["tests"]
    assert run.returncode == 0, run.stdout
    for file in ("soft_top_k", "noise_gate", "hard_top_k"):
        assert f"test_{file}.py" in run.stdout


class Calls(TorchDispatchMode):
    """Record the operators of this package and their arguments."""

    def __init__(self):
        super().__init__()
        self.of = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        namespace, _, name = func.name().partition("::")
        if namespace == "autoselect":
            self.of.setdefault(name, []).append(args)
        return func(*args, **(kwargs or {}))


def test_the_sanitizer_case_reaches_every_kernel_and_its_tails():
    if EXTENSION is None:
        pytest.skip("autoselect._C is not built")
    with Calls() as calls:
        sanitizer_case.run(torch.device("cpu"))
    assert set(calls.of) == set(OPERATORS)

    # A thread of the soft top-K keeps 8 of 256 scores: the tail begins at 2048.
    tails = {args[0].dtype for args in calls.of["soft_top_k"] if args[0].shape[1] > 2048}
    assert tails == {torch.float32, torch.float64}
    # Beyond 4096 kept tokens selection gathers in a second kernel, in units of 16 bytes if it can.
    rows = [(args[2] > 4096, args[0]) for args in calls.of["select_tokens"]]
    whole = {(many, x.shape[2] * x.element_size() % 16 == 0) for many, x in rows}
    assert len(whole) == 4
    for name in ("noise_gate", "soft_top_k_noise_gate"):
        packs = {(args[0].dtype, args[0].shape[2] % 8 == 0) for args in calls.of[name]}
        assert len(packs) == 2 * len(sanitizer_case.DTYPES)
