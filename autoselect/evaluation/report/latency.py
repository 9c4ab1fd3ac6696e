"""Latency in a report: what each budget costs, and the notes of the table.

`prefill_ms` of a pruned row is one call of the attached model: selection, rewriting of the call,
host time and language model. `selector_ms` is the selector's own part of it. With a selector before
the vision encoder `prefill_ms` is the language model alone, and `vision_ms` differs by budget.
"""

from collections.abc import Mapping
from typing import Any

from autoselect.config.row_names import SELECTOR
from autoselect.evaluation.methods.context import PATCHES

COSTS = (
    *("prefill_ms", "selector_ms", "first_token_ms", "speedup", "speedup_with_vision"),
    "kv_cache_bytes",
)
SHARED_TIMES = {"vision tower": "tower_ms", "projector": "projector_ms", "Scorer": "scorer_ms"}


def expected_speedups(latency: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, float]:
    """Return the speedups that follow from the times of a pruned row, by key."""
    found = {"speedup": latency["full_prefill_ms"] / row["prefill_ms"]}
    first = latency.get("full", {}).get("first_token_ms")
    if first is not None and row.get("first_token_ms") is not None:
        found["speedup_with_vision"] = first / row["first_token_ms"]
    return found


def timed(report: Mapping[str, Any]) -> dict[str, dict[int, dict[str, Any]]]:
    """Return the timed calls of a report, by row name and budget."""
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for row in report["latency"]["pruned"]:
        found.setdefault(row.get("method", SELECTOR), {})[row["budget"]] = row
    return found


def speedups(report: Mapping[str, Any]) -> dict[int, float]:
    """Return the first selector's prefill speedup at each budget."""
    return {budget: row["speedup"] for budget, row in timed(report)[SELECTOR].items()}


def costs(report: Mapping[str, Any]) -> dict[tuple[str, int], dict[str, float]]:
    """Return the measured times, speedups and cache bytes by row name and budget."""
    return {
        (name, budget): {key: row[key] for key in COSTS if row.get(key) is not None}
        for name, rows in timed(report).items()
        for budget, row in rows.items()
    }


def latency_notes(latency: Mapping[str, Any]) -> list[str]:
    """Return what the columns of the latency table mean, and times that all budgets share."""
    if latency.get("site") == PATCHES:
        return [
            "The vision encoder sees the kept patches only: vision (embeddings, encoder and "
            "projector), selector and prefill (the language model alone) are timed one by one. "
            "Speedup is full prefill / pruned prefill. First token is `generate` of one token, "
            "from pixels on, with all of them; speedup with vision is its ratio."
        ]
    notes = [
        "Prefill is one call of the attached model on encoded images: selection, rewriting of the "
        "call, host time and language model. The selector's own time is part of it. Speedup is "
        "full prefill / pruned prefill. First token is `generate` of one token, from pixels on; "
        "speedup with vision is its ratio."
    ]
    known = [
        f"{name} {latency[key]:.2f} ms" for name, key in SHARED_TIMES.items() if latency.get(key)
    ]
    if known:
        notes.append(f"The same for every budget: {', '.join(known)}.")
    compiled = latency.get("compiled")
    if compiled:
        rows = ", ".join(
            f"{row['budget']} tokens {row['prefill_ms']:.2f} + {row['selector_ms']:.2f} ms "
            f"({row['speedup']:.2f} x)"
            for row in compiled["pruned"]
        )
        notes.append(
            f"With {compiled['how']}: full prefill {compiled['full_prefill_ms']:.2f} ms; pruned "
            f"prefill + selector {rows}."
        )
    return notes
