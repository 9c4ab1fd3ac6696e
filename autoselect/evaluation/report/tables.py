"""The tables of a report, the same for Markdown, HTML and terminal: cells with what they stand for.

A retention is marked where it is the best of its budget, the oracle aside, which is no competitor;
a difference where its 95 % interval excludes 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from autoselect.evaluation.methods.registry import SELECTOR

ORACLE = "oracle"
UPPER, LOWER = "upper bound", "lower bound (blind)"
BEST, BETTER, WORSE = "best", "better", "worse"
BOUND, BAND, OWN, OTHER = "bound", "band", "own", ""
TERMINAL_WIDTH = 118


@dataclass(frozen=True)
class Cell:
    """Text, and what it is marked as: `BEST`, `BETTER`, `WORSE` or nothing."""

    text: str
    mark: str = ""


@dataclass(frozen=True)
class Row:
    """Cells, and what the row is: `BOUND`, `BAND` (one cell over the table), `OWN`, ..."""

    cells: list[Cell]
    kind: str = OTHER


@dataclass(frozen=True)
class Table:
    """A head and rows of as many cells."""

    head: list[str]
    rows: list[Row]


def percent(value: float | None, digits: int = 1) -> str:
    """A fraction as per cent, a dash when there is none."""
    return "–" if value is None else f"{100 * value:.{digits}f}"


def span(ends: Sequence[float | None] | None) -> str:
    """An interval in per cent, a dash when there is none."""
    if ends is None or None in ends:
        return "–"
    return f"{percent(ends[0])} to {percent(ends[1])}"


def with_interval(value: float | None, ends: Sequence[float | None] | None) -> str:
    """`96.0 (94.2 to 97.8)`, or what of it is known."""
    interval = span(ends)
    return percent(value) if interval == "–" else f"{percent(value)} ({interval})"


def budgets_of(report: dict[str, Any]) -> list[int]:
    """K of the report, ascending."""
    return sorted({row["budget"] for row in report["rows"]})


def band(report: dict[str, Any], budget: int) -> list[dict[str, Any]]:
    """Rows of a budget, best first."""
    rows = [row for row in report["rows"] if row["budget"] == budget]
    return sorted(rows, key=lambda row: -(row["retention"] or 0.0))


def best_of(report: dict[str, Any], budget: int) -> set[str]:
    """Methods with the best shown retention at a budget, the oracle aside."""
    shown = {
        row["method"]: percent(row["retention"])
        for row in band(report, budget)
        if row["method"] != ORACLE and row["retention"] is not None
    }
    best = max(shown.values(), key=float, default=None)
    return {method for method, text in shown.items() if text == best}


def unscored_tasks(report: dict[str, Any]) -> list[str]:
    """Tasks in which the full model scores nothing, so that there is no retention."""
    return [task for task, score in report["full"]["tasks"].items() if not score]


def answer_line(report: dict[str, Any]) -> str:
    """What the selector keeps and saves at each budget, in one line."""
    speedups = {row["budget"]: row["speedup"] for row in report["latency"]["pruned"]}
    kept = []
    for row in sorted(report["rows"], key=lambda row: row["budget"]):
        if row["method"] != SELECTOR:
            continue
        budget = row["budget"]
        text = f"K={budget} keeps {percent(row['retention'])} % ({span(row['retention_ci95'])})"
        if budget in speedups:
            text += f", prefill {speedups[budget]:.2f} x as fast"
        best = "" if SELECTOR in best_of(report, budget) else _ahead(report, budget)
        kept.append(text + best)
    return "; ".join(kept)


def _ahead(report: dict[str, Any], budget: int) -> str:
    name = sorted(best_of(report, budget))
    if not name:
        return ""
    row = next(row for row in band(report, budget) if row["method"] == name[0])
    return f" (best: {name[0]} {percent(row['retention'])} %)"


def accuracy_table(report: dict[str, Any]) -> Table:
    """Both bounds, then a band per budget: accuracy per task, mean, retention and its interval."""
    tasks, count = list(report["full"]["tasks"]), report["num_tokens"]
    head = ["method", "tokens", *tasks, "mean", "retention", "95 % interval"]

    def row(name: str, tokens: int, scores: dict[str, Any], end: list[Cell], kind: str) -> Row:
        texts = [name, str(tokens), *(percent(scores["tasks"][task]) for task in tasks)]
        return Row([*map(Cell, [*texts, percent(scores["mean"])]), *end], kind)

    full = "–" if len(unscored_tasks(report)) == len(tasks) else "100.0"
    blind = report["blind"]
    ends = [Cell(percent(blind.get("retention"))), Cell(span(blind.get("retention_ci95")))]
    rows = [
        row(UPPER, count, report["full"], [Cell(full), Cell("–")], BOUND),
        row(LOWER, 0, blind, ends, BOUND),
    ]
    for budget in reversed(budgets_of(report)):
        rows.append(_band_row(budget, count))
        best = best_of(report, budget)
        for scores in band(report, budget):
            method = scores["method"]
            mark = BEST if method in best else ""
            end = [Cell(percent(scores["retention"]), mark), Cell(span(scores["retention_ci95"]))]
            rows.append(row(method, budget, scores, end, _kind(method)))
    return Table(head, rows)


def _band_row(budget: int, count: int) -> Row:
    return Row([Cell(f"{budget} of {count} tokens ({percent(budget / count)} %)")], BAND)


def _kind(method: str) -> str:
    return {SELECTOR: OWN, ORACLE: ORACLE}.get(method, OTHER)


def task_table(report: dict[str, Any]) -> Table:
    """Retention per task with its paired interval, a band per budget."""
    tasks, count = list(report["full"]["tasks"]), report["num_tokens"]
    rows = []
    for budget in reversed(budgets_of(report)):
        rows.append(_band_row(budget, count))
        shown = band(report, budget)
        best = {task: _best_in(shown, task) for task in tasks}
        for row in shown:
            kept, ends = row.get("retention_tasks", {}), row.get("retention_tasks_ci95", {})
            cells = [
                Cell(
                    with_interval(kept.get(task), ends.get(task)),
                    BEST if row["method"] in best[task] else "",
                )
                for task in tasks
            ]
            rows.append(Row([Cell(row["method"]), *cells], _kind(row["method"])))
    return Table(["method", *tasks], rows)


def _best_in(rows: Sequence[dict[str, Any]], task: str) -> set[str]:
    shown = {
        row["method"]: percent(row["retention_tasks"][task])
        for row in rows
        if row["method"] != ORACLE and task in row.get("retention_tasks", {})
    }
    best = max(shown.values(), key=float, default=None)
    return {method for method, text in shown.items() if text == best}


def retention_table(report: dict[str, Any], intervals: bool = True) -> Table:
    """Retention of every method, a column per budget; best mean first."""
    budgets = budgets_of(report)
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for row in report["rows"]:
        found.setdefault(row["method"], {})[row["budget"]] = row
    best = {budget: best_of(report, budget) for budget in budgets}

    def mean(method: str) -> float:
        return sum(row["retention"] or 0.0 for row in found[method].values())

    rows = []
    for method in sorted(found, key=mean, reverse=True):
        cells = [Cell(method)]
        for budget in budgets:
            row = found[method].get(budget, {})
            ends = row.get("retention_ci95") if intervals else None
            text = with_interval(row.get("retention"), ends)
            cells.append(Cell(text, BEST if method in best[budget] else ""))
        rows.append(Row(cells, _kind(method)))
    return Table(["method", *(f"{budget} tokens" for budget in budgets)], rows)


def difference_table(report: dict[str, Any]) -> Table:
    """Retention of the selector minus that of each other method, a column per budget, in points."""
    budgets = budgets_of(report)
    found = {(row["against"], row["budget"]): row for row in report["intervals"]}
    rows = []
    for method in dict.fromkeys(row["against"] for row in report["intervals"]):
        cells = [Cell(method)]
        for budget in budgets:
            row = found.get((method, budget))
            cells.append(Cell("–") if row is None else _difference(row))
        rows.append(Row(cells, _kind(method)))
    return Table(["against", *(f"{budget} tokens" for budget in budgets)], rows)


def _difference(row: dict[str, Any]) -> Cell:
    value, (low, high) = row["difference"], row["ci95"]
    if value is None or low is None:
        return Cell("–")
    mark = BETTER if low > 0 else WORSE if high < 0 else ""
    return Cell(f"{100 * value:+.1f} ({span((low, high))})", mark)


def latency_table(report: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the latency table, full model first; a dash where nothing was measured."""
    latency = report["latency"]
    full = {"prefill_ms": latency["full_prefill_ms"], **latency.get("full", {})}
    head = ["tokens", "selector ms", "prefill ms", "first token ms", "decode ms/token", "KV MiB"]
    head += ["speedup", "with vision"]
    rows = []
    for row in [full, *latency["pruned"]]:
        count = row.get("budget")
        cache = row.get("kv_cache_bytes")
        numbers = [
            row.get(f"{stage}_ms") for stage in ("selector", "prefill", "first_token", "decode")
        ]
        numbers.append(None if cache is None else cache / 2**20)
        numbers += [
            row.get(key, 1.0 if count is None else None)
            for key in ("speedup", "speedup_with_vision")
        ]
        cells = ["–" if number is None else f"{number:.2f}" for number in numbers]
        rows.append([f"{report['num_tokens']} (full)" if count is None else str(count), *cells])
    return head, rows


