"""Interleaved timing: every call once per round, so that drift of the machine affects all alike."""

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch

Clock = Callable[[], float]


@dataclass(frozen=True)
class Call:
    """A timed call.

    Attributes:
        run: the call.
        around: context manager entered before the clock starts and left after it stops.
    """

    run: Callable[[], object]
    around: Callable[[], AbstractContextManager] = nullcontext


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one call over all rounds."""

    samples: tuple[float, ...]

    def summary(self) -> dict[str, object]:
        """Return median, 5th and 95th percentile, and all samples in order, in milliseconds."""
        p5, median, p95 = np.quantile(self.samples, [0.05, 0.5, 0.95])
        spread = {"median_ms": float(median), "p5_ms": float(p5), "p95_ms": float(p95)}
        return {**spread, "samples_ms": [round(sample, 4) for sample in self.samples]}

    @property
    def median(self) -> float:
        return float(np.median(self.samples))


def measure(
    calls: Mapping[str, Call],
    repeats: int,
    warmup: int,
    device: torch.device | str = "cpu",
    clock: Clock = time.perf_counter,
) -> dict[str, Timing]:
    """Time each call `repeats` times, interleaved; the order rotates by one each round.

    `warmup` rounds come first, not measured. On a GPU the time is taken between CUDA events with a
    synchronisation after every call. `clock` returns seconds; only tests replace it.
    """
    names = list(calls)
    samples: dict[str, list[float]] = {name: [] for name in names}
    on_gpu = torch.device(device).type == "cuda"
    # Events are recorded on the current device, which need not be that of the calls.
    with torch.cuda.device(device) if on_gpu else nullcontext():
        for round_ in range(warmup + repeats):
            turn = round_ % len(names)
            for name in names[turn:] + names[:turn]:
                call = calls[name]
                with call.around():
                    elapsed = _on_gpu(call.run) if on_gpu else _on_cpu(call.run, clock)
                if round_ >= warmup:
                    samples[name].append(elapsed)
    return {name: Timing(tuple(values)) for name, values in samples.items()}


def _on_cpu(call: Callable[[], object], clock: Clock) -> float:
    start = clock()
    call()
    return 1000 * (clock() - start)


def _on_gpu(call: Callable[[], object]) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()  # type: ignore[no-untyped-call]
    call()
    end.record()  # type: ignore[no-untyped-call]
    torch.cuda.synchronize()
    return float(start.elapsed_time(end))
