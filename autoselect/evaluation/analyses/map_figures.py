"""Draw similarity (figure 4), selection frequency and gates."""

from collections.abc import Sequence

import numpy as np
from PIL import Image
from torch import Tensor

from autoselect.config.extras import extra
from autoselect.evaluation.analyses.gates import GateSample
from autoselect.evaluation.analyses.similarity import Similarity
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
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

HEAT = LinearSegmentedColormap.from_list("heat", ["#f7f7fa", "#f5c9b8", "#d1352b", "#5c0f14"])
COOL = LinearSegmentedColormap.from_list("cool", ["#1f4e8c", "#f7f7fa", "#d1352b"])
TOP_COLOUR, BOTTOM_COLOUR = np.array([0.82, 0.21, 0.17]), np.array([0.12, 0.38, 0.75])
TINT = 0.55


def similarity_figure(
    found: Similarity, images: Sequence[Image.Image], grid: tuple[int, int]
) -> Figure:
    """Draw the cosine matrix, and the best (red) and worst (blue) patches on images.

    Args:
        images: at most the first six are shown.
        grid: rows and columns of the tokens.
    """
    shown = list(images[:6])
    figure = new_figure(11.5, 4.6)
    outer = figure.add_gridspec(2, 5, width_ratios=[2.3, 0.02, 1, 1, 1])
    _matrix(figure.add_subplot(outer[:, 0]), found, figure)
    for i, image in enumerate(shown):
        axes = figure.add_subplot(outer[i // 3, 2 + i % 3])
        axes.imshow(tinted(image, grid, *found.positions[i]))
        axes.set_axis_off()
        if i == 0:
            title(axes, f"{len(found.positions[i][0])} best red, as many worst blue")
    return figure


def _matrix(axes: Axes, found: Similarity, figure: Figure) -> None:
    k = len(found.matrix) // 2
    drawn = axes.imshow(found.matrix.numpy(), cmap=COOL, vmin=-1, vmax=1, interpolation="nearest")
    axes.axhline(k - 0.5, color=INK, linewidth=0.8)
    axes.axvline(k - 0.5, color=INK, linewidth=0.8)
    ticks, names = [k / 2 - 0.5, 1.5 * k - 0.5], [f"best {k}", f"worst {k}"]
    axes.set_xticks(ticks, names)
    axes.set_yticks(ticks, names, rotation=90, va="center")
    axes.tick_params(length=0, labelsize=9, colors=INK)
    for x, y, value in ((0.5, 0.5, found.top), (1.5, 1.5, found.bottom), (1.5, 0.5, found.across)):
        axes.text(
            x * k - 0.5,
            y * k - 0.5,
            f"{value:.2f}",
            ha="center",
            va="center",
            fontsize=13,
            fontweight="bold",
            color=INK,
            bbox={"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 2},
        )
    bar = figure.colorbar(drawn, ax=axes, fraction=0.04, pad=0.02)
    bar.outline.set_visible(False)  # type: ignore[operator]
    bar.ax.tick_params(labelsize=8, colors=MUTED, length=0)
    title(axes, "Cosine similarity of tokens, block means")


def tinted(
    image: Image.Image, grid: tuple[int, int], top: Sequence[int], bottom: Sequence[int]
) -> np.ndarray:
    """Tint the best patches red and the worst blue, [height, width, 3] in 0..1."""
    pixels = np.asarray(image, dtype=np.float32) / 255
    kind = np.zeros(grid[0] * grid[1], dtype=int)
    kind[list(top)], kind[list(bottom)] = 1, 2
    rows = np.arange(pixels.shape[0]) * grid[0] // pixels.shape[0]
    columns = np.arange(pixels.shape[1]) * grid[1] // pixels.shape[1]
    area = kind.reshape(grid)[rows][:, columns]
    for value, colour in ((1, TOP_COLOUR), (2, BOTTOM_COLOUR)):
        mixed = (1 - TINT) * pixels + TINT * colour
        pixels = np.where((area == value)[..., None], mixed, pixels)
    return pixels


def frequency_figure(shares: dict[int, Tensor], grid: tuple[int, int]) -> Figure:
    """Draw per budget the share of images in which each position is kept; K / N is marked."""
    figure = new_figure(3.1 * len(shares) + 0.6, 3.1)
    panels = figure.subplots(1, len(shares), squeeze=False)[0]
    for axes, (budget, share) in zip(panels, sorted(shares.items()), strict=True):
        level = budget / len(share)
        drawn = axes.imshow(
            share.reshape(grid).numpy(), cmap=HEAT, vmin=0, vmax=max(3 * level, float(share.max()))
        )
        axes.set_axis_off()
        title(axes, f"{budget} of {len(share)} tokens")
        bar = figure.colorbar(drawn, ax=axes, fraction=0.045, pad=0.03)
        bar.outline.set_visible(False)
        bar.ax.axhline(level, color=INK, linewidth=1)
        bar.ax.tick_params(labelsize=7, colors=MUTED, length=0)
    return figure


def gate_figure(gates: Sequence[GateSample], course: Sequence[tuple[int, float]]) -> Figure:
    """Draw a histogram of the gates per temperature, and polarisation over training if known.

    `course` holds (step, polarisation) of the training run; empty if unknown.
    """
    figure = new_figure(9.6 if course else 5.4, 3.2)
    panels = figure.subplots(1, 2 if course else 1, squeeze=False)[0]
    edges = np.linspace(0, 1, 41)
    shades = ("#d9b3ae", "#d97b70", SELECTOR_COLOUR, "#7a1019")
    for sample, shade in zip(gates, shades, strict=False):
        panels[0].hist(
            sample.gates.numpy(),
            bins=edges.tolist(),
            histtype="step",
            linewidth=1.6,
            color=shade,
            label=f"temperature {sample.temperature:g}: polarisation {sample.polarisation:.2f}",
        )
    panels[0].set_yscale("log")
    panels[0].legend(fontsize=7.5, frameon=False)
    panels[0].set_xlabel("gate", fontsize=9, color=INK)
    panels[0].set_ylabel("tokens", fontsize=9, color=INK)
    tidy(panels[0])
    title(panels[0], "Gates of all tokens")
    if course:
        steps, values = zip(*course, strict=True)
        panels[1].plot(steps, values, color=SELECTOR_COLOUR, linewidth=1.8)
        panels[1].set_ylim(0, 1.02)
        panels[1].xaxis.set_major_locator(MaxNLocator(integer=True))
        panels[1].set_xlabel("training step", fontsize=9, color=INK)
        panels[1].set_ylabel("polarisation", fontsize=9, color=INK)
        tidy(panels[1])
        title(panels[1], "Polarisation over training")
    return figure
