"""The table of answers and their endings."""

from typing import Any

from autoselect.evaluation.report.tables import (
    BOUND,
    UPPER,
    WORSE,
    Table,
    TableCell,
    TableRow,
    band,
    band_row,
    budgets_of,
    kind_of,
    lower_bounds,
    percent,
)
from autoselect.evaluation.report.warnings import MOST_UNENDED

ANSWER_TITLE = "Answers and their endings"
ANSWER_NOTE = (
    "Exact: the whole answer is right; first word: it begins with the right word (each a mean over "
    "the tasks, and as a share of the full model's). Unended: generated answers that reach the "
    "token limit; bold if above the full model's by more than 2 points. Length: mean tokens of an "
    "answer with its end, divided by the full model's. Loss: negative log-likelihood of the "
    "reference answer with its end, in nats per token, minus the full model's. Agreement: answers "
    "that equal the full model's."
)
HEAD = [
    *("method", "tokens", "exact", "kept", "first word", "kept", "unended", "length", "loss"),
    "agreement",
]


def answer_table(report: dict[str, Any]) -> Table | None:
    """Return how answers are with all tokens, with none and at each budget; None if unknown."""
    whole = report["full"].get("answers")
    if whole is None:
        return None
    count = report["num_tokens"]
    rows = [_row(UPPER, count, whole, whole, BOUND)]
    for name, tokens, unseen in lower_bounds(report):
        rows.append(_row(name, tokens, unseen["answers"], whole, BOUND))
    for budget in reversed(budgets_of(report)):
        rows.append(band_row(budget, count))
        for found in band(report, budget):
            method = found["method"]
            rows.append(_row(method, budget, found["answers"], whole, kind_of(method)))
    return Table(HEAD, rows)


def _row(name: str, tokens: int, own: dict[str, Any], whole: dict[str, Any], kind: str) -> TableRow:
    unended, usual = own["unended"], whole["unended"]
    changed = None not in (unended, usual) and unended - usual > MOST_UNENDED
    cells = [
        TableCell(name),
        TableCell(str(tokens)),
        *(
            TableCell(percent(own[key]))
            for key in ("exact", "exact_retention", "first_word", "first_word_retention")
        ),
        TableCell(percent(unended), WORSE if changed else ""),
        TableCell(_number(own["length_ratio"])),
        TableCell(_number(own["loss_difference"], "+")),
        TableCell(percent(own["agreement"])),
    ]
    return TableRow(cells, kind)


def _number(value: float | None, sign: str = "") -> str:
    return "–" if value is None else f"{value:{sign}.2f}"
