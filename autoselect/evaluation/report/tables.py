"""The tables of a report, as marked cells for Markdown, HTML and the terminal.

A retention is marked if it is the best of its budget; oracles do not compete. A difference is
marked if its 95 % interval excludes 0.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from autoselect.config.row_names import SELECTOR
from autoselect.evaluation.methods.names import ORACLES
from autoselect.evaluation.report.latency import speedups, timed

ORACLE = "oracle"
LEFT_OUT = "left_out"
"""Key of the reason of an analysis without numbers."""
UPPER, LOWER = "upper bound", "lower bound (blind)"
STRANGE = "lower bound (another image)"
BEST, BETTER, WORSE = "best", "better", "worse"
BOUND, BAND, OWN, OTHER = "bound", "band", "own", ""
TERMINAL_WIDTH = 118
RETENTION_NOTE = (
    "Retention is the mean over the tasks of score / full score, with its 95 % interval from a "
    "paired bootstrap over images. The best of each budget is bold; oracles do not compete."
)
DIFFERENCE_TITLE = f"Retention of {SELECTOR} minus each other method, in points"
DIFFERENCE_NOTE = "Paired by image, with 95 % intervals; those that exclude 0 are bold."


@dataclass(frozen=True)
class TableCell:
    """Text with its mark: `BEST`, `BETTER`, `WORSE` or an empty string."""

    text: str
    mark: str = ""


@dataclass(frozen=True)
class TableRow:
    """Cells with the kind of row: `BOUND`, `BAND` (one cell across the table), `OWN`, ..."""

    cells: list[TableCell]
    kind: str = OTHER


@dataclass(frozen=True)
class Table:
    """A head and rows; the first `labels` columns are texts, which Markdown aligns left."""

    head: list[str]
    rows: list[TableRow]
    labels: int = 1

    def columns(self) -> dict[str, list[str]]:
        """Return the texts below each cell of the head."""
        return {name: [row.cells[i].text for row in self.rows] for i, name in enumerate(self.head)}


def percent(value: float | None) -> str:
    """Return a fraction in per cent, or a dash for None."""
    return "–" if value is None else f"{100 * value:.1f}"


def span(ends: Sequence[float | None] | None) -> str:
    """Return an interval in per cent, or a dash if an end is missing."""
    if ends is None or None in ends:
        return "–"
    return f"{percent(ends[0])} to {percent(ends[1])}"


def with_interval(value: float | None, ends: Sequence[float | None] | None) -> str:
    """Return `96.0 (94.2 to 97.8)`, without the interval if it is unknown."""
    interval = span(ends)
    return percent(value) if interval == "–" else f"{percent(value)} ({interval})"


def budgets_of(report: dict[str, Any]) -> list[int]:
    """Return the token budgets in ascending order."""
    return sorted({row["budget"] for row in report["rows"]})


def band(report: dict[str, Any], budget: int) -> list[dict[str, Any]]:
    """Return the rows of one budget, best first."""
    rows = [row for row in report["rows"] if row["budget"] == budget]
    return sorted(rows, key=lambda row: -(row["retention"] or 0.0))


def best_of(report: dict[str, Any], budget: int) -> set[str]:
    """Return the methods with the best retention as shown, without the oracles."""
    return _best({row["method"]: row["retention"] for row in band(report, budget)})


def _best(retentions: Mapping[str, float | None]) -> set[str]:
    shown = {
        method: percent(kept)
        for method, kept in retentions.items()
        if method not in ORACLES and kept is not None
    }
    best = max(shown.values(), key=float, default=None)
    return {method for method, text in shown.items() if text == best}


def unscored_tasks(report: dict[str, Any]) -> list[str]:
    """Return the tasks without retention, because the full model scores 0 there."""
    return [task for task, score in report["full"]["tasks"].items() if not score]


def unscored_note(report: dict[str, Any]) -> str:
    """Return which tasks have no retention, and why."""
    names = ", ".join(unscored_tasks(report))
    return f"Left out of every retention, because the full model scores nothing there: {names}."


def analysis_notes(report: dict[str, Any]) -> list[str]:
    """Return which analyses are left out, and why."""
    found = report.get("analyses", {})
    return [analysis_note(kind, own[LEFT_OUT]) for kind, own in found.items() if LEFT_OUT in own]


def analysis_note(kind: str, reason: str) -> str:
    return f"The analysis {kind} is left out: {reason}."


def method_sources(report: dict[str, Any]) -> dict[str, str]:
    """Return what each row name of the accuracy table stands for."""
    bounds = {UPPER: "all tokens, the untouched model", LOWER: "no visual token at all"}
    if report.get("other_image"):
        bounds[STRANGE] = "all tokens of another image of the data set"
    return {**bounds, **report.get("methods", {})}


def answer_line(report: dict[str, Any]) -> str:
    """Return what the selector keeps and saves at each budget, in one line."""
    speedup = speedups(report)
    kept = []
    for row in sorted(report["rows"], key=lambda row: row["budget"]):
        if row["method"] != SELECTOR:
            continue
        budget = row["budget"]
        text = f"K={budget} keeps {percent(row['retention'])} % ({span(row['retention_ci95'])})"
        if budget in speedup:
            text += f", prefill {speedup[budget]:.2f} x as fast"
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

    def row(
        name: str, tokens: int, scores: dict[str, Any], end: list[TableCell], kind: str
    ) -> TableRow:
        texts = [name, str(tokens), *(percent(scores["tasks"][task]) for task in tasks)]
        return TableRow([*map(TableCell, [*texts, percent(scores["mean"])]), *end], kind)

    full = "–" if len(unscored_tasks(report)) == len(tasks) else "100.0"
    rows = [row(UPPER, count, report["full"], [TableCell(full), TableCell("–")], BOUND)]
    for name, tokens, unseen in lower_bounds(report):
        ends = [
            TableCell(percent(unseen.get("retention"))),
            TableCell(span(unseen.get("retention_ci95"))),
        ]
        rows.append(row(name, tokens, unseen, ends, BOUND))
    for budget in reversed(budgets_of(report)):
        rows.append(band_row(budget, count))
        best = best_of(report, budget)
        for scores in band(report, budget):
            method = scores["method"]
            mark = BEST if method in best else ""
            end = [
                TableCell(percent(scores["retention"]), mark),
                TableCell(span(scores["retention_ci95"])),
            ]
            rows.append(row(method, budget, scores, end, kind_of(method)))
    return Table(head, rows)


def lower_bounds(report: dict[str, Any]) -> list[tuple[str, int, dict[str, Any]]]:
    """Return (name, visual tokens, scores) of what the model answers without seeing the image."""
    rows = [(LOWER, 0, report["blind"])]
    if report.get("other_image"):
        rows.append((STRANGE, report["num_tokens"], report["other_image"]))
    return rows


def band_row(budget: int, count: int) -> TableRow:
    return TableRow([TableCell(f"{budget} of {count} tokens ({percent(budget / count)} %)")], BAND)


def kind_of(method: str) -> str:
    if method in ORACLES:
        return ORACLE
    return OWN if method == SELECTOR else OTHER


def task_table(report: dict[str, Any]) -> Table:
    """Return the retention of each task with its paired interval, in one band per budget."""
    tasks, count = list(report["full"]["tasks"]), report["num_tokens"]
    rows = []
    for budget in reversed(budgets_of(report)):
        rows.append(band_row(budget, count))
        shown = band(report, budget)
        kept_by = {row["method"]: row.get("retention_tasks", {}) for row in shown}
        best = {
            task: _best({method: kept.get(task) for method, kept in kept_by.items()})
            for task in tasks
        }
        for row in shown:
            kept, ends = kept_by[row["method"]], row.get("retention_tasks_ci95", {})
            cells = [
                TableCell(
                    with_interval(kept.get(task), ends.get(task)),
                    BEST if row["method"] in best[task] else "",
                )
                for task in tasks
            ]
            rows.append(TableRow([TableCell(row["method"]), *cells], kind_of(row["method"])))
    return Table(["method", *tasks], rows)


def retention_table(report: dict[str, Any], intervals: bool = True) -> Table:
    """Return the retention of every method, one column per budget, best mean first."""
    budgets = budgets_of(report)
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for row in report["rows"]:
        found.setdefault(row["method"], {})[row["budget"]] = row
    best = {budget: best_of(report, budget) for budget in budgets}

    def mean(method: str) -> float:
        return sum(row["retention"] or 0.0 for row in found[method].values())

    rows = []
    for method in sorted(found, key=mean, reverse=True):
        cells = [TableCell(method)]
        for budget in budgets:
            row = found[method].get(budget, {})
            ends = row.get("retention_ci95") if intervals else None
            text = with_interval(row.get("retention"), ends)
            cells.append(TableCell(text, BEST if method in best[budget] else ""))
        rows.append(TableRow(cells, kind_of(method)))
    return Table(["method", *(f"{budget} tokens" for budget in budgets)], rows)


def difference_table(report: dict[str, Any]) -> Table:
    """Return the selector's retention minus each other method's, in points, by budget."""
    budgets = budgets_of(report)
    found = {(row["against"], row["budget"]): row for row in report["intervals"]}
    rows = []
    for method in dict.fromkeys(row["against"] for row in report["intervals"]):
        cells = [TableCell(method)]
        for budget in budgets:
            row = found.get((method, budget))
            cells.append(TableCell("–") if row is None else _difference(row))
        rows.append(TableRow(cells, kind_of(method)))
    return Table(["against", *(f"{budget} tokens" for budget in budgets)], rows)


def _difference(row: dict[str, Any]) -> TableCell:
    value, (low, high) = row["difference"], row["ci95"]
    if value is None or low is None:
        return TableCell("–")
    mark = BETTER if low > 0 else WORSE if high < 0 else ""
    return TableCell(f"{100 * value:+.1f} ({span((low, high))})", mark)


def terminal_table(report: dict[str, Any]) -> str:
    """Return retention by method and budget, then the speedups, in aligned columns."""
    table = _fitting(report)
    lines = [["retention in %", *table.head[1:]]]
    for row in table.rows:
        lines.append([cell.text + (" *" if cell.mark else "  ") for cell in row.cells])
    rows = timed(report)
    for key, name in (("speedup", "prefill speedup"), ("speedup_with_vision", "with vision tower")):
        if len(rows) > 1:
            lines.append([name, *("" for _ in budgets_of(report))])
        for method, own in rows.items():
            found = [own.get(budget, {}).get(key) for budget in budgets_of(report)]
            shown_name = f"  {method}" if len(rows) > 1 else name
            if any(found):
                lines.append([shown_name, *("–  " if x is None else f"{x:.2f} x  " for x in found)])
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
        f"%; {report['images']} images, {report['questions']} questions; * best of its budget; "
        "oracles do not compete"
    )
    warnings = [f"warning: {text}" for text in report.get("warnings", [])]
    return "\n".join([*(line.rstrip() for line in shown), note, *warnings])


def _fitting(report: dict[str, Any]) -> Table:
    table = retention_table(report)
    width = sum(
        max(len(row.cells[i].text) for row in table.rows) + 4 for i in range(len(table.head))
    )
    return table if width <= TERMINAL_WIDTH else retention_table(report, intervals=False)
