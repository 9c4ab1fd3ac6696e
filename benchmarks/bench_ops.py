"""How fast are the native operators, compared with their references and a plain copy?

    python benchmarks/bench_ops.py --device cpu --json FILE [--rounds N] [--seconds S]

Every contender of a case is timed once per round, in turn, so that a disturbance affects all of
them. The values are medians; `best_ms` holds the fastest sample of each. A case ends after its
rounds or its seconds, but not before five rounds. The floor is the time to copy the bytes that the
operator must move: 1 copy of the tokens forward, 2.5 forward and backward (tokens in, gated out;
gradient and tokens in, gradient out), 2 if nobody needs the tokens' gradient. On a GPU the floor is
a graph replay, like `native_graph`. A copy that fits a cache is timed from that cache: small floors
show the speed of the L2 cache, not of its memory.

The default noise, with a covariance factor, is timed beside the per-channel noise (`channel_ms`),
diverse top-K beside hard top-K (`hard_ms`), each with its gather.

`plain_ms` is the time of code without this package: torch.randn noise for the gate, torch.topk +
sort + gather for the selection. On a GPU the gate's threshold comes from a float32 bisection that
does not wait for the device. On a CPU, which can stop early without waiting, it comes from the
package's Newton reference.

The rows are written after every case, so an interrupted run keeps its measurements.

On a machine that others use at the same time, `--clock processor --threads 1` counts the processor
time of the call instead of wall time.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from autoselect.files.atomic import write_text
from autoselect.ops import build_info
from autoselect.ops.diverse_top_k import diverse_top_k, diverse_top_k_reference
from autoselect.ops.hard_top_k import select_tokens, select_tokens_reference, tokens_at
from autoselect.ops.noise import NoiseKey, NoiseStatistics
from autoselect.ops.noise_gate import (
    soft_top_k_noise_gate,
    soft_top_k_noise_gate_reference,
)
from autoselect.ops.soft_top_k import (
    soft_top_k,
    soft_top_k_logits_reference,
    soft_top_k_reference,
)

TEMPERATURE = 0.3
LEAST_ROUNDS = 5
CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}
FROZEN = "forward+backward of scores"
COPIES = {"forward": 1.0, "forward+backward": 2.5, FROZEN: 2.0}
RANK = 64  # of the covariance factor, the default
DIVERSITY = 0.4
HALVINGS = 30
GRAPHED = {"native": "native_graph", "floor": "floor"}
SMALL_FLOORS = "Floors of small cases are cache speed (on a GPU, L2), not memory speed."


@dataclass
class Case:
    """One operator at one size; each contender is called without arguments."""

    op: str
    dtype: torch.dtype
    shape: list[int]
    direction: str
    contenders: dict[str, Callable[[], object]]
    floor_scale: float = 1.0
    samples: dict[str, list[float]] = field(default_factory=dict)


def forward_and_backward(function, leaves: list[Tensor], upstream: Tensor, direction: str):
    def forward():
        with torch.no_grad():
            return function()

    def both():
        output = function()
        return torch.autograd.grad(output, leaves, upstream)

    return forward if direction == "forward" else both


def copy_of(source: Tensor) -> Callable[[], Tensor]:
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def soft_top_k_case(device, batch: int, n: int, direction: str, compiled: bool) -> Case:
    scores = torch.randn(batch, n, device=device, requires_grad=True)
    upstream = torch.randn(batch, n, device=device)
    k = n // 9
    functions = {"native": soft_top_k, "reference": soft_top_k_reference}
    if compiled:
        functions["compiled"] = torch.compile(soft_top_k_reference)
    contenders = {
        name: forward_and_backward(
            lambda op=op: op(scores, k, TEMPERATURE), [scores], upstream, direction
        )
        for name, op in functions.items()
    }
    contenders["floor"] = copy_of(scores.detach())
    scale = COPIES[direction]
    return Case("soft_top_k", torch.float32, [batch, n], direction, contenders, scale)


def bisected_logits(scores: Tensor, k: int, temperature: float) -> Tensor:
    """Return the gate logits of a soft top-K, float32, [B, N], by bisection and a final step.

    The step is Newton's in value and the implicit gradient in derivative; nothing is read on the
    host.
    """
    scores = scores.float()
    with torch.no_grad():
        low = scores.amin(-1, keepdim=True) - 20 * temperature
        high = scores.amax(-1, keepdim=True) + 20 * temperature
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            above = torch.sigmoid((scores - middle) / temperature).sum(-1, keepdim=True) > k
            low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    u = (scores - (low + high) / 2) / temperature
    gates = torch.sigmoid(u)
    slope = (gates * (1 - gates)).sum(-1, keepdim=True).detach()
    return u - (gates.sum(-1, keepdim=True) - k) / slope


PLAIN_LOGITS = {"cpu": soft_top_k_logits_reference, "cuda": bisected_logits}


def plain_gate(tokens, scores, k, temperature, channels, _noise_key):
    """The gate as one would write it in eager PyTorch, with torch.randn noise that is stored."""
    logits = PLAIN_LOGITS[scores.device.type](scores, k, temperature).to(torch.float32)
    a = torch.exp(logsigmoid(logits) / 2)[..., None]
    b = torch.exp(logsigmoid(-logits) / 2)[..., None]
    noise = channels.std * torch.randn(tokens.shape, device=tokens.device)
    gated = channels.mean + a * (tokens.float() - channels.mean) + b * noise
    return gated.to(tokens.dtype), torch.sigmoid(logits)


def gate_call(op, inputs: tuple[Tensor, Tensor], rank: int) -> Callable[[], Tensor]:
    """Return a call of a gate operator on tokens [B, N, D] and scores [B, N]."""
    tokens, scores = inputs
    (batch, n, width), device = tokens.shape, tokens.device
    mean, std = torch.randn(width, device=device), torch.rand(width, device=device)
    factor = torch.randn(rank, width, device=device) / rank**0.5 if rank else None
    statistics_of_tokens = NoiseStatistics(mean, std, factor)
    number = torch.tensor(1, device=device)
    key = NoiseKey(number, number, torch.arange(batch, device=device))
    return lambda: op(tokens, scores, n // 9, TEMPERATURE, statistics_of_tokens, key)[0]


def gate_case(device, shape, dtype: torch.dtype, direction: str, compiled: bool) -> Case:
    inputs = gate_inputs(device, shape, dtype)
    upstream = torch.randn(shape, device=device).to(dtype)
    functions = {
        "native": soft_top_k_noise_gate,
        "reference": soft_top_k_noise_gate_reference,
        "plain": plain_gate,
    }
    if compiled:
        functions["compiled"] = torch.compile(soft_top_k_noise_gate_reference)
    contenders = {
        name: forward_and_backward(gate_call(op, inputs, 0), [*inputs], upstream, direction)
        for name, op in functions.items()
    }
    contenders["floor"] = copy_of(inputs[0].detach())
    scale = COPIES[direction]
    return Case("soft_top_k_noise_gate", dtype, list(shape), direction, contenders, scale)


def gate_inputs(device, shape, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    tokens = torch.randn(shape, device=device).to(dtype).requires_grad_()
    return tokens, torch.randn(shape[:2], device=device, requires_grad=True)


def factor_case(device, shape, dtype: torch.dtype, direction: str, large: bool) -> Case:
    """Time the default noise (`native`) beside the per-channel one, and beside its reference.

    Args:
        device: where the tensors lie.
        shape: B, N, D.
        dtype: dtype of the tokens.
        direction: a key of `COPIES`; `FROZEN` computes the gradient of the scores alone.
        large: leave out the reference, whose noise would fill the memory.
    """
    inputs = gate_inputs(device, shape, dtype)
    upstream = torch.randn(shape, device=device).to(dtype)
    leaves = [*inputs]
    if direction == FROZEN:
        inputs = (inputs[0].detach(), inputs[1])
        leaves = [inputs[1]]
    functions = {"native": (soft_top_k_noise_gate, RANK), "channel": (soft_top_k_noise_gate, 0)}
    if not large:
        functions["reference"] = (soft_top_k_noise_gate_reference, RANK)
    contenders = {
        name: forward_and_backward(gate_call(op, inputs, rank), leaves, upstream, direction)
        for name, (op, rank) in functions.items()
    }
    contenders["floor"] = copy_of(inputs[0].detach())
    scale = COPIES[direction]
    return Case("default_noise_gate", dtype, list(shape), direction, contenders, scale)


def diverse_case(device, shape, k: int, dtype: torch.dtype) -> Case:
    """Time diverse top-K with its gather, beside hard top-K with its gather (`hard`).

    The tokens resemble each other as those of an image do: mixtures of a few centres.
    """
    batch, n, width = shape
    share = torch.softmax(4 * torch.randn(batch, n, 12, device=device), -1)
    noise = torch.randn(shape, device=device)
    tokens = (share @ torch.randn(batch, 12, width, device=device) + 0.3 * noise + 1).to(dtype)
    scores = torch.randn(batch, n, device=device)

    def gathered(op):
        return tokens_at(tokens, op(scores, tokens, k, DIVERSITY))

    contenders = {
        "native": lambda: gathered(diverse_top_k),
        "reference": lambda: gathered(diverse_top_k_reference),
        "hard": lambda: select_tokens(tokens, scores, k),
        "floor": copy_of(tokens[:, :k].contiguous()),
    }
    return Case("diverse_top_k", dtype, [*shape, k], "forward", contenders)


def plain_select(tokens, scores, k):
    indices = torch.topk(scores, k, dim=-1).indices.sort(dim=-1).values
    return tokens.gather(1, indices[..., None].expand(-1, -1, tokens.shape[2])), indices


def select_case(device, shape, k: int, dtype: torch.dtype, compiled: bool) -> Case:
    tokens = torch.randn(shape, device=device).to(dtype)
    scores = torch.randn(shape[:2], device=device)
    contenders = {
        "native": lambda: select_tokens(tokens, scores, k),
        "reference": lambda: select_tokens_reference(tokens, scores, k),
        "plain": lambda: plain_select(tokens, scores, k),
        "floor": copy_of(tokens[:, :k].contiguous()),
    }
    if compiled:
        function = torch.compile(select_tokens_reference)
        contenders["compiled"] = lambda: function(tokens, scores, k)
    return Case("select_tokens", dtype, [*shape, k], "forward", contenders)


def cases(device: torch.device, compiled: bool):
    """Yield the cases of a device one at a time, so that only one is in memory."""
    directions = ("forward", "forward+backward")
    for direction in directions:
        yield lambda d=direction: soft_top_k_case(device, 64, 576, d, compiled)
    if device.type == "cpu":
        shapes = [(8, 576, 1024)]
    else:
        yield lambda: soft_top_k_case(device, 1, 576, "forward", compiled)
        shapes = [(1, 576, 4096), (32, 576, 4096)]
    for shape in shapes:
        for dtype in (torch.float32, torch.bfloat16):
            for direction in directions:
                yield lambda s=shape, t=dtype, d=direction: gate_case(device, s, t, d, compiled)
    for shape in shapes:
        for dtype in (torch.float32, torch.bfloat16):
            for direction in COPIES:
                yield lambda s=shape, t=dtype, d=direction: factor_case(device, s, t, d, False)
    for direction in COPIES:
        yield lambda d=direction: factor_case(device, (32, 576, 4096), torch.bfloat16, d, True)
    for shape in ((1, 576, 4096), (8, 576, 1024)):
        yield lambda s=shape: select_case(device, s, 64, torch.bfloat16, compiled)
        yield lambda s=shape: diverse_case(device, s, 64, torch.bfloat16)


@dataclass(frozen=True)
class Stopwatch:
    """Time calls on a device; `clock` names one of `CLOCKS` and is used on a CPU."""

    device: torch.device
    clock: str

    def milliseconds(self, call: Callable[[], object], repeats: int) -> float:
        """Return the milliseconds of one call, averaged over `repeats` calls."""
        if self.device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            for _ in range(repeats):
                call()
            end.record()
            end.synchronize()
            return start.elapsed_time(end) / repeats
        now = CLOCKS[self.clock]
        begin = now()
        for _ in range(repeats):
            call()
        return (now() - begin) * 1e3 / repeats


def graph_of(call: Callable[[], object]) -> Callable[[], None]:
    """Capture the call as a CUDA graph, to time it without launch overhead.

    The graph reads the tensors of the call, so what is returned keeps the call alive.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return partial(_replay, graph, call)


