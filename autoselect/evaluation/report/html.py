"""The report as one HTML file that needs no other file, script or network address."""

import base64
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image

from autoselect.config.row_names import SELECTOR
from autoselect.evaluation.figures.style import DPI
from autoselect.evaluation.report.answer_table import ANSWER_NOTE, ANSWER_TITLE, answer_table
from autoselect.evaluation.report.latency import latency_notes, speedups
from autoselect.evaluation.report.latency_table import latency_table
from autoselect.evaluation.report.tables import (
    DIFFERENCE_NOTE,
    DIFFERENCE_TITLE,
    RETENTION_NOTE,
    Table,
    TableCell,
    TableRow,
    accuracy_table,
    analysis_notes,
    difference_table,
    method_sources,
    percent,
    task_table,
    unscored_note,
    unscored_tasks,
)

PIXELS_PER_INCH = 105
CAPTIONS = {
    "retention": "Accuracy kept against the number of visual tokens, and accuracy per task.",
    "overlays": "What the language model still sees, its answer with all tokens and with fewer.",
    "audit": "The samples that lose most likelihood of the reference answer by pruning.",
    "similarity": "Cosine similarity of the best and the worst tokens (figure 4 of the paper).",
    "fidelity": "Noise gating against hard removal, random score maps (figure 5 of the paper).",
    "frequency": "How often each position of the image is kept.",
    "classifier": "An image classifier without the dropped patches (figure 3 of the paper).",
    "gates": "Gates of all tokens at several temperatures.",
}
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1f2430; max-width: 1240px;
       margin: 2rem auto; padding: 0 1.2rem; }
