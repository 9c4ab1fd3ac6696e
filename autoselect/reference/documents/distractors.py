"""Draw things that no question asks about; the test split has kinds that training never shows."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from autoselect.reference.documents.canvas import PAGE_SIZE, Canvas, mixed, rgb
from autoselect.reference.documents.fonts import SUPERSAMPLING, Face, fonts_of
from autoselect.reference.documents.lexicon import NOISE_WORDS, one
from autoselect.reference.documents.style import Style, kind_of


@dataclass(frozen=True)
class Place:
    """The region of a distractor, in pixels."""

    left: float
    top: float
    width: float
    height: float


def _barcode(rng: np.random.Generator, canvas: Canvas, style: Style, place: Place) -> None:
    for x in np.cumsum(rng.uniform(1, 3, size=int(place.width / 2))):
        left = place.left + x
        bar = (left, place.top, left + rng.uniform(0.5, 1.5), place.top + place.height)
        canvas.rectangle(bar, fill=style.ink)


def _stamp(rng: np.random.Generator, canvas: Canvas, style: Style, place: Place) -> None:
    tint = rgb(rng.integers(60, 200, size=3))
    face = Face(one(rng, fonts_of(style.split)), 0.6 * place.height)
    right, bottom = place.left + place.width, place.top + place.height
    canvas.rectangle((place.left, place.top, right, bottom), outline=tint, width=1)
    word = one(rng, NOISE_WORDS)
    middle = place.top + place.height / 2
    face = face.fitted(word.upper(), place.width - 4)
    canvas.write(word, place.left + place.width / 2, middle, face, tint, "m")


def _stain(rng: np.random.Generator, canvas: Canvas, style: Style, place: Place) -> None:
    right, bottom = place.left + place.height, place.top + place.height
    box = [v * SUPERSAMPLING for v in (place.left, place.top, right, bottom)]
    canvas.draw.ellipse(box, fill=mixed(style.paper, style.ink, 0.25))


def _blocks(rng: np.random.Generator, canvas: Canvas, style: Style, place: Place) -> None:
    filled = rng.random((int(place.height / 2), int(place.width / 2))) < 0.5
    for row, column in np.argwhere(filled):
        x, y = place.left + 2 * column, place.top + 2 * row
        canvas.rectangle((x, y, x + 1.5, y + 1.5), fill=style.ink)


def _scribble(rng: np.random.Generator, canvas: Canvas, style: Style, place: Place) -> None:
    xs = np.linspace(place.left, place.left + place.width, 14)
    ys = place.top + place.height / 2 + rng.normal(scale=place.height / 4, size=14)
    canvas.line(list(zip(xs, ys, strict=True)), mixed(style.paper, style.ink, 0.7), 0.8)


def _fold(rng: np.random.Generator, canvas: Canvas, style: Style, place: Place) -> None:
    x = float(rng.uniform(10, 100))
    canvas.line([(x, 0), (x + 3, PAGE_SIZE)], mixed(style.paper, style.ink, 0.2), 1)


Painter = Callable[[np.random.Generator, Canvas, Style, Place], None]
DISTRACTORS: dict[str, dict[str, Painter]] = {
    "train": {"barcode": _barcode, "stamp": _stamp, "stain": _stain},
    "test": {"blocks": _blocks, "scribble": _scribble, "fold": _fold},
}


def draw_distractors(
    rng: np.random.Generator, canvas: Canvas, style: Style, top: float, bottom: float
) -> None:
    """Draw one distractor, or none, between two heights of the page in pixels.

    A band of less than 8 pixels stays empty.
    """
    if bottom - top < 8 or rng.random() < 0.3:
        return
    painters = DISTRACTORS[kind_of(style.split)]
    paint = painters[one(rng, tuple(painters))]
    left, width = float(rng.uniform(4, 50)), float(rng.uniform(25, 55))
    height = min(bottom - top - 2, 14.0)
    paint(
        rng, canvas, style, Place(left, float(rng.uniform(top + 1, bottom - height)), width, height)
    )
