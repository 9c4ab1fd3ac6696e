"""`autoselect bench prefill`: the latency protocol over several batch sizes, without evaluation."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from autoselect.config import ConfigError
from autoselect.evaluation.attached import check_attached, prompt_lengths
from autoselect.evaluation.attached_latency import prefill_latency
from autoselect.evaluation.budgets import parse_budgets
from autoselect.evaluation.latency import LatencyPlan
from autoselect.evaluation.likelihood import GENERATION
from autoselect.evaluation.loading import load_pair

QUESTION = "what is in the image ?"
IMAGE_SIZE = 336
STAGES = ("prefill", "first_token", "decode")


def bench_prefill(
    model: str,
    selector: str,
    budgets: str,
    batches: Sequence[int],
    repeats: int | None = None,
    warmup: int | None = None,
    device: str | None = None,
    compiled: bool = False,
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
        compiled: time the LLM and the selector compiled, too.

    Raises:
        ConfigError: a setting that does not fit.
    """
    if not batches or min(batches) < 1:
        raise ConfigError(f"batches={list(batches)} must be one or more sizes of at least 1")
    vlm, trained = load_pair(model, selector, device)
    image = fixed_image()
    if not vlm.is_spliced:
        check_attached(GENERATION, compiled)
    num_tokens, text_tokens = prompt_lengths(vlm, image, QUESTION)
    counts = parse_budgets(budgets, num_tokens)
    runs = []
    for size in batches:
        plan = LatencyPlan(counts, size, repeats, warmup, compiled)
        run = prefill_latency(vlm, trained, image, QUESTION, plan)
        run["kv_cache_bytes"] = {str(num_tokens): run["full"]["kv_cache_bytes"]} | {
            str(row["budget"]): row["kv_cache_bytes"] for row in run["pruned"]
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


def bench_lines(result: dict[str, Any]) -> list[str]:
    """The result as a table for the terminal; milliseconds.

    Args:
        result: of `bench_prefill`.
    """
    names = ("batch", "tokens", "selector", "prefill", "first token", "decode", "KV MiB", "speedup")
    lines = [" ".join(f"{name:>11}" for name in names)]

    def line(batch: int, tokens: int, row: dict[str, Any], selector: str, speedup: float) -> str:
        numbers = [row[f"{stage}_ms"] if f"{stage}_ms" in row else None for stage in STAGES]
        numbers.append(row["kv_cache_bytes"] / 2**20)
        shown = ("-" if number is None else f"{number:.2f}" for number in numbers)
        cells = [str(batch), str(tokens), selector, *shown]
        return " ".join(f"{cell:>11}" for cell in [*cells, f"{speedup:.2f}"])

    for run in result["runs"]:
        batch = run["batch_size"]
        lines.append(line(batch, result["num_tokens"], run["full"], "-", 1.0))
        for row in run["pruned"]:
            selector = f"{row['selector_ms']:.2f}"
            lines.append(line(batch, row["budget"], row, selector, row["speedup"]))
        if run["compiled"]:
            compiled = run["compiled"]
            lines.append(f"{compiled['how']}: full prefill {compiled['full_prefill_ms']:.2f} ms")
            lines += [
                f"  {row['budget']} tokens: prefill {row['prefill_ms']:.2f}, selector "
                f"{row['selector_ms']:.2f}, speedup {row['speedup']:.2f}"
                for row in compiled["pruned"]
            ]
    return lines


def fixed_image() -> Image.Image:
    """Always the same noise, RGB."""
    pixels = np.random.default_rng(0).integers(0, 256, (IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)
    return Image.fromarray(pixels)
