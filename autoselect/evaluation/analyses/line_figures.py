"""Draw small figures: noise gate (figure 5), classifier (figure 3) and uniform gates."""

from typing import Any

from autoselect.config.extras import extra
from autoselect.evaluation.analyses.classifier import OWN_PREDICTION
from autoselect.evaluation.analyses.fidelity import COVARIANCE, NOISE, REMOVAL, ZEROS
from autoselect.evaluation.figures.style import (
    INK,
    MUTED,
    SELECTOR_COLOUR,
    new_figure,
    tidy,
    title,
)

with extra("evaluation"):
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

UNCHANGED = "unchanged predictions of the classifier"
LOOKS = {
    REMOVAL: ("#1f2430", "o", "-"),
    NOISE: (SELECTOR_COLOUR, "s", (0, (4, 2))),
    COVARIANCE: ("#e5968f", "D", (0, (4, 2))),
    ZEROS: ("#7a8699", "^", (0, (1, 2))),
    "selected": (SELECTOR_COLOUR, "o", "-"),
    "random": ("#a0a6b1", ".", "-"),
}


def fidelity_figure(found: dict[str, Any], learned: dict[str, Any] | None = None) -> Figure:
    """Draw what `gating_fidelity` or `patch_fidelity` returned: accuracy by treatment and budget.

    Args:
        found: numbers under random scores.
        learned: numbers under the learned scores, drawn thinly in the same axes.
    """
    figure, axes = _curves(found["curves"], found["budgets"])
    for name in (REMOVAL, NOISE) if learned else ():
        assert learned is not None
        values = [100 * value for value in learned["curves"][name]]
        colour, _, style = LOOKS[name]
        label = f"{name}, learned scores"
        axes.plot(found["budgets"], values, color=colour, ls=style, lw=0.8, label=label)  # type: ignore[arg-type]
    axes.legend(fontsize=8, frameon=False)
    measured = "accuracy, mean over tasks"
    if "top5" in found:
        measured = UNCHANGED if found["labels"] == OWN_PREDICTION else "top-1 accuracy"
        axes.set_xlabel("patches kept", fontsize=9, color=INK)
    axes.set_ylabel(measured, fontsize=9, color=INK)
    gap = f"{100 * found['mean_gap']:.1f} points"
    title(axes, f"Random scores, noise and removal: mean absolute gap {gap}")
    return figure


def classifier_figure(found: dict[str, Any]) -> Figure:
    """Draw what `classifier_accuracy` returned: selected against random patches."""
    curves = {name: found[name] for name in ("selected", "random")}
    figure, axes = _curves(curves, found["budgets"])
    axes.axhline(100 * found["full"], color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)))
    axes.annotate(
        "all patches",
        (0.0, 100 * found["full"]),
        xycoords=("axes fraction", "data"),
        xytext=(4, -10),
        textcoords="offset points",
        fontsize=8,
        color=MUTED,
    )
    measured = UNCHANGED if found["labels"] == OWN_PREDICTION else "accuracy of the classifier"
    axes.set_ylabel(measured, fontsize=9, color=INK)
    rows, columns = found["grids"]["classifier"]
    title(axes, f"Image classifier ({rows} x {columns} patches) without the dropped patches")
    return figure


def leak_figure(found: dict[str, Any]) -> Figure:
    """Draw what `leak` returned: uniform gates between blind guessing and all tokens."""
    figure = new_figure(6.4, 2.6)
    axes = figure.subplots()
    share = f"every gate at {found['gate']:.2f}"
    bars = [
        ("all tokens", found["full"], MUTED),
        (f"{share}, Denoiser", found["with_denoiser"], SELECTOR_COLOUR),
        (share, found["without_denoiser"], "#e5968f"),
        ("blind", found["blind"], MUTED),
    ]
    shown = [(name, 100 * value, colour) for name, value, colour in bars if value is not None]
    names, values, colours = zip(*reversed(shown), strict=True)
    drawn = axes.barh(names, values, color=colours, height=0.6)
    axes.bar_label(drawn, fmt="%.1f %%", fontsize=8, color=INK, padding=3)
    axes.set_xlim(0, 108)
    tidy(axes, grid="x")
    title(axes, "What uniform gates let through (mean accuracy)")
    return figure


def _curve(axes: Axes, name: str, budgets: list[int], values: list[float]) -> None:
    colour, marker, style = LOOKS[name]
    axes.plot(
        budgets,
        [100 * value for value in values],
        color=colour,
        marker=marker,
        linestyle=style,  # type: ignore[arg-type]
        linewidth=1.8,
        markersize=6,
        markeredgecolor="white",
        label=name,
    )


def _curves(curves: dict[str, Any], budgets: list[int]) -> tuple[Figure, Axes]:
    figure = new_figure(6.4, 3.8)
    axes = figure.subplots()
    for name, values in curves.items():
        _curve(axes, name, budgets, values)
    _finish(axes, budgets)
    axes.legend(fontsize=9, frameon=False)
    return figure, axes


def _finish(axes: Axes, budgets: list[int]) -> None:
    axes.set_xscale("log")
    axes.set_xticks(budgets, [str(budget) for budget in budgets])
    axes.set_xticks([], minor=True)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f} %"))
    axes.set_xlabel("visual tokens kept", fontsize=9, color=INK)
    tidy(axes)
