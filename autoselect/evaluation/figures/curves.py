"""Draw retention and accuracy against the token budget."""

from typing import Any

from autoselect.config.extras import extra
from autoselect.config.row_names import SELECTOR
from autoselect.evaluation.figures.style import (
    INK,
    MARKERS,
    MUTED,
    colours_of,
    new_figure,
    plain,
    spread,
    tidy,
    title,
)
from autoselect.evaluation.methods.names import ORACLES

with extra("evaluation"):
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.ticker import FuncFormatter

FULL_STYLE, BLIND_STYLE = (0, (4, 3)), (0, (1, 2))


def retention_curves(report: dict[str, Any]) -> Figure:
    """Draw the mean retention of every method with 95 % bands, and the accuracy per task."""
    tasks = list(report["full"]["tasks"])
    columns = -(-len(tasks) // 2)
    figure = new_figure(7.4 + 2.0 * columns, 5.2)
    grid = figure.add_gridspec(2, columns + 1, width_ratios=[6.2, *[2.0] * columns])
    _mean_panel(figure.add_subplot(grid[:, 0]), report)
    for i, task in enumerate(tasks):
        axes = figure.add_subplot(grid[i // columns, 1 + i % columns])
        _task_panel(axes, report, task)
        if i % columns == 0:
            axes.set_ylabel("accuracy in %", fontsize=8, color=INK)
        if i + columns >= len(tasks):
            axes.set_xlabel("tokens kept", fontsize=8, color=INK)
    figure.legend(
        handles=_legend(report),
        loc="outside lower right",
        ncols=min(6, len(by_method(report)) + 2),
        fontsize=7.5,
        frameon=False,
        labelcolor=INK,
    )
    return figure


def _colours(report: dict[str, Any]) -> dict[str, str]:
    return colours_of(by_method(report))


def _legend(report: dict[str, Any]) -> list[Line2D]:
    handles = [
        Line2D([], [], color=colour, linestyle=_style(method), label=plain(method))
        for method, colour in reversed(_colours(report).items())
    ]
    handles.append(Line2D([], [], color=MUTED, linestyle=FULL_STYLE, label="all tokens"))
    return [*handles, Line2D([], [], color=MUTED, linestyle=BLIND_STYLE, label="blind")]


def _style(method: str) -> Any:
    return (0, (3, 2)) if method in ORACLES else "-"


def by_method(report: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of each method by budget, the selector last so that it is drawn on top."""
    methods: dict[str, list[dict[str, Any]]] = {}
    for row in sorted(report["rows"], key=lambda r: (r["method"] == SELECTOR, r["budget"])):
        methods.setdefault(row["method"], []).append(row)
    return methods


def _mean_panel(axes: Axes, report: dict[str, Any]) -> None:
    ends, labels, colours = [], [], _colours(report)
    for method, rows in by_method(report).items():
        rows = [row for row in rows if row["retention"] is not None]
        if not rows:
            continue
        budgets = [row["budget"] for row in rows]
        values = [100 * row["retention"] for row in rows]
        low = [100 * row["retention_ci95"][0] for row in rows]
        high = [100 * row["retention_ci95"][1] for row in rows]
        is_selector = method == SELECTOR
        axes.fill_between(
            budgets, low, high, color=colours[method], alpha=0.18 if is_selector else 0.07, lw=0
        )
        _line(axes, method, colours[method], budgets, values)
        ends.append(values[-1])
        labels.append(method)
    axes.axhline(100, color=MUTED, linewidth=0.9, linestyle=FULL_STYLE)
    axes.annotate(
        f"full model, {report['num_tokens']} tokens",
        (0.0, 100),
        xycoords=("axes fraction", "data"),
        xytext=(4, 4),
        textcoords="offset points",
        fontsize=8,
        color=MUTED,
    )
    _budget_axis(axes, report)
    tidy(axes)
    _end_labels(
        axes,
        ends,
        {label: colours[label] for label in labels},
        max(row["budget"] for row in report["rows"]),
    )
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f} %"))
    axes.set_xlabel("visual tokens kept", fontsize=9, color=INK)
    title(axes, "Accuracy kept, mean over tasks (95 % bands)", 11)


def _line(axes: Axes, method: str, colour: str, budgets: list[int], values: list[float]) -> None:
    is_selector = method == SELECTOR
    axes.plot(
        budgets,
        values,
        color=colour,
        linewidth=2.6 if is_selector else 1.4,
        linestyle=_style(method),
        marker=MARKERS.get(method, "."),
        markersize=7 if is_selector else 4.5,
        markeredgecolor="white",
        markeredgewidth=0.7,
        zorder=5 if is_selector else 3,
    )


def _end_labels(axes: Axes, values: list[float], labels: dict[str, str], budget: int) -> None:
    """Write the labels, given with their colours, beside the last values."""
    bottom, top = axes.get_ylim()
    heights = spread(values, (top - bottom) / 25)
    for (label, colour), value, height in zip(labels.items(), values, heights, strict=True):
        axes.annotate(
            plain(label),
            (budget, value),
            xytext=(1.02, height),
            textcoords=("axes fraction", "data"),
            fontsize=9 if label == SELECTOR else 8,
            fontweight="bold" if label == SELECTOR else "normal",
            color=colour,
            va="center",
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": colour,
                "lw": 0.5,
                "alpha": 0.6,
                "relpos": (0.0, 0.5),
                "shrinkA": 1,
                "shrinkB": 3,
            },
        )


def _task_panel(axes: Axes, report: dict[str, Any], task: str) -> None:
    colours = _colours(report)
    for method, rows in by_method(report).items():
        budgets = [row["budget"] for row in rows]
        values = [100 * row["tasks"][task] for row in rows]
        is_selector = method == SELECTOR
        axes.plot(
            budgets,
            values,
            color=colours[method],
            linewidth=2.0 if is_selector else 0.9,
            alpha=1.0 if is_selector else 0.75,
            linestyle=_style(method),
            zorder=5 if is_selector else 3,
        )
    for name, style in (("full", FULL_STYLE), ("blind", BLIND_STYLE)):
        level = 100 * report[name]["tasks"][task]
        axes.axhline(level, color=MUTED, linewidth=0.9, linestyle=style)
    _budget_axis(axes, report, share=False)
    tidy(axes)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f}"))
    title(axes, task, 9)


def _budget_axis(axes: Axes, report: dict[str, Any], share: bool = True) -> None:
    budgets = sorted({row["budget"] for row in report["rows"]})
    axes.set_xscale("log")
    axes.set_xticks(budgets)
    axes.set_xticks([], minor=True)
    count = report["num_tokens"]
    axes.set_xticklabels([f"{b}\n{100 * b / count:.1f} %" if share else str(b) for b in budgets])
    if len(budgets) > 1:
        axes.set_xlim(budgets[0] * 0.94, budgets[-1] * 1.04)
