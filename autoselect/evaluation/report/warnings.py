"""Warnings of a report: what its numbers do not say although they look like it."""

from collections.abc import Mapping
from typing import Any

from autoselect.config.row_names import SELECTOR
from autoselect.evaluation.report.tables import percent

MOST_UNENDED = 0.02
"""Share of unended answers above the full model's that is reported."""
MOST_CUT = 0.1
"""Share of the full model's answers at the token limit that is reported."""
LEAST_IMAGES = 10
"""Images below which intervals are said to be worthless."""


def report_warnings(report: Mapping[str, Any]) -> list[str]:
    """Return all warnings that follow from the numbers of a report."""
    return [
        *_full_model_warnings(report),
        *_interval_warnings(report),
        *_ending_warnings(report),
    ]


def seen_in_training(name: str, training: Mapping[str, Any], data: str) -> str:
    """Return a warning if a selector was trained on the shards of the evaluation, else nothing.

    Args:
        name: row of the selector.
        training: the selector's metadata.
        data: digest of the evaluation's samples, which begins with that of their shards.
    """
    if not training.get("samples") or training.get("data_digest") != data.partition(":")[0]:
        return ""
    return (
        f"{name} was trained on these shards, so its numbers are not those of unseen pictures; "
        "evaluate on others"
    )


def _full_model_warnings(report: Mapping[str, Any]) -> list[str]:
    """Return what makes a comparison with the full model empty."""
    full, blind, found = report["full"], report["blind"], []
    if full["mean"] <= blind["mean"]:
        found.append(
            f"the full model scores {percent(full['mean'])} %, and {percent(blind['mean'])} % "
            "without the picture, so retention says nothing here; ask for answers of a word or "
            "two, list the accepted ones (`answers`), or compare with the full model's own "
            "answers (--reference model)"
        )
    cut = full["answers"]["unended"]
    if cut > MOST_CUT:
        found.append(
            f"{percent(cut)} % of the full model's answers reach the token limit and are scored "
            "without their end; raise --max-new-tokens"
        )
    return found


def _interval_warnings(report: Mapping[str, Any]) -> list[str]:
    """Return that the bootstrap has too few images to draw from, if so."""
    images = report["images"]
    if images >= LEAST_IMAGES:
        return []
    shown = "1 image is" if images == 1 else f"{images} images are"
    return [
        f"{shown} too few for intervals: those of few images are too narrow, and that of one has "
        f"no width, so that every difference stands out; evaluate {LEAST_IMAGES} or more"
    ]


def _ending_warnings(report: Mapping[str, Any]) -> list[str]:
    """Return one warning per selector whose pruning leaves more answers unended."""
    whole = report["full"]["answers"]["unended"]
    found: dict[str, list[str]] = {}
    for row in report["rows"]:
        share = row["answers"]["unended"]
        if row["method"].split(":")[0] == SELECTOR and share - whole > MOST_UNENDED:
            text = f"{100 * share:.1f} % with {row['budget']} tokens"
            found.setdefault(row["method"], []).append(text)
    return [
        f"pruning by {method} changes the endings: answers that reach the token limit are "
        f"{', '.join(shares)}, but {100 * whole:.1f} % with all tokens; keep more tokens, or "
        "tokens that differ more (autoselect tune finds how much)"
        for method, shares in found.items()
    ]
