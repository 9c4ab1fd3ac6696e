"""Check that a report follows its schema and that its parts agree with each other.

`schema.py` says which keys there are, with their types and ranges. What a schema cannot say is
checked here: retentions follow from the scores, the ends of an interval are in order, and every
other method has its difference from the selector at every budget.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from autoselect.config.row_names import SELECTOR
from autoselect.evaluation.report.latency import expected_speedups, timed
from autoselect.evaluation.report.schema import violations

TOLERANCE = 1e-6
SHOWN = 5


def check_report(report: dict[str, Any]) -> None:
    """Check a report before it is written.

    Raises:
        ValueError: a part breaks the schema or contradicts another part; names the first five.
    """
    found = list(violations(report))
    found = found or list(_disagreements(report))
    if found:
        more = f" (and {len(found) - SHOWN} more)" if len(found) > SHOWN else ""
        raise ValueError(f"report.json: {'; '.join(found[:SHOWN])}{more}")


def _disagreements(report: dict[str, Any]) -> Iterator[str]:
    full = report["full"]["tasks"]
    for name in ("full", "blind", *(("other_image",) if report.get("other_image") else ())):
        yield from _scores(report[name], full, name)
    places = set()
    for position, row in enumerate(report["rows"]):
        where = f"rows[{position}] ({row['method']}, {row['budget']} tokens)"
        if row["budget"] > report["num_tokens"]:
            yield f"{where}: the budget exceeds the {report['num_tokens']} tokens of the model"
        if (row["method"], row["budget"]) in places:
            yield f"{where} comes twice"
        places.add((row["method"], row["budget"]))
        yield from _row(row, full, where)
    yield from _differences(report)
    yield from _latency(report)
    yield from _left_out(report)


def _scores(scores: Mapping[str, Any], full: Mapping[str, float], where: str) -> Iterator[str]:
    tasks = scores["tasks"]
    if set(tasks) != set(full):
        yield f"{where}.tasks are {sorted(tasks)}, but those of the full model {sorted(full)}"
    elif not _near(scores["mean"], _mean(list(tasks.values()))):
        yield f"{where}.mean={scores['mean']} is not the mean of its tasks"


def _row(row: Mapping[str, Any], full: Mapping[str, float], where: str) -> Iterator[str]:
    yield from _scores(row, full, where)
    if row.get("answers"):
        yield from _answers(row["answers"], where)
    if set(row["tasks"]) != set(full):
        return
    ratios = {task: row["tasks"][task] / score for task, score in full.items() if score > 0}
    expected = _mean(list(ratios.values()))
    if not _near(row["retention"], expected):
        yield f"{where}.retention={row['retention']} does not follow from its scores ({expected})"
    for key in ("retention_tasks", "retention_tasks_ci95"):
        if set(row[key]) != set(ratios):
            yield f"{where}.{key} must have exactly the tasks in which the full model scores"
            return
    for task, ratio in ratios.items():
        if not _near(row["retention_tasks"][task], ratio):
            yield f"{where}.retention_tasks.{task} does not follow from the scores ({ratio})"
        yield from _ordered(
            row["retention_tasks_ci95"][task], f"{where}.retention_tasks_ci95.{task}"
        )
    yield from _ordered(row["retention_ci95"], f"{where}.retention_ci95", bool(ratios))


def _answers(answers: Mapping[str, Any], where: str) -> Iterator[str]:
    """Yield contradictions: whole answers that are right begin with the right word."""
    if answers["exact"] > answers["first_word"] + TOLERANCE:
        yield (
            f"{where}.answers.exact={answers['exact']} exceeds first_word={answers['first_word']}"
        )


def _ordered(ends: Sequence[float | None], where: str, known: bool = True) -> Iterator[str]:
    low, high = ends
    if low is None or high is None:
        if known:
            yield f"{where}={list(ends)} lacks an end"
    elif low > high:
        yield f"{where}={list(ends)} ends before it begins"


def _differences(report: Mapping[str, Any]) -> Iterator[str]:
    """Yield missing, repeated or contradictory differences between the selector and the rest."""
    kept = {(row["method"], row["budget"]): row["retention"] for row in report["rows"]}
    budgets = {budget for _, budget in kept}
    for budget in sorted(budgets):
        if (SELECTOR, budget) not in kept:
            yield f"rows lack {SELECTOR} with {budget} tokens"
    wanted = {place for place in kept if place[0] != SELECTOR}
    seen = set()
    for position, row in enumerate(report["intervals"]):
        place = (row["against"], row["budget"])
        where = f"intervals[{position}] ({place[0]}, {place[1]} tokens)"
        if place not in wanted or place in seen:
            yield f"{where} {'comes twice' if place in seen else 'matches no row'}"
            continue
        seen.add(place)
        own = kept.get((SELECTOR, place[1]))
        expected = None if own is None or kept[place] is None else own - kept[place]
        if not _near(row["difference"], expected):
            yield f"{where}.difference={row['difference']} is not that of the rows ({expected})"
        yield from _ordered(row["ci95"], f"{where}.ci95", expected is not None)
        if row["ci95"][0] is not None and row["better"] != (row["ci95"][0] > 0):
            yield f"{where}.better={row['better']} contradicts its interval {row['ci95']}"
    for method, budget in sorted(wanted - seen):
        yield f"intervals lack {method} with {budget} tokens"


def _latency(report: Mapping[str, Any]) -> Iterator[str]:
    latency = report["latency"]
    measured = {row["budget"] for row in report["rows"]}
    for method, rows in timed(report).items():
        for budget in sorted(measured - set(rows)):
            yield f"latency.pruned lacks {method} with {budget} tokens"
    for position, row in enumerate(latency["pruned"]):
        for key, expected in expected_speedups(latency, row).items():
            if not math.isclose(row[key], expected, rel_tol=TOLERANCE):
                yield (
                    f"latency.pruned[{position}].{key}={row[key]} does not follow from the times "
                    f"({expected})"
                )


def _left_out(report: Mapping[str, Any]) -> Iterator[str]:
    measured = {row["method"] for row in report["rows"]}
    for position, row in enumerate(report.get("left_out", [])):
        if row["method"] in measured:
            yield f"left_out[{position}] ({row['method']}) has rows"


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _near(value: float | None, expected: float | None) -> bool:
    if value is None or expected is None:
        return value is expected
    return abs(value - expected) <= TOLERANCE
