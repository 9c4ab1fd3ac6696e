"""Which selector is best at which K and at what cost, at the top of an experiment's MLflow page.

Every evaluation rewrites two tags of its experiment. The description is the answer in one line (all
that MLflow shows while it is folded) and a table. The saved view `VIEW` lists the evaluations with
columns for retention and speedup. Tag and columns are those of MLflow 3.17; a version that does not
know them shows its usual list.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from autoselect.config.measured import unusual_settings
from autoselect.config.row_names import DIVERSITY, OWN
from autoselect.files.markdown import table_row

EVALUATION = "evaluation"
VIEW, VIEW_NAME = "selectors", "Selectors: retention and speedup"
VIEW_TAG, NOTE_TAG = f"mlflow.sharedViewState.{VIEW}", "mlflow.note.content"
ANSWER = "**Best selector**"
OWN_TEXT = "*Text below this line is kept.*"
RETENTION = re.compile(r"retention_at_(\d+)_tokens(?:/(.+))?")
ROWS_PER_BUDGET, BUDGETS = 8, 6
LONGEST_NOTE = 19000
COLUMN_WIDTH = 185


def metric_at(name: str, budget: int) -> str:
    """Return the name of a metric at a token budget, such as `retention_at_64_tokens`."""
    return f"{name}_at_{budget}_tokens"


@dataclass(frozen=True)
class Standing:
    """One selector at one token budget in one evaluation.

    Attributes:
        data: `(model, data)` of the measurement, with what was measured if it is not the usual;
            only equal ones can be compared.
        budget: K, in tokens.
        retention: score / score with all tokens, mean over the tasks, as a fraction.
        interval: 95 % interval of the retention, as text.
        speedup: speedup of the prefill, selector included; None if it was not measured.
        run_id: MLflow id of the evaluation.
        time_ms: start of the evaluation, in milliseconds since 1970.
    """

    data: tuple[str, str]
    selector: str
    budget: int
    retention: float
    interval: str
    speedup: float | None
    run_id: str = ""
    run_name: str = ""
    time_ms: int = 0

    def short(self) -> str:
        """Return a text such as `96.0 %, 2.83 x`."""
        cost = "" if self.speedup is None else f", {self.speedup:.2f} x"
        return f"{100 * self.retention:.1f} %{cost}"


def standings(runs: Sequence[Any]) -> list[Standing]:
    """Return the standings in MLflow's runs of evaluations, latest evaluation first."""
    found = [standing for run in runs for standing in _of_run(run)]
    return sorted(found, key=lambda s: -s.time_ms)


def _of_run(run: Any) -> Iterator[Standing]:
    metrics = run.data.metrics
    for name, value in metrics.items():
        match = RETENTION.fullmatch(name)
        if match is None:
            continue
        budget, other = int(match[1]), match[2]
        row = f"/{other}" if other else ""
        ends = [metrics.get(metric_at(f"retention_{e}", budget) + row) for e in ("low", "high")]
        shown = [f"{100 * end:.1f}" for end in ends if end is not None]
        yield Standing(
            data=_subject(run),
            selector=_shown(run, other),
            budget=budget,
            retention=value,
            interval=" to ".join(shown) if len(shown) == 2 else "",
            speedup=metrics.get(metric_at("speedup", budget) + row),
            run_id=run.info.run_id,
            run_name=run.info.run_name,
            time_ms=run.info.start_time,
        )


def _subject(run: Any) -> tuple[str, str]:
    """Return the model, told apart from others of its name, and the data with what was measured."""
    tags, params = run.data.tags, run.data.params
    model, data = tags.get("model", "unknown model"), tags.get("data", "unknown data")
    if digest := tags.get("model_digest"):
        model = f"{model} ({digest[:8]})"
    return model, ", ".join([data, *unusual_settings(params)])


def _shown(run: Any, other: str | None) -> str:
    """Return the selector of a row, with its diversity unless that is the selector's own.

    Rows of other diversities are named after them alone, in every evaluation alike.

    Args:
        run: MLflow's run of the evaluation.
        other: name of the row behind `autoselect:`; None for the first selector.
    """
    first = run.data.tags.get("selector", run.info.run_name)
    if other is None:
        given = run.data.params.get("diversity", "None").split(",")[0].strip()
        other = f"{DIVERSITY}{OWN if given == 'None' else given}"
    if other.startswith(DIVERSITY):
        other = f"{first} {other}"
    return other.removesuffix(f"{DIVERSITY}{OWN}").rstrip(" -")


def note(found: Sequence[Standing], experiment_id: str, before: str = "") -> str:
    """Return the description of the experiment, in Markdown.

    Args:
        found: at least one standing, in the order of `standings`.
        experiment_id: MLflow id of the experiment, for links.
        before: current description; what a person wrote below `OWN_TEXT` is kept.
    """
    groups: dict[tuple[str, str], list[Standing]] = {}
    for standing in found:
        groups.setdefault(standing.data, []).append(standing)
    runs = f"#/experiments/{experiment_id}/runs"
    answer = "; ".join(
        f"K={s.budget} {s.selector} {s.short()}" for s in _best(groups[found[0].data])
    )
    head = [
        f"{ANSWER} {answer}",
        "",
        f"[All evaluations with retention and speedup]({runs}?viewStateShareKey={VIEW}). Retention "
        "is the mean over the tasks of score / score with all tokens, with its 95 % interval; "
        "speedup is that of the prefill, the selector's own time included.",
    ]
    own = before.partition(OWN_TEXT)[2].rstrip()
    if before and OWN_TEXT not in before and not before.startswith(ANSWER):
        own = f"\n\n{before.rstrip()}"
    room = LONGEST_NOTE - len("\n".join(head)) - len(OWN_TEXT) - len(own) - 2
    tables = []
    for (model, data), rows in groups.items():
        table = "\n".join(["", f"#### {model}, {data}", "", *_table(rows, runs)])
        room -= len(table) + 1
        if room < 0:
            break
        tables.append(table)
    return "\n".join([*head, *tables, "", OWN_TEXT]) + own


def _table(rows: Sequence[Standing], runs: str) -> Iterator[str]:
    """Yield the lines of the table of one model and data set."""
    yield "| K | selector | retention | speedup | evaluation |"
    yield "|---:|---|---|---:|---|"
    for budget in sorted({row.budget for row in rows}):
        for row in _ranked(rows, budget):
            speedup = "–" if row.speedup is None else f"{row.speedup:.2f}"
            kept = f"{100 * row.retention:.1f} %" + (row.interval and f" ({row.interval})")
            link = f"[{row.run_name}]({runs}/{row.run_id})"
            yield table_row([budget, row.selector, kept, speedup, link])


def _best(rows: Sequence[Standing]) -> list[Standing]:
    """Return the best standing of each budget, by ascending budget."""
    budgets = sorted({row.budget for row in rows})[:BUDGETS]
    return [_ranked(rows, budget)[0] for budget in budgets]


def _ranked(rows: Sequence[Standing], budget: int) -> list[Standing]:
    """Return the best few of a budget, best first; only a selector's latest evaluation counts."""
    latest: dict[str, Standing] = {}
    for row in rows:
        if row.budget == budget:
            latest.setdefault(row.selector, row)
    return sorted(latest.values(), key=lambda r: -r.retention)[:ROWS_PER_BUDGET]


def saved_view(found: Sequence[Standing], time_ms: int) -> str:
    """Return the saved view of MLflow's list of runs, as the JSON value of its tag."""
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
