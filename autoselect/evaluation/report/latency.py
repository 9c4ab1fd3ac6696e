"""Latency in a report: the table, its notes, and what each budget costs.

A row with `total_ms` times the attached call: its `prefill_ms` holds selection, splicing, host time
and language model. In a row without it, `selector_ms` comes on top of `prefill_ms`.
"""

from collections.abc import Mapping
from typing import Any

COLUMNS = {
    "selector ms": "selector_ms",
    "prefill ms": "prefill_ms",
    "total ms": "total_ms",
    "first token ms": "first_token_ms",
    "decode ms/token": "decode_ms",
    "KV MiB": "kv_cache_bytes",
    "speedup": "speedup",
    "with vision": "speedup_with_vision",
}
COSTS = (
    *("prefill_ms", "selector_ms", "total_ms", "speedup", "speedup_with_vision"),
    "kv_cache_bytes",
)
SHARED_TIMES = {"vision tower": "tower_ms", "projector": "projector_ms", "Scorer": "scorer_ms"}
MIB = 2**20


def times_attached_call(latency: Mapping[str, Any]) -> bool:
    """Return True if `prefill_ms` of the pruned rows includes the selector."""
    return any("total_ms" in row for row in latency["pruned"])


def expected_speedups(latency: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, float]:
    """Return the speedups that follow from the times of a pruned row, by key."""
    if "total_ms" not in row:
        milliseconds = row["prefill_ms"] + row["selector_ms"]
        return {"speedup": latency["full_prefill_ms"] / milliseconds}
    found = {"speedup": latency["full_prefill_ms"] / row["prefill_ms"]}
    if "total_ms" in latency.get("full", {}):
        found["speedup_with_vision"] = latency["full"]["total_ms"] / row["total_ms"]
    return found


def speedups(report: Mapping[str, Any]) -> dict[int, float]:
    """Return the prefill speedup at each timed budget."""
    return {row["budget"]: row["speedup"] for row in report["latency"]["pruned"]}


def costs(report: Mapping[str, Any]) -> dict[int, dict[str, float]]:
    """Return the measured times, speedups and cache bytes by budget."""
    return {
        row["budget"]: {name: row[name] for name in COSTS if row.get(name) is not None}
        for row in report["latency"]["pruned"]
    }


def latency_table(report: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return head and rows of the latency table, the full model first.

    A column that no row has is left out; a single missing number is shown as a dash.
    """
    latency = report["latency"]
    full = {"speedup": 1.0, "speedup_with_vision": 1.0, "prefill_ms": latency["full_prefill_ms"]}
    rows = [full | latency.get("full", {}), *latency["pruned"]]
    shown = {
        name: key
        for name, key in COLUMNS.items()
        if any(row.get(key) is not None for row in latency["pruned"])
    }
    names = [f"{report['num_tokens']} (full)", *(str(row["budget"]) for row in latency["pruned"])]
    cells = [
        [name, *(_number(row.get(key), key) for key in shown.values())]
        for name, row in zip(names, rows, strict=True)
    ]
    inside = times_attached_call(latency)
    head = [f"{name} (in prefill)" if inside and name == "selector ms" else name for name in shown]
    return ["tokens", *head], cells


def _number(value: float | None, key: str) -> str:
    if value is None:
        return "–"
    return f"{value / MIB if key == 'kv_cache_bytes' else value:.2f}"


def latency_notes(latency: Mapping[str, Any]) -> list[str]:
    """Return what the columns of the latency table mean, and times that all budgets share."""
    if times_attached_call(latency):
        notes = [
            "Prefill is the attached call: selection, splicing, host time and language model, "
            "without the vision encoder. The selector's own time is part of it. Speedup is full "
            "prefill / pruned prefill; total and speedup with vision include the encoder."
        ]
    else:
        notes = [
            "Speedup is full prefill / (pruned prefill + selector); speedup with vision adds the "
            "vision tower and the projector to both sides."
        ]
    if any("first_token_ms" in row for row in latency["pruned"]):
        notes.append("First token is measured from pixels to logits.")
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
