"""Draw the kept patches on sample images, with question and answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import wrap
from unicodedata import east_asian_width

import numpy as np
from PIL import Image

from autoselect.config.extras import extra
from autoselect.data.decode import read_image
from autoselect.evaluation.figures.style import INK, MUTED, SELECTOR_COLOUR, new_figure, plain

with extra("evaluation"):
    from matplotlib.axes import Axes
    from matplotlib.collections import LineCollection
    from matplotlib.figure import Figure

MARKS = {True: ("✓", "#1c7c3c"), False: ("✗", "#c0392b"), None: ("", INK)}
FADE = 0.22
LETTERS, LINES = 31, 3
"""Letters beside each other below a panel, and the lines of an answer that are shown."""


@dataclass(frozen=True)
class Overlay:
    """One panel: what was kept and what was answered.

    Attributes:
        positions: kept positions, ascending; None for all tokens.
        is_right: the metric counts the answer as correct; None if nobody knows.
    """

    label: str
    positions: Sequence[int] | None
    answer: str
    is_right: bool | None


@dataclass(frozen=True)
class OverlayRow:
    """One image and question; `panels` starts with the full model."""

    image: Image.Image
    question: str
    truth: str
    panels: tuple[Overlay, ...]


def faded(image: Image.Image, grid: tuple[int, int], positions: Sequence[int]) -> np.ndarray:
    """Return the image with dropped patches in pale grey, [height, width, 3] in 0..1."""
    pixels = np.asarray(read_image(image), dtype=np.float32) / 255
    grey = pixels.mean(axis=2, keepdims=True).repeat(3, axis=2)
    pale = 1 - FADE * (1 - grey)
    kept = np.zeros(grid, dtype=bool)
    kept.reshape(-1)[list(positions)] = True
    rows = np.arange(pixels.shape[0]) * grid[0] // pixels.shape[0]
    columns = np.arange(pixels.shape[1]) * grid[1] // pixels.shape[1]
    return np.where(kept[rows][:, columns][..., None], pixels, pale)


def patch_overlays(rows: Sequence[OverlayRow], grid: tuple[int, int]) -> Figure:
    """Draw one line per sample: the whole image, then what each budget keeps of it.

    Args:
        rows: samples, all with the same labels.
        grid: rows and columns of the token grid.
    """
    columns = len(rows[0].panels)
    figure = new_figure(2.05 * columns + 0.3, 2.5 * len(rows) + 0.3)
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for r, row in enumerate(rows):
        for c, panel in enumerate(row.panels):
            _panel(axes[r, c], row, panel, grid)
            axes[r, c].set_title(
                panel.label if r == 0 else " ",
                fontsize=10,
                fontweight="bold",
                color=SELECTOR_COLOUR if c else INK,
                pad=18 if r == 0 else 4,
            )
        question = axes[r, 0].annotate(
            plain(fitted(row.question, columns, 1)),
            (0, 1),
            xycoords="axes fraction",
            xytext=(0, 4),
            textcoords="offset points",
            fontsize=8.5,
            color=INK,
            annotation_clip=False,
        )
        question.set_in_layout(False)
    return figure


def fitted(text: str, panels: int = 1, lines: int = LINES) -> str:
    """Return a text in lines as wide as some panels, cut at the end of the last one."""
    letters = panels * LETTERS
    if any(east_asian_width(letter) in "FW" for letter in text):
        letters //= 2
    return "\n".join(wrap(text, letters, max_lines=lines, placeholder=" …"))


def _panel(axes: Axes, row: OverlayRow, panel: Overlay, grid: tuple[int, int]) -> None:
    whole = panel.positions is None
    image = read_image(row.image)
    axes.imshow(image if whole else faded(image, grid, panel.positions or ()))
    if panel.positions is not None:
        _outline(axes, image.size, grid, panel.positions)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color(MUTED)
        spine.set_linewidth(0.5)
    mark, colour = MARKS[panel.is_right]
    text = f"{fitted(panel.answer) or '(nothing)'} {mark}"
    if whole and panel.is_right is False:
        truth = fitted(f"truth: {row.truth}", lines=1)
        text += f"   {truth}" if len(text) + len(truth) < LETTERS else f"\n{truth}"
    axes.set_xlabel(plain(text), fontsize=8.5, color=colour, labelpad=3)


def _outline(
    axes: Axes, size: tuple[int, int], grid: tuple[int, int], positions: Sequence[int]
) -> None:
    """Outline the kept area, so that white patches can be seen as well."""
    height, width = size[1] / grid[0], size[0] / grid[1]
    kept = {divmod(position, grid[1]) for position in positions}
    lines = []
    for row, column in kept:
        left, top = column * width - 0.5, row * height - 0.5
        right, bottom = left + width, top + height
        edges = {
            (row - 1, column): [(left, top), (right, top)],
            (row + 1, column): [(left, bottom), (right, bottom)],
            (row, column - 1): [(left, top), (left, bottom)],
            (row, column + 1): [(right, top), (right, bottom)],
        }
        lines += [line for neighbour, line in edges.items() if neighbour not in kept]
    axes.add_collection(LineCollection(lines, colors=SELECTOR_COLOUR, linewidths=1.0))
