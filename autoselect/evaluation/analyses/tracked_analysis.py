"""Log an analysis to MLflow: its numbers as metrics `analysis/KIND/...`, and its figure."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from autoselect.evaluation.run_names import shown_folder, shown_selector
from autoselect.tracking import Tracker
from autoselect.tracking.note import RunNote

Point = tuple[str, float, int | None]
SHAPES = ("budgets", "grid", "grids")
"""Keys of lists that are no course of a number over the budgets, however long they are."""


def start_analysis(
    kind: str, settings: Mapping[str, Any], tags: Mapping[str, Any], training_run: str | None
) -> Tracker:
    """Begin the run of an analysis, or continue that of an equal one.

    Args:
        settings: settings of the command, with `experiment`, `selector` and `out`.
        tags: facts to search by.
        training_run: MLflow id of the run that trained the selector; None if unknown.
    """
    own = {"kind": "analysis", "analysis": kind, **tags}
    own["selector"] = shown_selector(settings["selector"])
    if training_run:
        own["training_run"] = training_run
    out, name = Path(settings["out"]), f"analyse {kind}"
    note = RunNote(out, name, {**settings, **tags})
    tracker = Tracker.start(
        settings["experiment"],
        f"{name} {shown_folder(settings['out'])}",
        settings,
        own,
        run_id=note.get(name),
    )
    note.keep(name, tracker.run_id)
    return tracker


def log_analysis(
    tracker: Tracker, kind: str, numbers: Mapping[str, Any], out: Path, training_run: str | None
) -> None:
    """Log a finished analysis.

    Args:
        out: folder with `KIND.json` and `KIND.png`.
        training_run: MLflow id of the run that trained the selector; None if unknown.
    """
    for name, value, step in points(numbers):
        tracker.log_metrics({f"analysis/{kind}/{name}": value}, step)
    tracker.log_artifact(out / f"{kind}.json")
    tracker.log_artifact(out / f"{kind}.png", "figures")
    if training_run:
        tracker.mention_on(
            training_run, "analyses", "Analyses", f"{kind} in {shown_folder(str(out))}"
        )


def points(numbers: Mapping[str, Any]) -> Iterator[Point]:
    """Yield (name, value, step) of every number that becomes a metric.

    The budget is the step of lists as long as `budgets` and of dictionaries with a `budget`; pairs
    are (step, value). Other lists, such as one value per position, are skipped.
    """
    budgets = numbers.get("budgets", [])
    yield from _points(numbers, "", budgets if isinstance(budgets, list | tuple) else [])


def _points(value: Any, name: str, budgets: Any) -> Iterator[Point]:
    if isinstance(value, bool) or value is None:
        return
    if isinstance(value, int | float):
        yield name, float(value), None
    elif isinstance(value, Mapping):
        for key, item in value.items():
            if key not in SHAPES:
                yield from _points(item, f"{name}/{key}" if name else str(key), budgets)
    elif isinstance(value, list | tuple):
        yield from _listed(value, name, budgets)


def _listed(values: Any, name: str, budgets: Any) -> Iterator[Point]:
    if all(isinstance(item, Mapping) and "budget" in item for item in values):
        for item in values:
            rest = {key: part for key, part in item.items() if key != "budget"}
            yield from ((n, v, item["budget"]) for n, v, _ in _points(rest, name, ()))
    elif all(isinstance(item, list | tuple) and len(item) == 2 for item in values):
        yield from ((name, float(value), int(step)) for step, value in values)
    elif len(values) == len(budgets) and all(isinstance(item, int | float) for item in values):
        yield from ((name, float(v), int(b)) for v, b in zip(values, budgets, strict=True))