def _replay(graph: torch.cuda.CUDAGraph, _kept_alive: object) -> None:
    graph.replay()


def measure(case: Case, watch: Stopwatch, rounds: int, seconds: float) -> dict[str, object]:
    """Measure one case in interleaved rounds; return its medians as a row of the result."""
    if watch.device.type == "cuda":
        graphs = {name: graph_of(case.contenders[eager]) for eager, name in GRAPHED.items()}
        case.contenders |= graphs
    repeats = {}
    for name, call in case.contenders.items():
        watch.milliseconds(call, 2)
        repeats[name] = max(1, min(200, round(2.0 / watch.milliseconds(call, 1))))
        case.samples[name] = []
    names = list(case.contenders)
    begin = time.monotonic()
    for number in range(rounds):
        if number >= LEAST_ROUNDS and time.monotonic() - begin > seconds:
            break
        for name in names[number % len(names) :] + names[: number % len(names)]:
            sample = watch.milliseconds(case.contenders[name], repeats[name])
            case.samples[name].append(sample)
    row: dict[str, object] = {
        "op": case.op,
        "device": watch.device.type,
        "dtype": str(case.dtype).removeprefix("torch."),
        "shape": case.shape,
        "direction": case.direction,
    }
    row |= {f"{name}_ms": statistics.median(values) for name, values in case.samples.items()}
    row["floor_ms"] = statistics.median(case.samples["floor"]) * case.floor_scale
    row.setdefault("compiled_ms", None)
    row["best_ms"] = {name: min(values) for name, values in case.samples.items()}
    row["best_ms"]["floor"] *= case.floor_scale
    row["samples_ms"] = case.samples
    return row


