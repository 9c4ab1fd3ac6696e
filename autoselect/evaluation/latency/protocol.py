"""Prefill latency, full against pruned, with the selector's own cost beside it.

Protocol: fixed prompt and image, warm-up, interleaved rounds, medians with 5th and 95th percentile.
The stages of `evaluation/latency/stages.py` are timed apart. On request the LLM and the selector
are also timed compiled (`torch.compile`; on a GPU with CUDA graphs, since fixed K means fixed
shapes), in the same rounds as the eager calls.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from autoselect.evaluation.latency.environment import environment
from autoselect.evaluation.latency.stages import (
    Call,
    Prompt,
    answer_calls,
    bound,
    kept_sequences,
    language_calls,
    named,
    selector_calls,
    vision_calls,
)
from autoselect.evaluation.latency.timing import Timing, measure

COMPILED = "compiled "
MOST_SHAPES = 256


@dataclass(frozen=True)
class LatencyPlan:
    """What is timed; `repeats` None is 100 on a GPU and 20 on a CPU, warm-up 20 and 3.

    Attributes:
        budgets: tokens kept.
        batch_size: equal rows.
        repeats: measured rounds.
        warmup: rounds before.
        compiled: time the LLM and the selector compiled, too.
    """

    budgets: tuple[int, ...]
    batch_size: int = 1
    repeats: int | None = None
    warmup: int | None = None
    compiled: bool = False

    def rounds(self, device: torch.device) -> tuple[int, int]:
        """Measured and warm-up rounds on `device`."""
        on_gpu = device.type == "cuda"
        repeats = self.repeats if self.repeats is not None else (100 if on_gpu else 20)
        warmup = self.warmup if self.warmup is not None else (20 if on_gpu else 3)
        return repeats, warmup


@torch.inference_mode()
def latency_report(
    vlm: Any, selector: Any, image: Image.Image, question: str, plan: LatencyPlan
) -> dict[str, Any]:
    """Time one prompt at every budget: medians in milliseconds, the distribution in `timings`.

    Args:
        vlm: a `FrozenVLM`.
        selector: a `Selector` for its tokens.
        image: the image of every row of the batch.
        question: the question of every row.
        plan: budgets, batch size and rounds.
    """
    device = torch.device(vlm.device)
    repeats, warmup = plan.rounds(device)
    prompt = Prompt.of(vlm, [image] * plan.batch_size, [question] * plan.batch_size)
    calls = {
        **vision_calls(vlm, prompt),
        **selector_calls(selector, prompt, plan.budgets),
        **language_calls(vlm, selector, prompt, plan.budgets, vlm.prefill),
    }
    memory = _Memory(device)  # asked before there are calls that hold a cache each
    peaks = {
        budget: memory.peak(calls[named("prefill", budget)]) for budget in (None, *plan.budgets)
    }
    calls |= answer_calls(vlm, selector, prompt, plan.budgets)
    if plan.compiled:
        calls |= _compiled_calls(vlm, selector, prompt, plan.budgets)
    with _many_shapes():
        timings = measure(calls, repeats, warmup, device)
    machine = environment(device)
    lengths = {
        budget: prompt.text["input_ids"].shape[1] - prompt.tokens.shape[1] + tokens.shape[1]
        for budget, tokens, _ in kept_sequences(selector, prompt, plan.budgets)
    }

    def stages(budget: int | None) -> dict[str, Any]:
        found: dict[str, Any] = {
            f"{stage}_ms": timings[named(stage, budget)].median
            for stage in ("prefill", "llm", "first_token", "decode")
        }
        found["kv_cache_bytes"] = kv_cache_bytes(vlm, lengths[budget], plan.batch_size)
        found["peak_memory_bytes"] = peaks[budget]
        return found

    return {
        "full_prefill_ms": timings["full_prefill"].median,
        "full": stages(None),
        "pruned": [_pruned_row(timings, budget) | stages(budget) for budget in plan.budgets],
        "vision_ms": timings["vision"].median,
        "tower_ms": timings["tower"].median if "tower" in timings else None,
        "projector_ms": timings["projector"].median if "projector" in timings else None,
        "scorer_ms": timings["scorer"].median,
        "compiled": _compiled_report(timings, plan.budgets, device) if plan.compiled else None,
        **protocol(vlm, plan, device),
        "peak_memory_bytes": memory.highest,
        "timings": {name: timing.summary() for name, timing in timings.items()},
        "environment": machine,
    }


def protocol(vlm: Any, plan: LatencyPlan, device: torch.device) -> dict[str, Any]:
    """How it was measured, as a sentence and as values."""
    repeats, warmup = plan.rounds(device)
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


def _pruned_row(timings: dict[str, Timing], budget: int) -> dict[str, Any]:
    full, vision = timings["full_prefill"].median, timings["vision"].median
    prefill, selection = (timings[f"{part}@{budget}"].median for part in ("prefill", "selector"))
    return {
        "budget": budget,
        "select_ms": timings[f"select@{budget}"].median,
        "selector_ms": selection,
        "speedup": full / (prefill + selection),
        "speedup_with_vision": (vision + full) / (vision + prefill + selection),
        "speedup_first_token": timings["full_first_token"].median
        / timings[f"first_token@{budget}"].median,
    }


def _compiled_calls(
    vlm: Any, selector: Any, prompt: Prompt, budgets: tuple[int, ...]
) -> dict[str, Call]:
    """The calls that fixed shapes allow to compile, named `compiled ...`."""
    mode = "reduce-overhead" if torch.device(vlm.device).type == "cuda" else "default"

    def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
        return torch.compile(function, mode=mode, dynamic=False)

    calls = language_calls(vlm, selector, prompt, budgets, compiled(vlm.prefill))
    select = compiled(selector.select)
    for budget in budgets:
        calls[f"selector@{budget}"] = bound(select, prompt.tokens, budget, prompt.mask)
    return {f"{COMPILED}{name}": call for name, call in calls.items()}


def _compiled_report(
    timings: dict[str, Timing], budgets: tuple[int, ...], device: torch.device
) -> dict[str, Any]:
    full = timings[f"{COMPILED}full_prefill"].median
    rows = []
    for budget in budgets:
        prefill, llm, selection = (
            timings[f"{COMPILED}{part}@{budget}"].median for part in ("prefill", "llm", "selector")
        )
        rows.append(
            {
                "budget": budget,
                "prefill_ms": prefill,
                "llm_ms": llm,
                "selector_ms": selection,
                "speedup": full / (prefill + selection),
            }
        )
    how = "torch.compile with CUDA graphs" if device.type == "cuda" else "torch.compile"
    llm = timings[f"{COMPILED}full_llm"].median
    return {"how": how, "full_prefill_ms": full, "full_llm_ms": llm, "pruned": rows}


@contextmanager
def _many_shapes() -> Iterator[None]:
    """Every budget is a shape of its own: let the compiler keep them all instead of giving up."""
    from torch import _dynamo

    with _dynamo.config.patch(recompile_limit=MOST_SHAPES):  # type: ignore[attr-defined]
        yield


class _Memory:
    """Peak memory of calls on a GPU; None elsewhere, where nothing tells it."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.highest: int | None = None

    def peak(self, call: Call) -> int | None:
        """Bytes allocated at most while `call` runs, weights and libraries' workspaces included."""
        if self.device.type != "cuda":
            return None
        call()  # a first call allocates workspaces that stay
        torch.cuda.synchronize(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        call()
        torch.cuda.synchronize(self.device)
        found = int(torch.cuda.max_memory_allocated(self.device))
        self.highest = max(found, self.highest or 0)
        return found


def attention_backend(vlm: Any) -> str:
    """Name of the attention implementation of the language model."""
    config = vlm.model.config
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    return str(getattr(text, "_attn_implementation", "unknown"))


def kv_cache_bytes(vlm: Any, length: int, batch_size: int = 1) -> int:
    """Bytes of keys and values of `length` positions in every layer of the LLM."""
    config = vlm.model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    size = torch.empty((), dtype=vlm.dtype).element_size()
    return 2 * config.num_hidden_layers * heads * width * length * batch_size * size
