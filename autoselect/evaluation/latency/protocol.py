"""Prefill latency of the calls that users make, full against pruned.

Protocol: fixed prompt and image, warm-up, interleaved rounds, medians with 5th and 95th percentile.
A selector is attached and detached outside the clock; everything that an attached call does is
inside. On request the compiled language model and selector are timed too (`torch.compile`; on a GPU
with CUDA graphs), in the same rounds as the eager calls.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from autoselect.config import ConfigError
from autoselect.evaluation.latency.caches import decode_calls, held_bytes
from autoselect.evaluation.latency.calls import (
    Call,
    Prompt,
    compiled_calls,
    kept_vision_calls,
    selector_calls,
    user_calls,
    vision_calls,
)
from autoselect.evaluation.latency.environment import environment
from autoselect.evaluation.latency.timing import Timing, measure

COMPILED = "compiled "
MOST_SHAPES = 256


@dataclass(frozen=True)
class Rounds:
    """How often, and what, is measured.

    Attributes:
        repeats: measured rounds; None is 100 on a GPU and 20 on a CPU.
        warmup: rounds before the measured ones; None is 20 on a GPU and 3 on a CPU.
        compiled: also time the compiled LLM and selector.

    Raises:
        ConfigError: nothing would be measured.
    """

    repeats: int | None = None
    warmup: int | None = None
    compiled: bool = False

    def __post_init__(self) -> None:
        if self.repeats is not None and self.repeats < 1:
            raise ConfigError(f"repeats={self.repeats} is below 1; give how many rounds to measure")
        if self.warmup is not None and self.warmup < 0:
            raise ConfigError(
                f"warmup={self.warmup} is below 0; give how many rounds run before, or 0"
            )

    def on(self, device: torch.device) -> tuple[int, int]:
        """Return the numbers of measured rounds and of those before them."""
        on_gpu = device.type == "cuda"
        repeats = self.repeats if self.repeats is not None else (100 if on_gpu else 20)
        warmup = self.warmup if self.warmup is not None else (20 if on_gpu else 3)
        return repeats, warmup


@dataclass(frozen=True)
class LatencyPlan:
    """Token budgets, the number of equal rows, and the rounds of a measurement."""

    budgets: tuple[int, ...]
    batch_size: int = 1
    rounds: Rounds = Rounds()


@torch.inference_mode()
def latency_report(
    vlm: Any, selector: Any, image: Image.Image, question: str, plan: LatencyPlan
) -> dict[str, Any]:
    """Time one prompt at every budget: medians in milliseconds, the distribution in `timings`.

    `vlm` is a `FrozenVLM` without a selector attached, `selector` a `Selector` of its width. Every
    row of the batch has the same image and question.
    """
    device, compile_too = torch.device(vlm.device), plan.rounds.compiled
    repeats, warmup = plan.rounds.on(device)
    prompt = Prompt.of(vlm, image, question, plan.batch_size, selector.site)
    calls = user_calls(vlm, selector, prompt, plan.budgets)
    memory = _Memory(device)  # measured before each decode call holds a cache
    peaks = {budget: memory.peak(calls[_named("prefill", budget)]) for budget in (0, *plan.budgets)}
    held = held_bytes(vlm, selector, prompt, plan.budgets)
    calls |= vision_calls(vlm, prompt) | selector_calls(selector, prompt, plan.budgets)
    calls |= decode_calls(vlm, selector, prompt, plan.budgets)
    calls |= kept_vision_calls(vlm, selector, prompt, plan.budgets)
    if compile_too:
        compiled = compiled_calls(vlm, selector, prompt, plan.budgets)
        calls |= {f"{COMPILED}{name}": call for name, call in compiled.items()}
    with _many_shapes():
        timings = measure(calls, repeats, warmup, device)
    machine = environment(device)
    return {
        "site": selector.site,
        **_stage_report(timings, held, peaks, plan.budgets),
        "compiled": _compiled_report(timings, plan.budgets, device) if compile_too else None,
        **protocol(vlm, plan, device),
        "peak_memory_bytes": memory.highest,
        "timings": {name: timing.summary() for name, timing in timings.items()},
        "environment": machine,
    }


def _stage_report(
    timings: dict[str, Timing],
    held: dict[int, int],
    peaks: dict[int, int | None],
    budgets: tuple[int, ...],
) -> dict[str, Any]:
    """Return the eager calls' times, and bytes, of the full model and of each budget.

    Args:
        timings: timings by the name of the call.
        held: bytes of the cache by budget; 0 is the full model.
        peaks: peak memory by budget, None on a CPU.
        budgets: tokens kept.
    """

    def row(budget: int) -> dict[str, Any]:
        found: dict[str, Any] = {
            f"{stage}_ms": timings[name].median
            for stage in ("prefill", "first_token", "decode")
            if (name := _named(stage, budget)) in timings
        }
        found["kv_cache_bytes"] = held[budget]
        found["peak_memory_bytes"] = peaks[budget]
        if "patches" in timings:  # the encoder sees the kept patches only
            own = f"vision@{budget}"
            found["vision_ms"] = timings["vision"].median
            if budget:
                found["vision_ms"] = timings["patches"].median + timings[own].median
        return found

    full = row(0)

    def pruned(budget: int) -> dict[str, Any]:
        own = row(budget)
        return {
            "budget": budget,
            **own,
            "selector_ms": timings[f"selector@{budget}"].median,
            "speedup": full["prefill_ms"] / own["prefill_ms"],
            "speedup_with_vision": full["first_token_ms"] / own["first_token_ms"],
        }

    return {
        "full_prefill_ms": full["prefill_ms"],
        "full": full,
        "pruned": [pruned(budget) for budget in budgets],
        "vision_ms": timings["vision"].median,
        "tower_ms": timings["tower"].median if "tower" in timings else None,
        "projector_ms": timings["projector"].median if "projector" in timings else None,
        "scorer_ms": timings["scorer"].median,
    }


def _named(stage: str, budget: int) -> str:
    return f"{stage}@{budget}" if budget else f"full_{stage}"


def protocol(vlm: Any, plan: LatencyPlan, device: torch.device) -> dict[str, Any]:
    """Return how it was measured, as a sentence and as values."""
    repeats, warmup = plan.rounds.on(device)
    dtype, attention = str(vlm.dtype).removeprefix("torch."), attention_backend(vlm)
    return {
        "batch_size": plan.batch_size,
        "repeats": repeats,
        "warmup": warmup,
        "protocol": (
            f"Batch {plan.batch_size}, {repeats} interleaved rounds after {warmup} of warm-up, "
            f"medians; {device.type}, {dtype}, attention {attention}, "
            f"{torch.get_num_threads()} threads."
        ),
        "device": str(device),
        "dtype": dtype,
        "attention": attention,
    }


def _compiled_report(
    timings: dict[str, Timing], budgets: tuple[int, ...], device: torch.device
) -> dict[str, Any]:
    """Return the compiled calls' times; a speedup counts selector plus pruned prefill."""
    full = timings[f"{COMPILED}full_prefill"].median
    rows = []
    for budget in budgets:
        prefill, selection = (
            timings[f"{COMPILED}{part}@{budget}"].median for part in ("prefill", "selector")
        )
        rows.append(
            {
                "budget": budget,
                "prefill_ms": prefill,
                "selector_ms": selection,
                "speedup": full / (prefill + selection),
            }
        )
    how = "torch.compile with CUDA graphs" if device.type == "cuda" else "torch.compile"
    return {"how": how, "full_prefill_ms": full, "pruned": rows}


@contextmanager
def _many_shapes() -> Iterator[None]:
    """Let the compiler keep the shapes of all budgets instead of giving up after a few."""
    from torch import _dynamo

    with _dynamo.config.patch(recompile_limit=MOST_SHAPES):  # type: ignore[attr-defined]
        yield


class _Memory:
    """Peak memory of calls on a GPU; None on a CPU."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.highest: int | None = None

    def peak(self, call: Call) -> int | None:
        """Return the most bytes allocated while `call` runs, weights and workspaces included."""
        if self.device.type != "cuda":
            return None
        with call.around():
            call.run()  # a first call allocates workspaces that stay
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            call.run()
            torch.cuda.synchronize(self.device)
        found = int(torch.cuda.max_memory_allocated(self.device))
        self.highest = max(found, self.highest or 0)
        return found


def attention_backend(vlm: Any) -> str:
    config = vlm.model.config
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    return str(getattr(text, "_attn_implementation", "unknown"))