def run(watch: Stopwatch, rounds: int, seconds: float, compiled: bool, path: Path | None) -> None:
    """Measure all cases of a device; print each row and write the rows so far to the file."""
    rows = []
    for make in cases(watch.device, compiled):
        rows.append(measure(make(), watch, rounds, seconds))
        print(table_line(rows[-1]), flush=True)
        if path:
            write_text(path, json.dumps(rows, indent=1))
    print(SMALL_FLOORS)


def table_line(row: dict[str, object]) -> str:
    shape = "x".join(map(str, row["shape"]))
    columns = (
        "native",
        "native_graph",
        "channel",
        "hard",
        "reference",
        "plain",
        "compiled",
        "floor",
    )
    times = (
        f"{name} {row[f'{name}_ms']:.4f} ({row[f'{name}_ms'] / row['native_ms']:.2f}x)"
        for name in columns
        if row.get(f"{name}_ms") is not None
    )
    best = row["best_ms"]
    ratios = ", ".join(f"{name} {value / best['native']:.2f}x" for name, value in best.items())
    head = f"{row['op']} {row['dtype']} {shape} {row['direction']}"
    return f"{head}: {', '.join(times)} ms; fastest samples: {ratios}"


def machine(device: torch.device) -> dict[str, object]:
    info = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    info |= {"threads": torch.get_num_threads(), "load": os.getloadavg(), "build": build_info()}
    cpu = Path("/proc/cpuinfo")
    if cpu.exists():
        names = [line for line in cpu.read_text().splitlines() if line.startswith("model name")]
        info["processor"] = names[0].split(":")[1].strip() if names else info["processor"]
    if device.type == "cuda":
        info["gpu"] = torch.cuda.get_device_name(device)
    return info


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", type=Path, help="JSON file for the rows")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=60.0, help="time limit of one case")
    parser.add_argument("--clock", choices=sorted(CLOCKS), default="wall")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of PyTorch")
    parser.add_argument("--no-compile", action="store_true", help="do not time torch.compile")
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: no GPU on this machine; its figures stay not measured")
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    if options.json:
        facts = json.dumps(machine(device) | {"clock": options.clock}, indent=1)
        write_text(options.json.with_suffix(".machine.json"), facts)
    watch = Stopwatch(device, options.clock)
    run(watch, options.rounds, options.seconds, not options.no_compile, options.json)


if __name__ == "__main__":
    main()
