"""`autoselect bench prefill`: the latency protocol over several batch sizes, without evaluation."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from autoselect.config import ConfigError
from autoselect.config.row_names import SELECTOR
from autoselect.evaluation.latency.calls import Prompt
from autoselect.evaluation.latency.protocol import LatencyPlan, Rounds, latency_report
from autoselect.evaluation.loading import load_pair
from autoselect.pruning.budget import parse_budgets

QUESTION = "what is in the image ?"
IMAGE_SIZE = 336
STAGES = ("vision", "prefill", "first_token", "decode")
SPEEDUPS = (
    "Times in ms. Prefill: one forward of the attached model on encoded images, with selection, "
    "rewriting of the call and language model inside; the selector's own part stands beside. "
    "Before the encoder: the language model alone; the encoder on the kept patches stands beside. "
    "With vision: first token from pixels, through generate, on both sides."
)


def bench_prefill(
    model: str,
    selector: str,
    budgets: str,
    batches: Sequence[int],
    rounds: Rounds | None = None,
    device: str | None = None,
) -> dict[str, Any]:
    """Measure the latency of full and pruned prefill on a fixed image and prompt.

    Args:
        budgets: tokens or ratios, comma-separated.
        batches: batch sizes.
        rounds: how often, and what, is measured; `Rounds()` by default.
        device: device name; None for a GPU if PyTorch sees one, else the CPU.

    Raises:
        ConfigError: a setting does not fit.
    """
    if not batches or min(batches) < 1:
        raise ConfigError(f"batches={list(batches)} must be one or more sizes of at least 1")
    vlm, trained = load_pair(model, selector, device)
    image = fixed_image()
    prompt = Prompt.of(vlm, image, QUESTION, 1, trained.site)
    num_tokens = prompt.tokens.shape[1]
    text_tokens = prompt.inputs["input_ids"].shape[1] - num_tokens
    counts = parse_budgets(budgets, num_tokens)
    runs = []
    for size in batches:
        plan = LatencyPlan(counts, size, rounds or Rounds())
        run = latency_report(vlm, {SELECTOR: trained}, image, QUESTION, plan)
        run["kv_cache_bytes"] = {str(num_tokens): run["full"]["kv_cache_bytes"]} | {
            str(row["budget"]): row["kv_cache_bytes"] for row in run["pruned"]
        }
        runs.append(run)
    return {
        "model": vlm.name,
        "site": trained.site,
        "num_tokens": num_tokens,
        "text_tokens": text_tokens,
        "budgets": list(counts),
        "environment": runs[0]["environment"],
        "runs": runs,
    }


def bench_lines(result: dict[str, Any]) -> list[str]:
    """Return a result of `bench_prefill` as a table for the terminal, in milliseconds."""
    names = (
        "batch",
        "tokens",
        "selector",
        "vision",
        "prefill",
        "first token",
        "decode",
        "KV MiB",
        "speedup",
    )
    lines = [" ".join(f"{name:>11}" for name in (*names, "with vision"))]

    def line(batch: int, row: dict[str, Any]) -> str:
        numbers = [row.get(f"{stage}_ms") for stage in ("selector", *STAGES)]
        numbers.append(row["kv_cache_bytes"] / 2**20)
        numbers += [row["speedup"], row["speedup_with_vision"]]
        shown = ("-" if number is None else f"{number:.2f}" for number in numbers)
        return " ".join(f"{cell:>11}" for cell in [str(batch), str(row["budget"]), *shown])

    for run in result["runs"]:
        vision = {"vision_ms": run["vision_ms"]}  # the same for all, unless rows have their own
        full = {"budget": result["num_tokens"], "speedup": 1.0, "speedup_with_vision": 1.0}
        rows = [full | run["full"], *run["pruned"]]
        lines += [line(run["batch_size"], vision | row) for row in rows]
        if run["compiled"]:
            compiled = run["compiled"]
            lines.append(f"{compiled['how']}: full prefill {compiled['full_prefill_ms']:.2f} ms")
            lines += [
                f"  {row['budget']} tokens: prefill {row['prefill_ms']:.2f}, selector "
                f"{row['selector_ms']:.2f}, speedup {row['speedup']:.2f}"
                for row in compiled["pruned"]
            ]
    protocols = dict.fromkeys(run["protocol"] for run in result["runs"])
    return [*lines, *protocols, SPEEDUPS]


def fixed_image() -> Image.Image:
    """Return an RGB image of noise, the same in every run."""
    pixels = np.random.default_rng(0).integers(0, 256, (IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)
    return Image.fromarray(pixels)
