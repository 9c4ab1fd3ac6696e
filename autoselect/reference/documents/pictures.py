"""Charts (ChartQA), labels (OCRBench) and signs on photographs (TextVQA)."""

import numpy as np

from autoselect.reference.clutter import Split, background
from autoselect.reference.documents.canvas import PAGE_SIZE, Canvas, Colour, around
from autoselect.reference.documents.fonts import Face, fonts_of
from autoselect.reference.documents.lexicon import (
    CITIES,
    DAYS,
    DIRECTIONS,
    FIRST_NAMES,
    GOODS,
    MONTHS,
    PLACES,
    SURNAMES,
    TEXT_COLOURS,
    code,
    one,
    pick,
)
from autoselect.reference.documents.sheets import Made
from autoselect.reference.documents.style import SIZE, Style, draw_style, row_rules, sheet
from autoselect.reference.questions import Question
from autoselect.reference.scenes import COLOURS

PANEL_COLOURS = {
    "red": (190, 25, 30),
    "green": (10, 110, 50),
    "blue": (20, 60, 170),
    "yellow": (245, 205, 20),
    "white": (245, 245, 245),
    "black": (25, 25, 25),
}


def _heights(rng: np.random.Generator, count: int) -> list[int]:
    """Return values of bars between 10 and 99 that differ by 6 or more, in random order."""
    while True:
        values = rng.integers(10, 100, size=count)
        if count < 2 or np.diff(np.sort(values)).min() >= 6:
            return [int(v) for v in values]


def chart(rng: np.random.Generator, split: Split) -> Made:
    """Three to five coloured bars with names, and in two thirds of the charts with values."""
    style = draw_style(rng, split, (6.5, 8.0))
    canvas = sheet(rng, style)
    count = int(rng.integers(3, 6))
    upright = rng.random() < 0.5
    names = pick(rng, (MONTHS if rng.random() < 0.5 else DAYS) if upright else GOODS, count)
    values = _heights(rng, count)
    tints = pick(rng, list(COLOURS), count)
    valued = rng.random() < 0.67
    draw = _upright if upright else _lying
    boxes = draw(rng, canvas, style, names, values, tints, valued)
    questions = []
    for name, value, tint, own in zip(names, values, tints, boxes, strict=True):
        if valued:
            asked = f"what is the value of {name} ?"
            questions.append(Question("chart", asked, str(value), own))
            asked = f"which bar has {value} ?"
            questions.append(Question("chart", asked, name, own))
        asked = f"what color is the bar of {name} ?"
        questions.append(Question("chart", asked, tint, own))
        questions.append(Question("chart", f"which bar is {tint} ?", name, own))
    everything = tuple(box for own in boxes for box in own)
    for word, best in (("highest", max(values)), ("lowest", min(values))):
        name = names[values.index(best)]
        questions.append(Question("chart", f"which bar is the {word} ?", name, everything))
    return canvas, questions


def _upright(rng, canvas: Canvas, style: Style, names, values, tints, valued: bool) -> list:
    """Draw bars that stand on their names; return the boxes of each."""
    step = (PAGE_SIZE - 8) / len(names)
    floor, room = PAGE_SIZE - 14.0, PAGE_SIZE - 30.0
    width = step * float(rng.uniform(0.45, 0.8))
    canvas.line([(3, floor), (PAGE_SIZE - 3, floor)], style.ink)
    _gridlines(canvas, style, upright=True)
    boxes = []
    for number, (name, value, tint) in enumerate(zip(names, values, tints, strict=True)):
        middle = 4 + step * (number + 0.5)
        top = floor - room * value / 100
        face = style.face.fitted(name.upper(), step - 1.5)
        words = canvas.write(name, middle, floor + 7, face, style.ink, "m")
        bar = _bar(rng, canvas, tint, (middle - width / 2, top, middle + width / 2, floor))
        if valued:
            small = style.face.fitted("88", step - 2)
            words += canvas.write(str(value), middle, top - 6, small, style.ink, "m")
        boxes.append((*around(words), bar))
    return boxes


def _lying(rng, canvas: Canvas, style: Style, names, values, tints, valued: bool) -> list:
    """Draw bars that lie to the right of their names; return the boxes of each."""
    step = (PAGE_SIZE - 8) / len(names)
    left, room = 46.0, PAGE_SIZE - 66.0
    height = min(step * float(rng.uniform(0.45, 0.8)), 16.0)
    canvas.line([(left, 3), (left, PAGE_SIZE - 3)], style.ink)
    _gridlines(canvas, style, upright=False)
    boxes = []
    for number, (name, value, tint) in enumerate(zip(names, values, tints, strict=True)):
        middle = 4 + step * (number + 0.5)
        end = left + room * value / 100
        face = style.face.fitted(name.upper(), left - 6)
        words = canvas.write(name, left - 2.5, middle, face, style.ink, "r")
        bar = _bar(rng, canvas, tint, (left, middle - height / 2, end, middle + height / 2))
        if valued:
            small = style.face.fitted("88", 17)
            words += canvas.write(str(value), end + 2, middle, small, style.ink)
        boxes.append((*around(words), bar))
    return boxes


