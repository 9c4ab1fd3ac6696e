"""The report as one HTML file: no other file, script or network address is needed to read it."""

import base64
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from autoselect.evaluation.methods import SELECTOR
from autoselect.evaluation.report import (
    latency_notes,
    latency_table,
    method_sources,
    percent,
)

CAPTIONS = {
    "retention": "Accuracy kept against the number of visual tokens, and accuracy per task.",
    "overlays": "What the language model still sees, its answer with all tokens and with fewer.",
    "similarity": "Cosine similarity of the best and the worst tokens (figure 4 of the paper).",
    "fidelity": "Noise gating against hard removal, random score maps (figure 5 of the paper).",
    "frequency": "How often each position of the image is kept.",
    "classifier": "An image classifier without the dropped patches (figure 3 of the paper).",
    "gates": "Gates and polarisation over training.",
}
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1f2430; max-width: 1180px;
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
.warning { border-left: 4px solid #b45309; background: #fff7ed; padding: .5rem .9rem }
figure { margin: 1.2rem 0 } img { max-width: 100%; border: 1px solid #eceef2; border-radius: 6px }
"""


def html_report(report: dict[str, Any], figures: Mapping[str, Path]) -> str:
    """The whole report.

    Args:
        report: as `build_report` gives it.
        figures: PNG files by name.
    """
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>",
        f"<title>Token selection on {escape(report['model'])}</title>",
        f"<style>{STYLE}</style></head><body>",
        f"<h1>Token selection on {escape(report['model'])}</h1>",
        f"<p class='note'>{report['images']} images, {report['questions']} questions, "
        f"{report['num_tokens']} visual tokens. Retention is the mean over the tasks of score / "
        "full score; intervals are 95 %, from a paired bootstrap over images.</p>",
        *(f"<p class='warning'>{escape(text)}.</p>" for text in report.get("warnings", [])),
        _headline(report),
        "<h2>Accuracy</h2>",
        _accuracy(report),
    ]
    for name, path in figures.items():
        image = base64.b64encode(path.read_bytes()).decode()
        caption = escape(CAPTIONS.get(name, name))
        parts.append(
            f"<figure><img alt='{caption}' src='data:image/png;base64,{image}'>"
            f"<figcaption>{caption}</figcaption></figure>"
        )
    parts += [_differences(report), _latency(report), _methods(report), _environment(report)]
    parts.append("</body></html>")
    return "\n".join(parts)


def _table(head: list[str], rows: list[tuple[str, list[str]]]) -> str:
    """Rows are (class, cells); a row of one cell spans the table."""
    lines = ["<table><tr>" + "".join(f"<th>{escape(cell)}</th>" for cell in head) + "</tr>"]
    for kind, cells in rows:
        span = f" colspan='{len(head)}'" if len(cells) == 1 else ""
        body = "".join(f"<td{span}>{escape(cell)}</td>" for cell in cells)
        lines.append(f"<tr class='{kind}'>{body}</tr>")
    return "\n".join([*lines, "</table>"])


def _headline(report: dict[str, Any]) -> str:
    facts = [("full model", f"{percent(report['full']['mean'])} %", "mean accuracy")]
    speed = {row["budget"]: row["speedup"] for row in report["latency"]["pruned"]}
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
    tasks = list(report["full"]["tasks"])
    count = report["num_tokens"]
    head = ["method", "tokens", *tasks, "mean", "retention", "95 % interval"]

    def cells(name: str, tokens: int, row: dict[str, Any]) -> list[str]:
        return [name, str(tokens), *(percent(row["tasks"][t]) for t in tasks), percent(row["mean"])]

    rows = [("bound", [*cells("upper bound", count, report["full"]), "100.0", "–"])]
    for budget in sorted({row["budget"] for row in report["rows"]}, reverse=True):
        rows.append(("band", [f"{budget} of {count} tokens ({percent(budget / count)} %)"]))
        band = [row for row in report["rows"] if row["budget"] == budget]
        for row in sorted(band, key=lambda r: -(r["retention"] or 0.0)):
            low, high = row["retention_ci95"]
            line = cells(row["method"], budget, row)
            line += [percent(row["retention"]), f"{percent(low)} to {percent(high)}"]
            kinds = {SELECTOR: "own", "oracle": "oracle"}
            rows.append((kinds.get(row["method"], ""), line))
    rows.append(("", [*cells("blind", 0, report["blind"]), "–", "–"]))
    return _table(head, rows)


def _differences(report: dict[str, Any]) -> str:
    if not report.get("intervals"):
        return ""
    rows = [
        (
            "",
            [
                row["against"],
                str(row["budget"]),
                percent(row["difference"]),
                f"{percent(row['ci95'][0])} to {percent(row['ci95'][1])}",
            ],
        )
        for row in report["intervals"]
    ]
    title = f"<h2>Retention of {SELECTOR} minus each other method, in points</h2>"
    return title + _table(["against", "tokens", "difference", "95 % interval"], rows)


def _latency(report: dict[str, Any]) -> str:
    latency = report["latency"]
    head, rows = latency_table(report)
    kinds = ["bound", *[""] * (len(rows) - 1)]
    notes = " ".join([latency.get("protocol", ""), *latency_notes(latency)])
    table = _table(head, list(zip(kinds, rows, strict=True)))
    return f"<h2>Latency</h2>{table}<p class='note'>{escape(notes)}</p>"


def _methods(report: dict[str, Any]) -> str:
    items = "".join(
        f"<li><b>{escape(name)}</b>: {escape(source)}</li>"
        for name, source in method_sources(report).items()
    )
    return f"<h2>Methods</h2><ul class='note'>{items}</ul>"


def _environment(report: dict[str, Any]) -> str:
    facts = {**report.get("environment", {}), **report.get("digests", {})}
    rows = [("", [str(key), str(value)]) for key, value in facts.items()]
    return "<h2>Environment</h2>" + _table(["", ""], rows) if rows else ""
