"""Draw agreement by weight of diversity, one line per budget."""

from collections.abc import Sequence

from autoselect.config.extras import extra
from autoselect.evaluation.figures.style import (
    INK,
    SELECTOR_COLOUR,
    further_colours,
    new_figure,
    tidy,
    title,
)
from autoselect.tuning.agreement import TunedBudget

with extra("evaluation"):
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

COLOURS = ("#1f6fb4", "#2a9d8f", "#b8860b", "#8a5fbf", "#5b8c2a", "#c2571a")


def tuning_figure(found: Sequence[TunedBudget]) -> Figure:
    """Return the curves with their 95 % bands; a ring marks the best weight of each budget."""
    figure = new_figure(6.4, 3.8)
    axes = figure.subplots()
    for one, colour in zip(found, further_colours(COLOURS), strict=False):
        weights = [row.weight for row in one.measured]
        low, high = ([100 * row.ci95[i] for row in one.measured] for i in (0, 1))
        values = [100 * row.agreement for row in one.measured]
        axes.fill_between(weights, low, high, color=colour, alpha=0.1, lw=0)
        label = f"{one.budget} tokens ({100 * one.share:.1f} %)"
        axes.plot(weights, values, color=colour, marker="o", markersize=4, label=label)
        best = one.best
        axes.scatter(
            [best.weight],
            [100 * best.agreement],
            s=90,
            facecolors="none",
            edgecolors=SELECTOR_COLOUR,
            linewidths=1.6,
            zorder=5,
        )
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f} %"))
    axes.set_xlabel("weight of diversity (0: hard top-K)", fontsize=9, color=INK)
    tidy(axes)
    title(axes, "Answers that agree with the full model's, their ends included")
    axes.legend(fontsize=8, frameon=False)
    return figure
