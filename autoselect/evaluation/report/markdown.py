"""The report as Markdown."""

from typing import Any

from autoselect.evaluation.report.answer_table import ANSWER_NOTE, ANSWER_TITLE, answer_table
from autoselect.evaluation.report.latency import latency_notes
from autoselect.evaluation.report.latency_table import latency_table
from autoselect.evaluation.report.tables import (
    BAND,
    DIFFERENCE_NOTE,
    DIFFERENCE_TITLE,
    OWN,
    RETENTION_NOTE,
    UPPER,
    Table,
    accuracy_table,
    analysis_notes,
    answer_line,
    difference_table,
    method_sources,
    task_table,
    unscored_note,
    unscored_tasks,
)
from autoselect.files.markdown import table_row


def markdown(report: dict[str, Any]) -> str:
    """Return the report as Markdown: the answer in one line, then the tables."""
    lines = [f"# Token selection on {report['model']}", "", f"**{answer_line(report)}**", ""]
    lines += [
        f"{report['images']} images, {report['questions']} questions; accuracy and retention in "
        f"per cent. {RETENTION_NOTE}",
        "",
    ]
    if unscored_tasks(report):
        lines += [f"{unscored_note(report)}\n"]
    lines += [f"> **Warning:** {text}.\n" for text in report.get("warnings", [])]
    lines += markdown_table(accuracy_table(report))
    if report.get("left_out"):
        lines += ["", "Methods left out of the table:", ""]
        lines += [f"* **{row['method']}**: {row['reason']}" for row in report["left_out"]]
    if (answers := answer_table(report)) is not None:
        lines += ["", f"## {ANSWER_TITLE}", "", ANSWER_NOTE, "", *markdown_table(answers)]
    lines += ["", "## Retention per task", "", *markdown_table(task_table(report))]
    if report.get("intervals"):
        lines += ["", f"## {DIFFERENCE_TITLE}", "", DIFFERENCE_NOTE, ""]
        lines += markdown_table(difference_table(report))
    if report.get("audit"):
        lines += ["", "## Samples that lose most by pruning", "", AUDIT_NOTE, ""]
        lines += [_audited(row) for row in report["audit"]]
    lines += [f"\n{text}" for text in analysis_notes(report)]
    lines += _detail_tables(report) + _latency(report)
    lines += ["", "## Methods", ""]
    lines += [f"* **{name}**: {source}" for name, source in method_sources(report).items()]
    for title, key in (("Environment", "environment"), ("Digests", "digests")):
        if key in report:
            lines += ["", f"## {title}", ""]
            lines += [f"* {name}: {value}" for name, value in report[key].items()]
    return "\n".join(lines) + "\n"


AUDIT_NOTE = (
    "Loss difference of the reference answer with its end, at the smallest budget against all "
    "tokens, in nats per token."
)


def _audited(row: dict[str, Any]) -> str:
    pruned = ", ".join(f"{k} tokens: {text!r}" for k, text in row["pruned"].items())
    return (
        f"* {row['key']}, round {row['round']}: **{row['loss_difference']:+.2f}**; "
        f"{row['question']!r}, reference {row['reference']!r}; "
        f"all tokens: {row['full']!r}; {pruned}"
    )


def _detail_tables(report: dict[str, Any]) -> list[str]:
    lines: list[str] = []
    for task, numbers in report["full"].get("details", {}).items():
        lines += ["", f"## Further numbers: {task}", ""]
        lines += [table_row(["method", "tokens", *numbers])]
        lines += ["|---|---:|" + "---:|" * len(numbers)]
        full = {"method": UPPER, "budget": report["num_tokens"], **report["full"]}
        for row in [full, *report["rows"]]:
            cells = [f"{row['details'][task][key]:.3f}" for key in numbers]
            lines.append(table_row([row["method"], row["budget"], *cells]))
    return lines


def _latency(report: dict[str, Any]) -> list[str]:
    latency = report["latency"]
    lines = ["", "## Latency", ""]
    if "protocol" in latency:
        lines += [latency["protocol"], ""]
    return [*lines, *markdown_table(latency_table(report)), "", *latency_notes(latency)]


def markdown_table(table: Table) -> list[str]:
    """Return the lines of a table; marked cells and the selector's name are bold."""
    numbers = len(table.head) - table.labels
    lines = [table_row(table.head), "|" + "---|" * table.labels + "---:|" * numbers]
    for row in table.rows:
        cells = [f"**{cell.text}**" if cell.mark else cell.text for cell in row.cells]
        if row.kind in (OWN, BAND):
            cells[0] = f"**{row.cells[0].text}**"
        cells += [""] * (len(table.head) - len(cells))
        lines.append(table_row(cells))
    return lines
