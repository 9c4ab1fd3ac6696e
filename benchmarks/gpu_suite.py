"""Run everything on a bare CUDA machine: build, GPU tests, benchmarks and the sanitizer.

    python benchmarks/gpu_suite.py --json FILE [--budget-s 570] [--only build,tests,ops]

It needs a GPU, nvcc, ninja, a CUDA build of PyTorch, transformers and pytest, but not hypothesis
or a network. The stages `engine` and `serving` also need vLLM and this package installed. Every
stage is a separate session with a time limit, so a stage that fails or hangs does not end the
others. The result is written after every stage. It names each stage that could not run, with the
reason.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
BENCHMARKS = Path(__file__).parent

BUDGET_S, FLAGSHIP_SHARE = 570.0, 0.4
LEAST_S = 10.0
TAIL_CHARACTERS = 3000


@dataclass(frozen=True)
class Stage:
    """A command with a time limit in seconds; `result` is a JSON file that it writes.

    `variables` join the environment of all stages; without its `optional_tool` it does not run.
    """

    name: str
    command: list[str]
    limit_s: float
    result: Path | None = None
    optional_tool: str | None = None
    variables: dict[str, str] = field(default_factory=dict)


def stages(folder: Path, budget_s: float = BUDGET_S) -> list[Stage]:
    """List the stages in order; the slowest sanitizer gets the time that is left."""
    python = sys.executable
    ops, prefill = folder / "ops.json", folder / "prefill.json"
    tests = [python, "-m", "pytest", "tests/ops", "tests/vlm/test_cuda.py", "-q", "-m", "not slow"]
    tests += ["-k", "cuda and not emulation and not sources", "-p", "no:cacheprovider"]
    sanitizer = "compute-sanitizer"
    sanitize = [sanitizer, "--error-exitcode", "9", "--tool"]
    small = [python, str(BENCHMARKS / "sanitizer_case.py")]
    # PyTorch's allocator hands out pieces of large blocks, which hide an access beyond a piece.
    exact = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    bench = [python, str(BENCHMARKS / "bench_ops.py"), "--device", "cuda", "--json", str(ops)]
    language = [python, str(BENCHMARKS / "bench_prefill.py"), "--json", str(prefill)]
    language += ["--budgets", "8,16,32", "--batches", "1,8,32", "--repeats", "20"]
    flagship, scorer = folder / "flagship.json", folder / "scorer.json"
    share_s = FLAGSHIP_SHARE * budget_s
    large = [python, str(BENCHMARKS / "flagship.py"), "--budget-s", f"{share_s:.0f}"]
    growth = [python, str(BENCHMARKS / "bench_scorer.py"), "--device", "cuda", "--seconds", "0.5"]
    answers = [python, "-m", "pytest", "tests/serving/test_engine.py", "-q"]
    answers += ["-p", "no:cacheprovider"]
    serving = folder / "serving.json"
    load = [python, str(BENCHMARKS / "bench_serving.py"), "--size", "llava-1.5-7b"]
    load += ["--concurrency", "1", "16", "64", "--rates", "--kv-cache-gib", "12"]
    return [
        Stage("build", [python, "setup.py", "build_ext", "--inplace"], 240),
        Stage("tests", tests, 150),
        Stage("flagship", [*large, "--json", str(flagship)], share_s + 10, flagship),
        Stage("ops", [*bench, "--no-compile", "--seconds", "2"], 120, ops),
        Stage("memcheck", [*sanitize, "memcheck", *small], 120, None, sanitizer, exact),
        Stage("scorer", [*growth, "--json", str(scorer)], 60, scorer),
        Stage("prefill", language, 120, prefill),
        Stage("engine", answers, 300, None, "vllm"),
        Stage("serving", [*load, "--json", str(serving)], 300, serving, "vllm"),
        Stage("racecheck", [*sanitize, "racecheck", *small], 120, None, sanitizer),
    ]


def environment() -> dict[str, str]:
    """Return the environment of all stages: the package of this tree, built for this GPU only.

    Output is not buffered, so that a stage that is ended leaves what it had printed.
    """
    major, minor = torch.cuda.get_device_capability()
    folders = (str(ROOT), os.environ.get("PYTHONPATH"))
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, folders)),
        "PYTHONUNBUFFERED": "1",
        "FORCE_CUDA": "1",
        "TORCH_CUDA_ARCH_LIST": os.environ.get("TORCH_CUDA_ARCH_LIST", f"{major}.{minor}"),
        "AUTOSELECT_REQUIRE_NATIVE": "1",
    }


def end_group(process: subprocess.Popen[bytes]) -> None:
    """End a process that leads a group, and all processes it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def run_limited(
    command: list[str], limit_s: float, variables: dict[str, str]
) -> tuple[int | None, str]:
    """Return the exit status of a command, None after its time limit, and the end of its output."""
    # A file instead of a pipe: a process that leaves the group could keep a pipe open for ever.
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        status = None
        try:
            status = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            pass
        finally:
            end_group(process)
        output.seek(0)
        return status, output.read().decode(errors="replace")[-TAIL_CHARACTERS:]


