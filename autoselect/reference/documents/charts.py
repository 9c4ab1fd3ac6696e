"""Draw charts of three to five coloured bars; their questions resemble those of ChartQA."""

from dataclasses import dataclass

import numpy as np

from autoselect.reference.clutter import Split
from autoselect.reference.documents.canvas import PAGE_SIZE, Box, Canvas, around, rgb
from autoselect.reference.documents.lexicon import DAYS, GOODS, MONTHS, pick
from autoselect.reference.documents.sheets import Made
from autoselect.reference.documents.style import Style, draw_style, sheet
from autoselect.reference.questions import Question
from autoselect.reference.scenes import COLOURS


@dataclass(frozen=True)
class Bar:
    """One bar with its name, its value (10 to 99) and the name of its colour."""

    name: str
    value: int
    tint: str


def chart(rng: np.random.Generator, split: Split) -> Made:
    """Draw bars with their names; two thirds of the charts also show the values."""
    style = draw_style(rng, split, (6.5, 8.0))
    canvas = sheet(rng, style)
    count = int(rng.integers(3, 6))
    upright = rng.random() < 0.5
    names = pick(rng, (MONTHS if rng.random() < 0.5 else DAYS) if upright else GOODS, count)
    values, tints = _heights(rng, count), pick(rng, list(COLOURS), count)
    bars = [Bar(*each) for each in zip(names, values, tints, strict=True)]
    valued = rng.random() < 0.67
    boxes = (_upright if upright else _lying)(rng, canvas, style, bars, valued)
    return canvas, _questions(bars, boxes, valued)


def _questions(bars: list[Bar], boxes: list[tuple[Box, ...]], valued: bool) -> list[Question]:
    """Return all questions about a chart; none is about values that are not printed."""
    questions = []
    for bar, own in zip(bars, boxes, strict=True):
        if valued:
            asked = f"what is the value of {bar.name} ?"
            questions.append(Question("chart", asked, str(bar.value), own))
            asked = f"which bar has {bar.value} ?"
            questions.append(Question("chart", asked, bar.name, own))
        asked = f"what color is the bar of {bar.name} ?"
        questions.append(Question("chart", asked, bar.tint, own))
        questions.append(Question("chart", f"which bar is {bar.tint} ?", bar.name, own))
    everything = tuple(box for own in boxes for box in own)
    ordered = sorted(bars, key=lambda bar: bar.value)
    for word, best in (("highest", ordered[-1]), ("lowest", ordered[0])):
        questions.append(Question("chart", f"which bar is the {word} ?", best.name, everything))
    return questions


def _heights(rng: np.random.Generator, count: int) -> list[int]:
    """Draw values between 10 and 99 that differ by 6 or more, in random order."""
    while True:
        values = rng.integers(10, 100, size=count)
        if count < 2 or np.diff(np.sort(values)).min() >= 6:
            return [int(v) for v in values]


def _upright(
    rng: np.random.Generator, canvas: Canvas, style: Style, bars: list[Bar], valued: bool
) -> list[tuple[Box, ...]]:
    """Draw upright bars above their names and return the boxes of each bar."""
    step = (PAGE_SIZE - 8) / len(bars)
    floor, room = PAGE_SIZE - 14.0, PAGE_SIZE - 30.0
    width = step * float(rng.uniform(0.45, 0.8))
    canvas.line([(3, floor), (PAGE_SIZE - 3, floor)], style.ink)
    _gridlines(canvas, style, upright=True)
    boxes: list[tuple[Box, ...]] = []
    for number, each in enumerate(bars):
        middle = 4 + step * (number + 0.5)
        top = floor - room * each.value / 100
        face = style.face.fitted(each.name.upper(), step - 1.5)
        words = canvas.write(each.name, middle, floor + 7, face, style.ink, "m")
        bar = _bar(rng, canvas, each.tint, (middle - width / 2, top, middle + width / 2, floor))
        if valued:
            small = style.face.fitted("88", step - 2)
            words += canvas.write(str(each.value), middle, top - 6, small, style.ink, "m")
        boxes.append((*around(words), bar))
    return boxes


def _lying(
    rng: np.random.Generator, canvas: Canvas, style: Style, bars: list[Bar], valued: bool
) -> list[tuple[Box, ...]]:
    """Draw horizontal bars to the right of their names and return the boxes of each bar."""
    step = (PAGE_SIZE - 8) / len(bars)
    left, room = 46.0, PAGE_SIZE - 66.0
    height = min(step * float(rng.uniform(0.45, 0.8)), 16.0)
    canvas.line([(left, 3), (left, PAGE_SIZE - 3)], style.ink)
    _gridlines(canvas, style, upright=False)
    boxes: list[tuple[Box, ...]] = []
    for number, each in enumerate(bars):
        middle = 4 + step * (number + 0.5)
        end = left + room * each.value / 100
        face = style.face.fitted(each.name.upper(), left - 6)
        words = canvas.write(each.name, left - 2.5, middle, face, style.ink, "r")
        bar = _bar(rng, canvas, each.tint, (left, middle - height / 2, end, middle + height / 2))
        if valued:
            small = style.face.fitted("88", 17)
            words += canvas.write(str(each.value), end + 2, middle, small, style.ink)
        boxes.append((*around(words), bar))
    return boxes


def _bar(
    rng: np.random.Generator, canvas: Canvas, tint: str, box: tuple[float, float, float, float]
) -> Box:
    """Draw one bar in a shade of its colour and return its box."""
    shade = rng.uniform(0.85, 1.1)
    fill = rgb(min(255, c * shade) for c in COLOURS[tint])
    canvas.rectangle(box, fill, (15, 15, 15))
    return canvas.mark(tint, *box).box


def _gridlines(canvas: Canvas, style: Style, upright: bool) -> None:
    """Draw faint lines across the bars; charts of the test split always have them."""
    if style.rule in ("none", "boxes"):
        return
    for place in np.linspace(20, PAGE_SIZE - 20, 5).tolist():
        line = [(3.0, place), (109.0, place)]
        if not upright:
            line = [(place + 26, 3.0), (place + 26, 109.0)]
        canvas.line(line, style.faint)