def markdown_table(table: Table) -> list[str]:
    """Lines of a Markdown table; marked cells and the selector's name are bold."""
    lines = ["| " + " | ".join(table.head) + " |", "|---|" + "---:|" * (len(table.head) - 1)]
    for row in table.rows:
        cells = [f"**{cell.text}**" if cell.mark else cell.text for cell in row.cells]
        if row.kind in (OWN, BAND):
            cells[0] = f"**{row.cells[0].text}**"
        cells += [""] * (len(table.head) - len(cells))
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def terminal_table(report: dict[str, Any]) -> str:
    """Retention by method and budget, then what it saves, in aligned columns."""
    table = _fitting(report)
    lines = [["retention in %", *table.head[1:]]]
    for row in table.rows:
        lines.append([cell.text + (" *" if cell.mark else "  ") for cell in row.cells])
    speeds = {row["budget"]: row for row in report["latency"]["pruned"]}
    for key, name in (("speedup", "prefill speedup"), ("speedup_with_vision", "with vision tower")):
        found = [speeds.get(budget, {}).get(key) for budget in budgets_of(report)]
        if any(found):
            lines.append([name, *("–  " if x is None else f"{x:.2f} x  " for x in found)])
    lines[0] = [lines[0][0], *(f"{name}  " for name in lines[0][1:])]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    shown = [
        line[0].ljust(widths[0])
        + "".join(
            f"  {cell.rjust(width)}" for cell, width in zip(line[1:], widths[1:], strict=True)
        )
        for line in lines
    ]
    note = (
        f"full model {percent(report['full']['mean'])} %, blind {percent(report['blind']['mean'])} "
        f"%; {report['images']} images, {report['questions']} questions; * best of its budget, "
        "the oracle aside"
    )
    return "\n".join([*(line.rstrip() for line in shown), note])


def _fitting(report: dict[str, Any]) -> Table:
    """With intervals where a terminal has room for them."""
    table = retention_table(report)
    width = sum(
        max(len(row.cells[i].text) for row in table.rows) + 4 for i in range(len(table.head))
    )
    return table if width <= TERMINAL_WIDTH else retention_table(report, intervals=False)