def run_stage(stage: Stage, limit_s: float) -> dict[str, object]:
    """Run one stage; return how it ended, how long it took and its result."""
    if stage.optional_tool and shutil.which(stage.optional_tool) is None:
        return {"status": "not run", "reason": f"{stage.optional_tool} is not installed"}
    begin = time.monotonic()
    status, tail = run_limited(stage.command, limit_s, environment() | stage.variables)
    outcome: dict[str, object] = {
        "status": "passed" if status == 0 else "failed",
        "seconds": round(time.monotonic() - begin, 1),
        "output_tail": tail,
    }
    if status is None:
        outcome["reason"] = f"not finished after {limit_s:.0f} s"
    if stage.result is not None and stage.result.exists():
        outcome["result"] = json.loads(stage.result.read_text())
    return outcome


def run_all(budget_s: float, only: Collection[str]) -> Iterator[tuple[str, dict[str, object]]]:
    """Run the stages within the time budget, and yield each name and outcome.

    Nothing runs after a failed build.
    """
    begin = time.monotonic()
    built = True
    with tempfile.TemporaryDirectory() as folder:
        for stage in stages(Path(folder), budget_s):
            left = budget_s - (time.monotonic() - begin)
            if only and stage.name not in only:
                continue
            if not built:
                outcome: dict[str, object] = {"status": "not run", "reason": "the build failed"}
            elif left < LEAST_S:
                outcome = {"status": "not run", "reason": "no time was left"}
            else:
                outcome = run_stage(stage, min(stage.limit_s, left))
            built = built and (stage.name != "build" or outcome["status"] == "passed")
            yield stage.name, outcome


def report(name: str, outcome: dict[str, object]) -> None:
    print(f"{name}: {outcome['status']} {outcome.get('reason', '')}", flush=True)
    if outcome["status"] == "failed":
        print(outcome["output_tail"], flush=True)


def write_json(path: Path, value: object) -> None:
    """Replace a file atomically, so that an interrupted run leaves a complete one."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps(value, indent=1))
    os.replace(partial, path)


def run_suite(path: Path, budget_s: float, only: Collection[str] = ()) -> bool:
    """Run the stages of `only`, or all if it is empty; return True if none failed.

    The result is in the file `path` after every stage.
    """
    outcomes: dict[str, dict[str, object]] = {}
    result = {
        "gpu": torch.cuda.get_device_name(),
        "capability": torch.cuda.get_device_capability(),
        "torch": torch.__version__,
        "stages": outcomes,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    for name, outcome in run_all(budget_s, only):
        outcomes[name] = outcome
        write_json(path, result)
        report(name, outcome)
    return all(outcome["status"] != "failed" for outcome in outcomes.values())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, required=True, help="JSON file for the result")
    parser.add_argument("--budget-s", type=float, default=BUDGET_S, help="seconds for all stages")
    parser.add_argument("--only", default="", help="names of stages, with commas; all by default")
    options = parser.parse_args()
    only = set(filter(None, options.only.split(",")))
    known = {stage.name for stage in stages(Path())}
    if not only <= known:
        parser.error(f"--only={options.only} names no stage; choose among {', '.join(known)}")
    if not torch.cuda.is_available():
        parser.error("no GPU on this machine; the GPU figures stay not measured")
    # A signal ends the suite through the same clean-up as Ctrl-C, so that no stage keeps running.
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    return int(not run_suite(options.json, options.budget_s, only))


if __name__ == "__main__":
    sys.exit(main())
