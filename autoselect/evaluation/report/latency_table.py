"""The table of a report about times, speedups and the KV cache."""

from collections.abc import Mapping
from typing import Any

from autoselect.config.row_names import SELECTOR
from autoselect.evaluation.methods.context import PATCHES
from autoselect.evaluation.report.latency import timed
from autoselect.evaluation.report.tables import BOUND, OTHER, Table, TableCell, TableRow

COLUMNS = {
    "vision ms": "vision_ms",
    "selector ms": "selector_ms",
    "prefill ms": "prefill_ms",
    "first token ms": "first_token_ms",
    "decode ms/token": "decode_ms",
    "KV MiB": "kv_cache_bytes",
    "speedup": "speedup",
    "with vision": "speedup_with_vision",
}
MIB = 2**20


def latency_table(report: Mapping[str, Any]) -> Table:
    """Return the times of the full model, then those of each selector at each budget.

    A column that no row has is left out; a single missing number is shown as a dash. The names of
    the rows come first if several selectors were timed.
    """
    latency, several = report["latency"], len(timed(report)) > 1
    full = {"speedup": 1.0, "speedup_with_vision": 1.0, "prefill_ms": latency["full_prefill_ms"]}
    shown = {
        name: key
        for name, key in COLUMNS.items()
        if any(row.get(key) is not None for row in latency["pruned"])
    }

    def row(method: str, tokens: str, times: Mapping[str, Any], kind: str) -> TableRow:
        texts = [tokens, *(_number(times.get(key), key) for key in shown.values())]
        return TableRow([*map(TableCell, [*([method] if several else []), *texts])], kind)

    rows = [row("", f"{report['num_tokens']} (full)", full | latency.get("full", {}), BOUND)]
    for own in latency["pruned"]:
        rows.append(row(own.get("method", SELECTOR), str(own["budget"]), own, OTHER))
    inside = latency.get("site") != PATCHES
    head = [f"{name} (in prefill)" if name == "selector ms" and inside else name for name in shown]
    return Table([*(["method"] if several else []), "tokens", *head], rows, labels=int(several))


def _number(value: float | None, key: str) -> str:
    if value is None:
        return "–"
    return f"{value / MIB if key == 'kv_cache_bytes' else value:.2f}"
