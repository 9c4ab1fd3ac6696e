"""Draw labels and signs; their questions resemble those of OCRBench and TextVQA."""

from dataclasses import dataclass

import numpy as np

from autoselect.reference.clutter import Split, background
from autoselect.reference.documents.canvas import PAGE_SIZE, Box, Canvas, Colour, around
from autoselect.reference.documents.fonts import Face, fonts_of
from autoselect.reference.documents.lexicon import (
    CITIES,
    DIRECTIONS,
    FIRST_NAMES,
    GOODS,
    PLACES,
    SURNAMES,
    TEXT_COLOURS,
    code,
    one,
    pick,
)
from autoselect.reference.documents.sheets import Made
from autoselect.reference.documents.style import SIZE, draw_style, row_rules, sheet
from autoselect.reference.questions import Question

PANEL_COLOURS = {
    "red": (190, 25, 30),
    "green": (10, 110, 50),
    "blue": (20, 60, 170),
    "yellow": (245, 205, 20),
    "white": (245, 245, 245),
    "black": (25, 25, 25),
}


def labels(rng: np.random.Generator, split: Split) -> Made:
    """Draw words of different colours, sizes and fonts below each other; one of them is a code."""
    style = draw_style(rng, split, (7.0, 9.0))
    while sum(style.paper) < 500:
        style = draw_style(rng, split, (7.0, 9.0))
    canvas = sheet(rng, style)
    count = int(rng.integers(2, 7))
    pitch = (PAGE_SIZE - 8) / count
    lexicon = [GOODS, FIRST_NAMES, SURNAMES, CITIES, PLACES][int(rng.integers(5))]
    texts = pick(rng, lexicon, count)
    coded = int(rng.integers(count))
    texts[coded] = code(rng)
    inks = pick(rng, list(TEXT_COLOURS), count)
    middles = [4 + pitch * (row + 0.5) for row in range(count)]
    row_rules(canvas, style, 4, PAGE_SIZE - 4, middles, pitch)
    questions = []
    for row, (text, ink, middle) in enumerate(zip(texts, inks, middles, strict=True)):
        cap = float(rng.uniform(6.5, min(15.0, pitch * 0.7)))
        face = Face(one(rng, fonts_of(split)), cap).fitted(text.upper(), PAGE_SIZE - 16)
        room = PAGE_SIZE - 12 - face.width(text.upper())
        x = 6 + float(rng.uniform(0, max(room, 0.1)))
        words = canvas.write(text, x, middle, face, TEXT_COLOURS[ink], colour=ink)
        boxes = around(words)
        if row == coded:
            questions.append(Question("ocr", "what is the code ?", text, boxes))
            asked = f"what color is the code {text} ?"
        else:
            asked = f"what color is the word {text} ?"
        questions.append(Question("ocr", f"what is written in {ink} ?", text, boxes))
        questions.append(Question("ocr", asked, ink, boxes))
        if row in (0, count - 1):
            place = "first" if row == 0 else "last"
            questions.append(Question("ocr", f"what is the {place} word ?", text, boxes))
    return canvas, questions


@dataclass(frozen=True)
class Panel:
    """A panel of a sign and the region for its text.

    Attributes:
        left: left end of the region in pixels.
        right: right end of the region in pixels.
        middle: vertical middle of the panel in pixels.
        tint: name of the panel's colour.
        ink: colour of the text.
        face: font of the text, at its largest size.
    """

    left: float
    right: float
    middle: float
    tint: str
    ink: Colour
    face: Face


