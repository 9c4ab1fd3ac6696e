"""Give all figures the same colours, fonts and plain axes."""

import logging
import warnings
from collections.abc import Iterable, Iterator
from colorsys import hls_to_rgb
from contextlib import contextmanager
from functools import cache
from itertools import count
from pathlib import Path

from autoselect.config.extras import extra
from autoselect.files.atomic import replacing

with extra("evaluation"):
    from matplotlib import get_cachedir
    from matplotlib.axes import Axes
    from matplotlib.colors import to_hex
    from matplotlib.figure import Figure
    from matplotlib.font_manager import get_font_names
    from matplotlib.text import Text

INK, MUTED, RULE = "#1f2430", "#6b7280", "#d9dce3"
SELECTOR_COLOUR = "#d1352b"
COLOURS = {
    "autoselect": SELECTOR_COLOUR,
    "oracle": "#1f2430",
    "divprune": "#1f6fb4",
    "cdpruner": "#2a9d8f",
    "visionzip": "#8a5fbf",
    "fastv": "#c2571a",
    "cls_attention": "#b8860b",
    "pooling": "#5b8c2a",
    "grid": "#7a8699",
    "norm": "#c96aa1",
    "random": "#a0a6b1",
}
MARKERS = {"autoselect": "o", "oracle": "D", "divprune": "s", "cdpruner": "^", "visionzip": "v"}
SPARE_COLOURS = ("#0e7490", "#9d174d", "#4d7c0f", "#7c2d12")
GOLDEN_SECTION = 0.618
DPI = 160
FONTS_OF_OTHER_SCRIPTS = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Source Han Sans SC",
    "WenQuanYi Micro Hei",
    "WenQuanYi Zen Hei",
    "Droid Sans Fallback",
    "Arial Unicode MS",
    "PingFang SC",
    "Hiragino Sans",
    "Microsoft YaHei",
    "Malgun Gothic",
    "Noto Sans Devanagari",
    "Noto Sans Thai",
)
"""Fonts with letters that matplotlib's own font lacks; those that are installed are used."""

logger = logging.getLogger(__name__)


def colours_of(methods: Iterable[str]) -> dict[str, str]:
    """Return the colour of each method; no two are alike."""
    spare = further_colours(SPARE_COLOURS)
    return {method: COLOURS.get(method) or next(spare) for method in methods}


def further_colours(first: Iterable[str]) -> Iterator[str]:
    """Yield the given colours, and then others without end, each far from the one before."""
    yield from first
    for number in count():
        yield to_hex(hls_to_rgb(number * GOLDEN_SECTION % 1, 0.38, 0.65))


def new_figure(width: float, height: float) -> Figure:
    """Create an empty figure; width and height in inches."""
    return Figure(figsize=(width, height), dpi=DPI, facecolor="white", layout="constrained")


def save(figure: Figure, path: Path, dpi: int = DPI) -> None:
    """Write a figure as a PNG file, atomically, as `autoselect.files` does."""
    for text in figure.findobj(Text):
        text.set_fontfamily(["sans-serif", *fonts_of_other_scripts()])
    with replacing(path) as stream, _missing_letters_in_one_line(path):
        figure.savefig(stream, format="png", dpi=dpi)


@cache
def fonts_of_other_scripts() -> list[str]:
    installed = set(get_font_names())
    return [name for name in FONTS_OF_OTHER_SCRIPTS if name in installed]


@contextmanager
def _missing_letters_in_one_line(path: Path) -> Iterator[None]:
    """Say once that letters are missing; matplotlib says it of every letter."""
    fonts = logging.getLogger("matplotlib.font_manager")
    before = fonts.level
    fonts.setLevel(logging.ERROR)  # it says of every title that such a font has no bold face
    try:
        with warnings.catch_warnings(record=True) as caught:
            yield
    finally:
        fonts.setLevel(before)
    missing = [one for one in caught if "missing from font" in str(one.message)]
    if missing:
        logger.warning(
            "%s shows boxes for letters that no installed font has; install a font with them, "
            "such as the Debian package fonts-noto-cjk, and remove %s/fontlist-*.json",
            path,
            get_cachedir(),
        )
    for one in caught:
        if one not in missing:
            warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)


def tidy(axes: Axes, grid: str = "y") -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(RULE)
    axes.tick_params(colors=MUTED, labelsize=8, length=0)
    axes.grid(axis=grid, color=RULE, linewidth=0.6)  # type: ignore[arg-type]
    axes.set_axisbelow(True)


def plain(text: str) -> str:
    """Return text that matplotlib draws as it is: a `$` would begin a formula, which may fail."""
    return text.replace("$", r"\$")


def title(axes: Axes, text: str, size: float = 10) -> None:
    axes.set_title(plain(text), loc="left", fontsize=size, color=INK, fontweight="bold")


def spread(values: list[float], gap: float) -> list[float]:
    """Return label heights close to `values`, in the same order, at least `gap` apart."""
    order = sorted(range(len(values)), key=lambda i: values[i])
    groups: list[list[int]] = []
    centres: list[float] = []
    for index in order:
        groups.append([index])
        centres.append(values[index])
        while (
            len(groups) > 1
            and centres[-1] - centres[-2] < gap * (len(groups[-1]) + len(groups[-2])) / 2
        ):
            merged = groups[-2] + groups[-1]
            groups[-2:] = [merged]
            centres[-2:] = [sum(values[i] for i in merged) / len(merged)]
    heights = [0.0] * len(values)
    for members, centre in zip(groups, centres, strict=True):
        for rank, index in enumerate(members):
            heights[index] = centre + gap * (rank - (len(members) - 1) / 2)
    return heights
