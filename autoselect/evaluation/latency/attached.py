"""Prefill latency where prompts are written by the model's own processor: full against pruned.

The same protocol as `evaluation/latency/protocol.py`, on calls of the stock `forward` with
features that are encoded before; first token and decoding are not timed apart here.
"""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from PIL import Image

from autoselect.evaluation.answers.asking import AskedVLM
from autoselect.evaluation.latency.environment import environment
from autoselect.evaluation.latency.protocol import (
    LatencyPlan,
    kv_cache_bytes,
    latency_report,
    protocol,
)
from autoselect.evaluation.latency.stages import Call, bound
from autoselect.evaluation.latency.timing import measure
from autoselect.pruning.selection import keep_mask, select
from autoselect.vlm.adapter import VisualAdapter
from autoselect.vlm.conversation import layout_before, prune_call


def prefill_latency(
    vlm: Any, selector: Any, image: Image.Image, question: str, plan: LatencyPlan
) -> dict[str, Any]:
    """`latency_report` for models whose prompts it can write, else `attached_latency`."""
    measured = latency_report if vlm.is_spliced else attached_latency
    return measured(vlm, selector, image, question, plan)


@torch.inference_mode()
def attached_latency(
    vlm: Any, selector: Any, image: Image.Image, question: str, plan: LatencyPlan
) -> dict[str, Any]:
    """Time one prompt at every budget; arguments and result as `latency.latency_report`."""
    device = torch.device(vlm.device)
    repeats, warmup = plan.rounds(device)
    asked, adapter = AskedVLM(vlm), VisualAdapter(vlm.model)
    prompts = [asked.prompt(1, question)] * plan.batch_size
    inputs = asked.inputs([[image]] * plan.batch_size, prompts)
    outputs = adapter.encode(inputs)
    blocks = adapter.blocks(inputs["input_ids"], outputs)
    layout = layout_before(adapter, None, inputs["input_ids"])
    length = inputs["input_ids"].shape[1]

    def untouched() -> object:
        """The untouched model behind the same encoder."""
        call = adapter.with_outputs(inputs, outputs)
        return vlm.model(**call, **last_logits(vlm.model), use_cache=True)

    def choose(budget: int) -> torch.Tensor:
        chosen = select(adapter, selector, blocks, outputs, [budget] * len(blocks))
        return keep_mask(chosen, inputs["input_ids"].shape, device)

    def pruned(keep: torch.Tensor) -> object:
        call, _, _ = prune_call(adapter, inputs, outputs, keep, layout)
        return vlm.model(**call, **last_logits(vlm.model), use_cache=True)

    tokens, mask = adapter.tokens(blocks, outputs)
    calls: dict[str, Call] = {
        "vision": lambda: adapter.encode(inputs),
        "scorer": lambda: selector.score(tokens, mask),
        "full_prefill": untouched,
    }
    lengths = {}
    for budget in plan.budgets:
        keep = choose(budget)
        lengths[budget] = int(keep[0].sum())
        calls[f"selector@{budget}"] = bound(choose, budget)
        calls[f"prefill@{budget}"] = bound(pruned, keep)
    timings = measure(calls, repeats, warmup, device)
    machine = environment(device)
    full, vision = timings["full_prefill"].median, timings["vision"].median

    def row(budget: int) -> Mapping[str, Any]:
        prefill, chosen = (timings[f"{part}@{budget}"].median for part in ("prefill", "selector"))
        return {
            "budget": budget,
            "prefill_ms": prefill,
            "selector_ms": chosen,
            "speedup": full / (prefill + chosen),
            "speedup_with_vision": (vision + full) / (vision + prefill + chosen),
            "kv_cache_bytes": kv_cache_bytes(vlm, lengths[budget], plan.batch_size),
        }

    return {
        "full_prefill_ms": full,
        "full": {
            "prefill_ms": full,
            "kv_cache_bytes": kv_cache_bytes(vlm, length, plan.batch_size),
        },
        "pruned": [row(budget) for budget in plan.budgets],
        "vision_ms": vision,
        "scorer_ms": timings["scorer"].median,
        "compiled": None,
        **protocol(vlm, plan, device),
        "timings": {name: timing.summary() for name, timing in timings.items()},
        "environment": machine,
    }


def last_logits(model: Any) -> dict[str, int]:
    """Asks for the logits of the last position alone, where the model can be asked."""
    known = inspect.signature(model.forward).parameters
    return {"logits_to_keep": 1} if "logits_to_keep" in known else {}
