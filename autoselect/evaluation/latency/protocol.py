"""Prefill latency of the calls that users make, full against pruned.

Protocol: fixed prompt and image, warm-up, interleaved rounds, medians with 5th and 95th percentile.
A selector is attached and detached outside the clock; everything that an attached call does is
inside. Further selectors are timed in the same rounds, without what depends on the budget alone:
cache, decoding step, peak memory. On request the compiled language model and first selector are
timed too (`torch.compile`; on a GPU with CUDA graphs).
"""

from collections.abc import Iterator, Mapping
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
    full_calls,
    pruned_calls,
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
    vlm: Any, selectors: Mapping[str, Any], image: Image.Image, question: str, plan: LatencyPlan
) -> dict[str, Any]:
    """Time one prompt at every budget: medians in milliseconds, the distribution in `timings`.

    Every row of the batch has the same image and question.

    Args:
        vlm: a `FrozenVLM` without a selector attached.
        selectors: each `Selector` by the name of its row, at least one.
        image: image of the prompt.
        question: question of the prompt.
        plan: budgets, batch and rounds.
    """
    device, compile_too = torch.device(vlm.device), plan.rounds.compiled
    repeats, warmup = plan.rounds.on(device)
    first, *others = selectors
    selector = selectors[first]
    prompt = Prompt.of(vlm, image, question, plan.batch_size, selector.site)
    calls = full_calls(vlm, prompt) | pruned_calls(vlm, selector, prompt, plan.budgets)
    memory = _Memory(device)  # measured before each decode call holds a cache
    peaks = {budget: memory.peak(calls[_named("prefill", budget)]) for budget in (0, *plan.budgets)}
    held = held_bytes(vlm, selector, prompt, plan.budgets)
    calls |= vision_calls(vlm, prompt) | decode_calls(vlm, selector, prompt, plan.budgets)
    for other in others:
        own = selectors[other]
        seen = Prompt.of(vlm, image, question, plan.batch_size, own.site)
        found = pruned_calls(vlm, own, seen, plan.budgets)
        calls |= {f"{other} {name}": call for name, call in found.items()}
    if compile_too:
        compiled = compiled_calls(vlm, selector, prompt, plan.budgets)
        calls |= {f"{COMPILED}{name}": call for name, call in compiled.items()}
    with _many_shapes():
        timings = measure(calls, repeats, warmup, device)
    machine = environment(device)
    return {
        "site": selector.site,
        **_stage_report(timings, held, peaks, plan.budgets, list(selectors)),
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
    names: list[str],
) -> dict[str, Any]:
    """Return the eager calls' times, and bytes, of the full model and of each row and budget.

    Args:
        timings: timings by the name of the call.
        held: bytes of the cache by budget; 0 is the full model.
        peaks: peak memory by budget, None on a CPU.
        budgets: tokens kept.
        names: names of the selectors' rows, the first one's calls have no prefix.
    """

    def row(budget: int, prefix: str = "") -> dict[str, Any]:
        found: dict[str, Any] = {
            f"{stage}_ms": timings[name].median
            for stage in ("prefill", "first_token", "decode")
            if (name := prefix + _named(stage, budget)) in timings
        }
        if not prefix:
            found["peak_memory_bytes"] = peaks[budget]
        found["kv_cache_bytes"] = held[budget]  # the same whichever tokens stay
        if f"{prefix}patches" in timings:  # the encoder sees the kept patches only
            found["vision_ms"] = timings["vision"].median
            if budget:
                own = timings[f"{prefix}vision@{budget}"].median
                found["vision_ms"] = timings[f"{prefix}patches"].median + own
        return found

    full = row(0)

    def pruned(number: int, name: str, budget: int) -> dict[str, Any]:
        prefix = f"{name} " if number else ""
        own = row(budget, prefix)
        return {
            "method": name,
            "budget": budget,
            **own,
            "selector_ms": timings[f"{prefix}selector@{budget}"].median,
            "speedup": full["prefill_ms"] / own["prefill_ms"],
            "speedup_with_vision": full["first_token_ms"] / own["first_token_ms"],
        }

    return {
        "full_prefill_ms": full["prefill_ms"],
        "full": full,
        "pruned": [pruned(n, name, k) for n, name in enumerate(names) for k in budgets],
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
