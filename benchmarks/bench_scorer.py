"""How does the Scorer's time grow with the number of visual tokens, with and without its blocks?

    python benchmarks/bench_scorer.py --json FILE [--device cpu] [--width 4096] [--seconds S]

One image of N tokens, N from 576 to 16,384. `blocks` has the two transformer blocks of the recipes,
whose attention compares all tokens; `fast` has none (`scorer.num_layers: 0`) and scores each token
alone, in time linear in N. `attention` is the part of the blocks that grows with N^2. Contenders
take turns; the values are medians in milliseconds, processor time on a CPU, and events on a GPU.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from autoselect.config import ScorerConfig
from autoselect.evaluation.latency.environment import environment
from autoselect.files.atomic import write_text
from autoselect.method.scorer import Scorer

SIZES = (576, 1152, 2304, 4096, 8192, 16384)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
HIDDEN, HEADS, LAYERS = 256, 4, 2
LEAST_ROUNDS = 3


def contenders(
    count: int, width: int, dtype: torch.dtype, device: str
) -> dict[str, Callable[[], object]]:
    tokens = torch.randn(1, count, width, device=device, dtype=dtype)
    heads = torch.randn(1, HEADS, count, HIDDEN // HEADS, device=device, dtype=dtype)

    def scorer(layers: int) -> Callable[[], object]:
        built = Scorer(width, ScorerConfig(HIDDEN, layers, HEADS)).to(device).eval()
        return lambda: built.infer(tokens)

    def attention() -> None:
        for _ in range(LAYERS):
            F.scaled_dot_product_attention(heads, heads, heads)

    return {"blocks": scorer(LAYERS), "attention": attention, "fast": scorer(0)}


def timed(call: Callable[[], object], device: str) -> float:
    """Return the milliseconds of one call."""
    if device == "cpu":
        started = time.process_time()
        call()
        return 1000 * (time.process_time() - started)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    call()
    end.record()
    torch.cuda.synchronize()
    return float(begin.elapsed_time(end))


def measure(calls: dict[str, Callable[[], object]], device: str, seconds: float) -> dict:
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    until = time.monotonic() + seconds
    while len(samples["fast"]) < LEAST_ROUNDS or time.monotonic() < until:
        for name, call in calls.items():
            samples[name].append(timed(call, device))
    medians = {f"{name}_ms": round(float(np.median(own)), 4) for name, own in samples.items()}
    return {**medians, "samples_ms": samples}


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, required=True, help="JSON file for the results")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--width", type=int, default=4096, help="D, channels of a visual token")
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)), help="N, comma-separated")
    parser.add_argument("--dtypes", default=",".join(DTYPES), help="comma-separated")
    parser.add_argument("--seconds", type=float, default=5.0, help="time of each size")
    options = parser.parse_args()
    if options.device == "cpu":
        torch.set_num_threads(1)
    rows = []
    for dtype in options.dtypes.split(","):
        for size in map(int, options.sizes.split(",")):
            calls = contenders(size, options.width, DTYPES[dtype], options.device)
            row = measure(calls, options.device, options.seconds)
            rows.append({"dtype": dtype, "tokens": size, "width": options.width, **row})
            result = {"environment": environment(options.device), "rows": rows}
            write_text(options.json, json.dumps(result, indent=1) + "\n")
            shown = ", ".join(f"{name} {row[f'{name}_ms']:.2f} ms" for name in calls)
            print(f"{dtype}, N = {size}: {shown}", flush=True)


if __name__ == "__main__":
    main()
