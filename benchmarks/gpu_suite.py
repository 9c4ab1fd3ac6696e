"""One command for a bare CUDA machine: build, GPU tests, sanitizer, and the benchmarks.

    python benchmarks/gpu_suite.py --json FILE [--budget-s 570]

Needs a GPU, nvcc, ninja, a CUDA build of PyTorch and pytest; no network. Every stage is a process
of its own with a time limit, so that one that fails or hangs does not take the others along. A
stage that could not run is named in the result with its reason; its figures are not measured.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
BENCHMARKS = Path(__file__).parent

SMALL_CASE = """
import torch
from autoselect.ops.hard_top_k import select_tokens
from autoselect.ops.noise_gate import NoiseKey, soft_top_k_noise_gate
torch.manual_seed(0)
for dtype, n, width in ((torch.float32, 63, 130), (torch.bfloat16, 300, 64), (torch.float16, 5, 7)):
    x = torch.randn(2, n, width, device="cuda").to(dtype).requires_grad_()
    r = torch.randn(2, n, device="cuda", requires_grad=True)
    mask = torch.rand(2, n, device="cuda") > 0.2
    mean, std = torch.randn(width, device="cuda"), torch.rand(width, device="cuda")
    key = NoiseKey(1, 2, torch.arange(2, device="cuda"))
    factor = torch.randn(3, width, device="cuda")
    gated, gates = soft_top_k_noise_gate(x, r, 3, 0.3, mean, std, key, mask, factor)
    kept, _ = select_tokens(gated, r, 3, mask)
    (kept.float().sum() + gates.sum()).backward()
    assert x.grad.isfinite().all() and r.grad.isfinite().all()
torch.cuda.synchronize()
"""


@dataclass(frozen=True)
class Stage:
    """A command with a time limit in seconds; `result` is a JSON file that it writes."""

    name: str
    command: list[str]
    limit_s: float
    result: Path | None = None
    optional_tool: str | None = None


def stages(folder: Path) -> list[Stage]:
    """What runs, in order; the limits leave room within ten minutes."""
    python = sys.executable
    ops, prefill = folder / "ops.json", folder / "prefill.json"
    tests = [python, "-m", "pytest", "tests/ops", "-q", "-m", "not slow"]
    tests += ["-k", "cuda and not emulation and not sources", "-p", "no:cacheprovider"]
    sanitize = ["compute-sanitizer", "--error-exitcode", "9", "--tool"]
    small = [python, "-c", SMALL_CASE]
    bench = [python, str(BENCHMARKS / "bench_ops.py"), "--device", "cuda", "--json", str(ops)]
    language = [python, str(BENCHMARKS / "bench_prefill.py"), "--json", str(prefill)]
    return [
        Stage("build", [python, "setup.py", "build_ext", "--inplace"], 240),
        Stage("tests", tests, 150),
        Stage("memcheck", [*sanitize, "memcheck", *small], 60, optional_tool="compute-sanitizer"),
        Stage("racecheck", [*sanitize, "racecheck", *small], 60, optional_tool="compute-sanitizer"),
        Stage("ops", [*bench, "--no-compile"], 120, ops),
        Stage("prefill", language, 180, prefill),
    ]


def environment() -> dict[str, str]:
    """The environment of all stages: this tree's package, and this GPU's architecture alone."""
    major, minor = torch.cuda.get_device_capability()
    return {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "FORCE_CUDA": "1",
        "TORCH_CUDA_ARCH_LIST": os.environ.get("TORCH_CUDA_ARCH_LIST", f"{major}.{minor}"),
        "AUTOSELECT_REQUIRE_NATIVE": "1",
    }


def run_stage(stage: Stage, limit_s: float) -> dict[str, object]:
    """Runs one stage; says how it ended, how long it took and what it found."""
    if stage.optional_tool and shutil.which(stage.optional_tool) is None:
        return {"status": "not run", "reason": f"{stage.optional_tool} is not installed"}
    begin = time.monotonic()
    try:
        done = subprocess.run(
            stage.command,
            cwd=ROOT,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=limit_s,
        )
    except subprocess.TimeoutExpired:
        return {"status": "failed", "reason": f"not finished after {limit_s:.0f} s"}
    outcome: dict[str, object] = {
        "status": "passed" if done.returncode == 0 else "failed",
        "seconds": round(time.monotonic() - begin, 1),
        "output_tail": (done.stdout + done.stderr)[-3000:],
    }
    if stage.result is not None and stage.result.exists():
        outcome["result"] = json.loads(stage.result.read_text())
    return outcome


def run_all(budget_s: float) -> dict[str, dict[str, object]]:
    """All stages within the budget; after a failed build nothing else is tried."""
    begin = time.monotonic()
    outcomes: dict[str, dict[str, object]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for stage in stages(Path(folder)):
            left = budget_s - (time.monotonic() - begin)
            if outcomes.get("build", {}).get("status") == "failed":
                outcomes[stage.name] = {"status": "not run", "reason": "the build failed"}
            elif left < 10:
                outcomes[stage.name] = {"status": "not run", "reason": "no time was left"}
            else:
                outcomes[stage.name] = run_stage(stage, min(stage.limit_s, left))
            outcome = outcomes[stage.name]
            print(f"{stage.name}: {outcome['status']} {outcome.get('reason', '')}", flush=True)
            if outcome["status"] == "failed":
                print(outcome.get("output_tail", ""), flush=True)
    return outcomes


def main() -> int:
    """Command line; 0 when every stage that ran has passed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, required=True, help="write the result there")
    parser.add_argument("--budget-s", type=float, default=570.0, help="seconds for everything")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("no GPU on this machine; the GPU figures stay not measured")
    result = {
        "gpu": torch.cuda.get_device_name(),
        "capability": torch.cuda.get_device_capability(),
        "torch": torch.__version__,
        "stages": run_all(options.budget_s),
    }
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(result, indent=1))
    return int(any(stage["status"] == "failed" for stage in result["stages"].values()))


if __name__ == "__main__":
    sys.exit(main())
