"""Draw receipts, tables and forms; their questions resemble those of DocVQA."""

import numpy as np

from autoselect.reference.clutter import Split
from autoselect.reference.documents.canvas import PAGE_SIZE, Canvas, Printed, around
from autoselect.reference.documents.distractors import draw_distractors
from autoselect.reference.documents.fonts import Face, fonts_of
from autoselect.reference.documents.lexicon import (
    DAYS,
    FIRST_NAMES,
    GOODS,
    KEYS,
    MONTHS,
    SHOP_FIRST,
    SHOP_SECOND,
    money,
    one,
    pick,
    value_of,
)
from autoselect.reference.documents.style import Style, draw_style, row_rules, sheet
from autoselect.reference.questions import Question

Made = tuple[Canvas, list[Question]]


def _rows(
    rng: np.random.Generator, top: float, count: int, cap: float
) -> tuple[list[float], float]:
    """Draw a row pitch; return the middles of `count` rows below `top`, and the pitch."""
    widest = min(cap * 2.2, (PAGE_SIZE - 4 - top) / count)
    pitch = float(rng.uniform(min(cap * 1.45, widest), widest))
    return [top + pitch * (row + 0.5) for row in range(count)], pitch


def _density(rng: np.random.Generator, most: int) -> tuple[int, tuple[float, float]]:
    """Draw the number of rows and the bounds of the height of capitals: few large or many small."""
    if rng.random() < 0.5:
        return int(rng.integers(2, 4)), (8.5, 11.0)
    return int(rng.integers(4, most + 1)), (6.5, 8.0)


def _title(
    rng: np.random.Generator, canvas: Canvas, style: Style, text: str, middle: float
) -> list[Printed]:
    """Print a heading in the middle or at the left."""
    centred = rng.random() < 0.6
    face = style.face.fitted(text.upper(), PAGE_SIZE - 14)
    x = PAGE_SIZE / 2 if centred else 7.0
    return canvas.write(text, x, middle, face, style.ink, "m" if centred else "l")


def receipt(rng: np.random.Generator, split: Split) -> Made:
    """Draw the name of a shop, goods with prices, and their sum."""
    count, caps = _density(rng, 6)
    style = draw_style(rng, split, caps)
    canvas = sheet(rng, style)
    shop = f"{one(rng, SHOP_FIRST)} {one(rng, SHOP_SECOND)}"
    title = _title(rng, canvas, style, shop, 10.0)
    goods = pick(rng, GOODS, count)
    cents = [int(v) for v in rng.permutation(np.arange(100, 1000))[:count]]
    middles, pitch = _rows(rng, 18.0, count + 1, style.face.cap)
    left, right = float(rng.uniform(5, 12)), PAGE_SIZE - float(rng.uniform(5, 12))
    row_rules(canvas, style, left - 2, right + 2, middles, pitch)
    questions = [Question("document", "what is the name of the shop ?", shop, around(title))]
    for name, paid, middle in zip([*goods, "total"], [*cents, sum(cents)], middles, strict=True):
        face = style.face.fitted(f"{name} {money(paid)}0".upper(), right - left)
        key = canvas.write(name, left, middle, face, style.ink)
        value = canvas.write(money(paid), right, middle, face, style.ink, "r")
        if name == "total":
            asked = "what is the total ?"
        else:
            asked = f"how much is the {name} ?"
            reverse = f"what costs {money(paid)} ?"
            questions.append(Question("document", reverse, name, around(value + key)))
        questions.append(Question("document", asked, money(paid), around(key + value)))
    draw_distractors(rng, canvas, style, middles[-1] + pitch / 2, PAGE_SIZE - 3.0)
    return canvas, questions


def table(rng: np.random.Generator, split: Split) -> Made:
    """Draw two or three columns of whole numbers with headings, and one name per row."""
    rows, caps = _density(rng, 7)
    columns = 3 if rows > 3 and rng.random() < 0.6 else 2
    style = draw_style(rng, split, (6.2, 7.2) if columns == 3 else caps)
    canvas = sheet(rng, style)
    names = pick(rng, FIRST_NAMES if rng.random() < 0.5 else GOODS, rows)
    heads = pick(rng, DAYS if rng.random() < 0.5 else MONTHS, columns)
    values = rng.permutation(np.arange(10, 100))[: rows * columns].reshape(rows, columns)
    middles, pitch = _rows(rng, float(rng.uniform(3, 8)), rows + 1, style.face.cap)
    left, right = float(rng.uniform(4, 8)), PAGE_SIZE - float(rng.uniform(4, 8))
    row_rules(canvas, style, left - 2, right + 2, middles, pitch)
    first = 0.46 if columns == 2 else 0.4
    step = (right - left) * (1 - first) / columns
    ends = [right - step * (columns - 1 - c) for c in range(columns)]
    faces = [style.face.fitted(h.upper(), step - 3) for h in heads]
    head_words = [
        canvas.write(h, end, middles[0], face, style.ink, "r")
        for h, end, face in zip(heads, ends, faces, strict=True)
    ]
    questions = []
    for row, (name, middle) in enumerate(zip(names, middles[1:], strict=True)):
        face = style.face.fitted(name.upper(), (right - left) * first - 2)
        key = canvas.write(name, left, middle, face, style.ink)
        for column, head in enumerate(heads):
            text = str(values[row, column])
            cell = canvas.write(text, ends[column], middle, style.face, style.ink, "r")
            asked = f"what is the value of {name} in {head} ?"
            boxes = around(key + head_words[column] + cell)
            questions.append(Question("document", asked, text, boxes))
            reverse = f"which row has {text} ?"
            questions.append(Question("document", reverse, name, around(cell + key)))
    draw_distractors(rng, canvas, style, middles[-1] + pitch / 2, PAGE_SIZE - 3.0)
    return canvas, questions


def form(rng: np.random.Generator, split: Split) -> Made:
    """Draw form fields with their values beside or below them."""
    count, caps = _density(rng, 7)
    below = count <= 3 and rng.random() < 0.4
    style = draw_style(rng, split, caps)
    canvas = sheet(rng, style)
    keys = pick(rng, KEYS, count)
    middles, pitch = _rows(rng, float(rng.uniform(3, 8)), count, style.face.cap * (1 + below))
    left, right = float(rng.uniform(4, 9)), PAGE_SIZE - float(rng.uniform(4, 9))
    row_rules(canvas, style, left - 2, right + 2, middles, pitch)
    colon = ":" if rng.random() < 0.5 else ""
    aligned = left + max(style.face.width(f"{key}: ".upper()) for key in keys)
    same_face = rng.random() < 0.6
    questions = []
    for name, middle in zip(keys, middles, strict=True):
        text = value_of(rng, name)
        face = style.face if same_face else Face(one(rng, fonts_of(style.split)), style.face.cap)
        lift = style.face.cap * 0.72 if below else 0.0
        key = canvas.write(name + colon, left, middle - lift, style.face, style.ink)
        x = left + 6 if below else aligned
        face = face.fitted(text.upper(), right - x)
        value = canvas.write(text, x, middle + lift, face, style.ink)
        asked = f"what is the {name} ?"
        questions.append(Question("document", asked, text, around(key + value)))
    draw_distractors(rng, canvas, style, middles[-1] + pitch / 2, PAGE_SIZE - 3.0)
    return canvas, questions
