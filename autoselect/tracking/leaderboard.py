"""Which selector is best at which K, and what it costs: the first thing an experiment's page says.

Every evaluation rewrites two tags of its experiment. The description is the answer in one line (all
that MLflow shows of it unfolded) and a table. The saved view `VIEW` is the list of evaluations with
retention and speedup as columns, which MLflow's own list of runs does not show by itself. Tag and
columns are those of MLflow 3.17; another version that does not know them shows its usual list.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

EVALUATION = "evaluation"
VIEW, VIEW_NAME = "selectors", "Selectors: retention and speedup"
VIEW_TAG, NOTE_TAG = f"mlflow.sharedViewState.{VIEW}", "mlflow.note.content"
PRIMARY_TAGS = (
    "mlflow.experiment.primaryMetric.name",
    "mlflow.experiment.primaryMetric.greaterIsBetter",
)
OWN_TEXT = "*Text below this line is kept.*"
RETENTION = re.compile(r"retention_at_(\d+)_tokens(?:/(.+))?")
ROWS_PER_BUDGET, BUDGETS, GROUPS = 8, 6, 6
COLUMN_WIDTH = 185


def metric_at(name: str, budget: int) -> str:
    """Name of a selector's metric at a budget, such as `retention_at_64_tokens`."""
    return f"{name}_at_{budget}_tokens"


@dataclass(frozen=True)
class Standing:
    """One selector at one budget in one evaluation.

    Attributes:
        data: what it was measured on, `(model, data)`; only equal ones can be compared.
        selector: how it is called.
        budget: K.
        retention: a fraction.
        interval: its 95 % interval, as text.
        speedup: of the prefill, selector included.
        run_id: of the evaluation.
        run_name: of the evaluation.
        training_run: where it was trained, when this store knows that run.
        time_ms: when the evaluation began.
    """

    data: tuple[str, str]
    selector: str
    budget: int
    retention: float
    interval: str
    speedup: float | None
    run_id: str
    run_name: str
    training_run: str | None
    time_ms: int

    def short(self) -> str:
        """`96.0 %, 2.83 x`."""
        cost = "" if self.speedup is None else f", {self.speedup:.2f} x"
        return f"{100 * self.retention:.1f} %{cost}"


def standings(runs: Sequence[Any]) -> list[Standing]:
    """What MLflow's runs of evaluations say, latest evaluation first."""
    found = [standing for run in runs for standing in _of_run(run)]
    return sorted(found, key=lambda s: -s.time_ms)


def _of_run(run: Any) -> Iterator[Standing]:
    metrics, tags = run.data.metrics, run.data.tags
    for name, value in metrics.items():
        match = RETENTION.fullmatch(name)
        if match is None:
            continue
        budget, other = int(match[1]), match[2]
        ends = [metrics.get(metric_at(f"retention_{end}", budget)) for end in ("low", "high")]
        shown = [f"{100 * end:.1f}" for end in ends if end is not None and other is None]
        yield Standing(
            data=(tags.get("model", "unknown model"), tags.get("data", "unknown data")),
            selector=other or tags.get("selector", run.info.run_name),
            budget=budget,
            retention=value,
            interval=" to ".join(shown) if len(shown) == 2 else "",
            speedup=metrics.get(metric_at("speedup", budget)) if other is None else None,
            run_id=run.info.run_id,
            run_name=run.info.run_name,
            training_run=tags.get("training_run") if other is None else None,
            time_ms=run.info.start_time,
        )


def note(found: Sequence[Standing], experiment_id: str, before: str = "") -> str:
    """The description of the experiment.

    Args:
        found: of `standings`, at least one.
        experiment_id: for links.
        before: the description so far; what a person wrote below `OWN_TEXT` is kept.
    """
    groups: dict[tuple[str, str], list[Standing]] = {}
    for standing in found:
        groups.setdefault(standing.data, []).append(standing)
    runs = f"#/experiments/{experiment_id}/runs"
    latest = _best(groups[found[0].data])
    answer = "; ".join(f"K={s.budget} {s.selector} {s.short()}" for s in latest)
    lines = [
        f"**Best selector** {answer}",
        "",
        f"[All evaluations with retention and speedup]({runs}?viewStateShareKey={VIEW}). Retention "
        "is the mean over the tasks of score / score with all tokens, with its 95 % interval; "
        "speedup is that of the prefill, the selector's own time included.",
    ]
    for (model, data), rows in list(groups.items())[:GROUPS]:
        lines += ["", f"#### {model}, {data}", ""]
        lines += ["| K | selector | retention | speedup | evaluation |", "|---:|---|---|---:|---|"]
        for row in _ranked(rows):
            speedup = "–" if row.speedup is None else f"{row.speedup:.2f}"
            kept = f"{100 * row.retention:.1f} %" + (row.interval and f" ({row.interval})")
            link = f"[{row.run_name}]({runs}/{row.run_id})"
            lines.append(f"| {row.budget} | {row.selector} | {kept} | {speedup} | {link} |")
    own = before.partition(OWN_TEXT)[2] or ("" if before.startswith("**Best") else f"\n\n{before}")
    return "\n".join([*lines, "", OWN_TEXT]) + own.rstrip()


def _best(rows: Sequence[Standing]) -> list[Standing]:
    """The best of each budget, ascending."""
    budgets = sorted({row.budget for row in rows})[:BUDGETS]
    return [max((r for r in rows if r.budget == b), key=lambda r: r.retention) for b in budgets]


def _ranked(rows: Sequence[Standing]) -> Iterator[Standing]:
    """The best few of each budget, best first; of a selector's evaluations the latest."""
    for budget in sorted({row.budget for row in rows}):
        latest: dict[str, Standing] = {}
        for row in rows:
            if row.budget == budget:
                latest.setdefault(row.selector, row)
        yield from sorted(latest.values(), key=lambda r: -r.retention)[:ROWS_PER_BUDGET]


def saved_view(found: Sequence[Standing], time_ms: int) -> str:
    """The saved view of MLflow's list of runs, as the value of its tag."""
    budgets = sorted({row.budget for row in found})[:BUDGETS]
    columns = ["tags.`selector`", "tags.`data`"]
    for budget in budgets:
        columns += [f"metrics.`{metric_at(name, budget)}`" for name in ("retention", "speedup")]
    state = {
        "selectedColumns": columns,
        "columnOrder": columns,
        "columnWidths": {column: COLUMN_WIDTH for column in columns},
        "searchFilter": f"tags.kind = '{EVALUATION}'",
        "orderByKey": f"metrics.`{metric_at('retention', budgets[0])}`",
        "orderByAsc": False,
    }
    times = {"createdAt": time_ms, "updatedAt": time_ms}
    return json.dumps({"name": VIEW_NAME, **times, "state": json.dumps(state)})
