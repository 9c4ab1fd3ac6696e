"""`autoselect bench prefill`: the latency protocol over several batch sizes, without evaluation."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from autoselect.config import ConfigError
from autoselect.evaluation.budgets import parse_budgets
from autoselect.evaluation.latency import LatencyPlan, kv_cache_bytes, latency_report
from autoselect.evaluation.loading import load_pair

QUESTION = "what is in the image ?"
IMAGE_SIZE = 336


def bench_prefill(
    model: str,
    selector: str,
    budgets: str,
    batches: Sequence[int],
    repeats: int | None = None,
    warmup: int | None = None,
    device: str | None = None,
) -> dict[str, Any]:
    """Latency of full and pruned prefill on a fixed image and prompt.

    Args:
        model: folder or hub name of the VLM.
        selector: folder of the selector.
        budgets: tokens or ratios, comma-separated.
        batches: batch sizes.
        repeats: measured rounds; the default of `LatencyPlan` when None.
        warmup: rounds before; the default of `LatencyPlan` when None.
        device: a GPU where there is one by default.

    Raises:
        ConfigError: a setting that does not fit.
    """
    if not batches or min(batches) < 1:
        raise ConfigError(f"batches={list(batches)} must be one or more sizes of at least 1")
    vlm, trained = load_pair(model, selector, device)
    image = fixed_image()
    num_tokens = vlm.encode_images([image]).tokens.shape[1]
    counts = parse_budgets(budgets, num_tokens)
    text_tokens = vlm.prompt([QUESTION])["input_ids"].shape[1] - num_tokens
    runs = []
    for size in batches:
        plan = LatencyPlan(counts, size, repeats, warmup)
        run = latency_report(vlm, trained, image, QUESTION, plan)
        run["kv_cache_bytes"] = {
            str(count): kv_cache_bytes(vlm, text_tokens + count, size)
            for count in (num_tokens, *counts)
        }
        runs.append(run)
    return {
        "model": vlm.name,
        "num_tokens": num_tokens,
        "text_tokens": text_tokens,
        "budgets": list(counts),
        "environment": runs[0]["environment"],
        "runs": runs,
    }


def fixed_image() -> Image.Image:
    """Always the same noise, RGB."""
    pixels = np.random.default_rng(0).integers(0, 256, (IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)
    return Image.fromarray(pixels)