def sign(rng: np.random.Generator, split: Split) -> Made:
    """Draw one to three panels on a photograph: a place with an arrow or a city with a distance."""
    canvas = Canvas(background(rng, split, SIZE))
    count = int(rng.integers(1, 4))
    tall = PAGE_SIZE / count
    tints = pick(rng, list(PANEL_COLOURS), count)
    places = pick(rng, PLACES, count)
    cities = pick(rng, CITIES, count)
    questions = []
    for row, tint in enumerate(tints):
        height = min(float(rng.uniform(0.55, 0.8)) * tall, 34.0)
        middle = tall * row + float(rng.uniform(height / 2 + 1, tall - height / 2 - 1))
        panel = _panel(rng, canvas, split, tint, middle, height)
        if rng.random() < 0.5:
            questions += _direction(rng, canvas, panel, places[row])
        else:
            questions += _distance(rng, canvas, panel, cities[row])
    return canvas, questions


def _panel(
    rng: np.random.Generator, canvas: Canvas, split: Split, tint: str, middle: float, height: float
) -> Panel:
    """Draw an empty panel with a vertical middle and a height in pixels."""
    left, right = float(rng.uniform(2, 14)), PAGE_SIZE - float(rng.uniform(2, 14))
    fill = PANEL_COLOURS[tint]
    ink = (15, 15, 15) if sum(fill) > 380 else (250, 250, 250)
    canvas.rectangle((left, middle - height / 2, right, middle + height / 2), fill, ink, 1)
    canvas.mark(tint, left, middle - height / 2, right, middle + height / 2)
    cap = min(float(rng.uniform(0.32, 0.5)) * height, 15.0)
    face = Face(one(rng, fonts_of(split)), max(cap, 7.0))
    return Panel(left + 4, right - 4, middle, tint, ink, face)


def _direction(rng: np.random.Generator, canvas: Canvas, panel: Panel, name: str) -> list[Question]:
    """Print a place and an arrow on a panel and return the questions about them."""
    way = one(rng, DIRECTIONS)
    size = min(panel.face.cap * 1.3, 14.0)
    first = rng.random() < 0.5
    x = panel.left + size / 2 if first else panel.right - size / 2
    face = panel.face.fitted(name.upper(), panel.right - panel.left - size - 4)
    start = panel.left + size + 4 if first else panel.left
    words = canvas.write(name, start, panel.middle, face, panel.ink)
    arrow = _arrow(canvas, way, x, panel.middle, size, panel.ink)
    tint = panel.tint
    return [
        Question("sign", f"which way is the {name} ?", way, (*around(words), arrow)),
        Question("sign", f"what does the {tint} sign say ?", name, around(words)),
        Question("sign", f"what color is the sign of the {name} ?", tint, around(words)),
    ]


def _distance(rng: np.random.Generator, canvas: Canvas, panel: Panel, name: str) -> list[Question]:
    """Print a city and its distance on a panel and return the questions about them."""
    far = f"{int(rng.integers(2, 100))} km"
    face = panel.face.fitted(f"{name} {far}0".upper(), panel.right - panel.left)
    city = canvas.write(name, panel.left, panel.middle, face, panel.ink)
    distance = canvas.write(far, panel.right, panel.middle, face, panel.ink, "r")
    boxes, tint = around(city + distance), panel.tint
    return [
        Question("sign", f"how far is {name} ?", far, boxes),
        Question("sign", f"what does the {tint} sign say ?", f"{name} {far}", boxes),
        Question("sign", f"what color is the sign of {name} ?", tint, around(city)),
    ]


def _arrow(canvas: Canvas, way: str, x: float, y: float, size: float, ink: Colour) -> Box:
    """Draw an arrow of `size` pixels with its centre at (x, y) and return its box."""
    dx, dy = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}[way]
    half, wing = size / 2, size / 4
    tip = (x + dx * half, y + dy * half)
    canvas.line([(x - dx * half, y - dy * half), tip], ink, size / 6)
    for turn in (1, -1):
        end = (tip[0] - dx * wing - dy * turn * wing, tip[1] - dy * wing + dx * turn * wing)
        canvas.line([end, tip], ink, size / 6)
    return canvas.mark(way, x - half, y - half, x + half, y + half).box