def _bar(rng: np.random.Generator, canvas: Canvas, tint: str, box: tuple[float, ...]):
    """Draw one bar in a shade of its colour and return its box."""
    shade = rng.uniform(0.85, 1.1)
    fill: Colour = tuple(int(min(255, c * shade)) for c in COLOURS[tint])  # type: ignore[assignment]
    canvas.rectangle(box, fill, (15, 15, 15))  # type: ignore[arg-type]
    return canvas.mark(tint, *box).box


def _gridlines(canvas: Canvas, style: Style, upright: bool) -> None:
    """Draw faint lines across the bars; pages of the test split always have some."""
    if style.rule in ("none", "boxes"):
        return
    faint: Colour = tuple((3 * p + i) // 4 for p, i in zip(style.paper, style.ink, strict=True))  # type: ignore[assignment]
    for place in np.linspace(20, PAGE_SIZE - 20, 5):
        ends = [(3, place), (109, place)] if upright else [(place + 26, 3), (place + 26, 109)]
        canvas.line(ends, faint)  # type: ignore[arg-type]


def labels(rng: np.random.Generator, split: Split) -> Made:
    """Words of different colours, sizes and fonts below each other, one of them a code."""
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


def sign(rng: np.random.Generator, split: Split) -> Made:
    """One or two panels on a photograph: a place with an arrow, a city with its distance."""
    canvas = Canvas(background(rng, split, SIZE))
    count = int(rng.integers(1, 4))
    tall = PAGE_SIZE / count
    tints = pick(rng, list(PANEL_COLOURS), count)
    names = pick(rng, PLACES, count)
    cities = pick(rng, CITIES, count)
    questions = []
    for row, tint in enumerate(tints):
        height = min(float(rng.uniform(0.55, 0.8)) * tall, 34.0)
        middle = tall * row + float(rng.uniform(height / 2 + 1, tall - height / 2 - 1))
        left, right = float(rng.uniform(2, 14)), PAGE_SIZE - float(rng.uniform(2, 14))
        fill = PANEL_COLOURS[tint]
        ink = (15, 15, 15) if sum(fill) > 380 else (250, 250, 250)
        canvas.rectangle((left, middle - height / 2, right, middle + height / 2), fill, ink, 1)
        canvas.mark(tint, left, middle - height / 2, right, middle + height / 2)
        cap = min(float(rng.uniform(0.32, 0.5)) * height, 15.0)
        face = Face(one(rng, fonts_of(split)), max(cap, 7.0))
        area = (left + 4, right - 4, middle)
        if rng.random() < 0.5:
            questions += _direction(rng, canvas, face, ink, area, names[row], tint)
        else:
            questions += _distance(rng, canvas, face, ink, area, cities[row], tint)
    return canvas, questions


def _direction(rng, canvas: Canvas, face: Face, ink: Colour, area, name: str, tint: str) -> list:
    """Print a place and an arrow into a panel; return the questions about them."""
    left, right, middle = area
    way = one(rng, DIRECTIONS)
    size = min(face.cap * 1.3, 14.0)
    first = rng.random() < 0.5
    x = left + size / 2 if first else right - size / 2
    face = face.fitted(name.upper(), right - left - size - 4)
    start = left + size + 4 if first else left
    words = canvas.write(name, start, middle, face, ink)
    _arrow(canvas, way, x, middle, size, ink)
    arrow = canvas.mark(way, x - size / 2, middle - size / 2, x + size / 2, middle + size / 2).box
    boxes = (*around(words), arrow)
    return [
        Question("sign", f"which way is the {name} ?", way, boxes),
        Question("sign", f"what does the {tint} sign say ?", name, around(words)),
        Question("sign", f"what color is the sign of the {name} ?", tint, around(words)),
    ]


def _distance(rng, canvas: Canvas, face: Face, ink: Colour, area, name: str, tint: str) -> list:
    """Print a city and its distance into a panel; return the questions about them."""
    left, right, middle = area
    far = f"{int(rng.integers(2, 100))} km"
    face = face.fitted(f"{name} {far}0".upper(), right - left)
    city = canvas.write(name, left, middle, face, ink)
    distance = canvas.write(far, right, middle, face, ink, "r")
    words = city + distance
    return [
        Question("sign", f"how far is {name} ?", far, around(words)),
        Question("sign", f"what does the {tint} sign say ?", f"{name} {far}", around(words)),
        Question("sign", f"what color is the sign of {name} ?", tint, around(city)),
    ]


def _arrow(canvas: Canvas, way: str, x: float, y: float, size: float, ink: Colour) -> None:
    """Draw an arrow of `size` pixels around (x, y)."""
    dx, dy = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}[way]
    half, wing = size / 2, size / 4
    tip = (x + dx * half, y + dy * half)
    canvas.line([(x - dx * half, y - dy * half), tip], ink, size / 6)
    for turn in (1, -1):
        end = (tip[0] - dx * wing - dy * turn * wing, tip[1] - dy * wing + dx * turn * wing)
        canvas.line([end, tip], ink, size / 6)
