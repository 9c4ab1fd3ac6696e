"""Prefill latency, full against pruned, with the selector's own cost beside it.

Protocol: fixed prompt and image, warm-up, interleaved rounds, medians with 5th and 95th percentile.
The vision tower, the Scorer, the whole selector (Scorer, top-K and gather) and the LLM's prefill
(embedding, splicing of the visual tokens and forward pass to the first token) are timed apart.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from autoselect.evaluation.environment import environment
from autoselect.evaluation.timing import Timing, measure


@dataclass(frozen=True)
class LatencyPlan:
    """What is timed; `repeats` None is 100 on a GPU and 20 on a CPU, warm-up 20 and 3."""

    budgets: tuple[int, ...]
    batch_size: int = 1
    repeats: int | None = None
    warmup: int | None = None

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
    images, questions = [image] * plan.batch_size, [question] * plan.batch_size
    calls = _calls(vlm, selector, images, questions, plan.budgets)
    timings = measure(calls, repeats, warmup, device)
    return {
        "full_prefill_ms": timings["full_prefill"].median,
        "pruned": [_pruned_row(timings, budget) for budget in plan.budgets],
        "vision_ms": timings["vision"].median,
        "scorer_ms": timings["scorer"].median,
        "batch_size": plan.batch_size,
        "repeats": repeats,
        "warmup": warmup,
        "protocol": (
            f"Batch {plan.batch_size}, {repeats} interleaved rounds after {warmup} of warm-up, "
            f"medians; {device.type}, {str(vlm.dtype).removeprefix('torch.')}, attention "
            f"{attention_backend(vlm)}, {torch.get_num_threads()} threads."
        ),
        "device": str(device),
        "dtype": str(vlm.dtype).removeprefix("torch."),
        "attention": attention_backend(vlm),
        "peak_memory_bytes": _peak_memory(device),
        "timings": {name: timing.summary() for name, timing in timings.items()},
        "environment": environment(),
    }


def _calls(
    vlm: Any, selector: Any, images: list[Image.Image], questions: list[str], budgets: Sequence[int]
) -> dict[str, Callable[[], object]]:
    pixels = vlm.pixel_inputs(images)
    visual = vlm.encode(pixels)
    tokens, mask = visual.tokens, visual.mask
    prompt = vlm.prompt(questions)
    calls: dict[str, Callable[[], object]] = {
        "vision": lambda: vlm.encode(pixels),
        "scorer": lambda: selector.score(tokens, mask),
        "full_prefill": lambda: vlm.prefill(vlm.prefix(prompt, tokens, None)),
    }
    for budget in budgets:
        kept, positions = selector.select(tokens, budget, mask)

        def select(budget: int = budget) -> object:
            return selector.select(tokens, budget, mask)

        def prefill(kept: Any = kept, positions: Any = positions) -> object:
            return vlm.prefill(vlm.prefix(prompt, kept, positions))

        calls[f"selector@{budget}"] = select
        calls[f"prefill@{budget}"] = prefill
    return calls


def _pruned_row(timings: dict[str, Timing], budget: int) -> dict[str, float]:
    full, vision = timings["full_prefill"].median, timings["vision"].median
    prefill, selection = (timings[f"{part}@{budget}"].median for part in ("prefill", "selector"))
    return {
        "budget": budget,
        "prefill_ms": prefill,
        "selector_ms": selection,
        "speedup": full / (prefill + selection),
        "speedup_with_vision": (vision + full) / (vision + prefill + selection),
    }


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


def _peak_memory(device: torch.device) -> int | None:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