h1 { font-size: 1.6rem; margin-bottom: .2rem } h2 { font-size: 1.15rem; margin-top: 2.2rem }
.facts { display: flex; flex-wrap: wrap; gap: .8rem; margin: 1.2rem 0 }
.fact { border: 1px solid #d9dce3; border-radius: 8px; padding: .6rem 1rem; min-width: 9rem }
.fact b { display: block; font-size: 1.5rem; color: #d1352b }
.fact span, figcaption, .note { color: #6b7280; font-size: .85rem }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .6rem 0 }
th, td { padding: .25rem .7rem; text-align: right; border-bottom: 1px solid #eceef2 }
th:first-child, td:first-child { text-align: left }
th { color: #6b7280; font-weight: 600; font-size: .85rem }
tr.band td { background: #f4f5f8; font-weight: 600; text-align: left }
tr.own td { color: #d1352b; font-weight: 600 }
tr.oracle td { font-style: italic; color: #6b7280 }
tr.bound td { border-bottom: 2px solid #d9dce3; font-weight: 600 }
td.best, td.better { font-weight: 700; background: #eef7f0 }
td.worse { font-weight: 700; background: #fdecea }
.warning { border-left: 4px solid #b45309; background: #fff7ed; padding: .5rem .9rem }
figure { margin: 1.2rem 0 } img { max-width: 100%; border: 1px solid #eceef2; border-radius: 6px }
"""


def caption_of(name: str, report: dict[str, Any]) -> str:
    """Return the caption of a figure; only a logged training has a polarisation curve."""
    if name == "gates" and report.get("analyses", {}).get("gates", {}).get("course"):
        return f"{CAPTIONS[name].removesuffix('.')}, and their polarisation over training."
    return CAPTIONS.get(name, name)


def html_report(report: dict[str, Any], figures: Mapping[str, Path]) -> str:
    """Return the whole page."""
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>",
        f"<title>Token selection on {escape(report['model'])}</title>",
        f"<style>{STYLE}</style></head><body>",
        f"<h1>Token selection on {escape(report['model'])}</h1>",
        f"<p class='note'>{report['images']} images, {report['questions']} questions, "
        f"{report['num_tokens']} visual tokens. {escape(RETENTION_NOTE)}</p>",
        *(f"<p class='warning'>{escape(text)}.</p>" for text in report.get("warnings", [])),
        _headline(report),
        "<h2>Accuracy</h2>",
        _accuracy(report),
        _answers(report),
        "<h2>Retention per task</h2>",
        _table(task_table(report)),
        _differences(report),
    ]
    for name, path in figures.items():
        image = base64.b64encode(path.read_bytes()).decode()
        caption, width = escape(caption_of(name, report)), _shown_width(path)
        parts.append(
            f"<figure><img alt='{caption}' width='{width}' src='data:image/png;base64,{image}'>"
            f"<figcaption>{caption}</figcaption></figure>"
        )
    parts += [f"<p class='note'>{escape(text)}</p>" for text in analysis_notes(report)]
    parts += [_latency(report), "<h2>Methods</h2>", _list(method_sources(report))]
    parts += [_environment(report), "</body></html>"]
    return "\n".join(parts)


def _shown_width(path: Path) -> int:
    """Return the width in pixels at the one scale that gives all figures the same type size."""
    with Image.open(path) as image:
        return round(PIXELS_PER_INCH / DPI * image.width)


def _table(table: Table) -> str:
    """Return an HTML table; the cell of a row with only one spans all columns."""
    lines = ["<table><tr>" + "".join(f"<th>{escape(cell)}</th>" for cell in table.head) + "</tr>"]
    for row in table.rows:
        span = f" colspan='{len(table.head)}'" if len(row.cells) == 1 else ""
        body = "".join(
            f"<td{span}{f' class={cell.mark!r}' if cell.mark else ''}>{escape(cell.text)}</td>"
            for cell in row.cells
        )
        lines.append(f"<tr class='{row.kind}'>{body}</tr>")
    return "\n".join([*lines, "</table>"])


def _headline(report: dict[str, Any]) -> str:
    facts = [("full model", f"{percent(report['full']['mean'])} %", "mean accuracy")]
    speed = speedups(report)
    for row in report["rows"]:
        if row["method"] == SELECTOR:
            note = "of the accuracy kept"
            if row["budget"] in speed:
                note += f", prefill {speed[row['budget']]:.2f} x as fast"
            name = f"{row['budget']} of {report['num_tokens']} tokens"
            facts.append((name, f"{percent(row['retention'])} %", note))
    cells = "".join(
        f"<div class='fact'><span>{escape(name)}</span><b>{escape(value)}</b>"
        f"<span>{escape(note)}</span></div>"
        for name, value, note in facts
    )
    return f"<div class='facts'>{cells}</div>"


def _accuracy(report: dict[str, Any]) -> str:
    parts = [_table(accuracy_table(report))]
    if unscored_tasks(report):
        parts.append(f"<p class='note'>{escape(unscored_note(report))}</p>")
    if report.get("left_out"):
        items = {row["method"]: row["reason"] for row in report["left_out"]}
        parts.append(f"<p class='note'>Methods left out of the table:</p>{_list(items)}")
    return "\n".join(parts)


def _answers(report: dict[str, Any]) -> str:
    table = answer_table(report)
    if table is None:
        return ""
    note = f"<p class='note'>{escape(ANSWER_NOTE)}</p>"
    return f"<h2>{escape(ANSWER_TITLE)}</h2>{_table(table)}{note}"


def _differences(report: dict[str, Any]) -> str:
    if not report.get("intervals"):
        return ""
    note = f"<p class='note'>{escape(DIFFERENCE_NOTE)}</p>"
    return f"<h2>{escape(DIFFERENCE_TITLE)}</h2>{_table(difference_table(report))}{note}"


def _latency(report: dict[str, Any]) -> str:
    latency = report["latency"]
    notes = " ".join([latency.get("protocol", ""), *latency_notes(latency)])
    return f"<h2>Latency</h2>{_table(latency_table(report))}<p class='note'>{escape(notes)}</p>"


def _list(items: Mapping[str, str]) -> str:
    lines = "".join(
        f"<li><b>{escape(name)}</b>: {escape(text)}</li>" for name, text in items.items()
    )
    return f"<ul class='note'>{lines}</ul>"


def _environment(report: dict[str, Any]) -> str:
    digests = {f"digest of {name}": value for name, value in report.get("digests", {}).items()}
    facts = {**report.get("environment", {}), **digests}
    rows = [TableRow([TableCell(str(key)), TableCell(str(value))]) for key, value in facts.items()]
    return "<h2>Environment</h2>" + _table(Table(["", ""], rows)) if rows else ""
