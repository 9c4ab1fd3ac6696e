"""Paper, ink, rules and distractors of one page; layouts of the test split are its own."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from autoselect.reference.clutter import Split, photo_crop
from autoselect.reference.documents.canvas import PAGE_SIZE, Canvas, Colour
from autoselect.reference.documents.fonts import SUPERSAMPLING, Face, fonts_of
from autoselect.reference.documents.lexicon import NOISE_WORDS, one

RULES = {"train": ("none", "lines", "boxes"), "test": ("dots", "zebra")}
DISTRACTORS = {"train": ("barcode", "stamp", "stain"), "test": ("blocks", "scribble", "fold")}
SIZE = PAGE_SIZE * SUPERSAMPLING


@dataclass(frozen=True)
class Style:
    """What all text of a page shares.

    Attributes:
        split: which fonts, rules, distractors and photographs may be used.
        face: font at its nominal size.
        ink: colour of text.
        paper: colour behind it.
        rule: how rows are set apart.
    """

    split: Split
    face: Face
    ink: Colour
    paper: Colour
    rule: str


def kind_of(split: Split) -> str:
    """Return `train` for the splits that look like training, else `test`."""
    return "test" if split == "test" else "train"


def draw_style(rng: np.random.Generator, split: Split, caps: tuple[float, float]) -> Style:
    """Draw a style; `caps` bounds the height of capitals in pixels."""
    face = Face(one(rng, fonts_of(split)), float(rng.uniform(*caps)))
    paper = tuple(int(v) for v in rng.integers(205, 256, size=3))
    ink = tuple(int(v) for v in rng.integers(0, 70, size=3))
    if rng.random() < 0.12:
        paper, ink = ink, paper
    return Style(split, face, ink, paper, one(rng, RULES[kind_of(split)]))  # type: ignore[arg-type]


def sheet(rng: np.random.Generator, style: Style) -> Canvas:
    """Return an empty page: paper of uneven brightness, now and then on a photographed desk."""
    slope = rng.normal(scale=12, size=2)
    y, x = np.mgrid[-0.5 : 0.5 : SIZE * 1j, -0.5 : 0.5 : SIZE * 1j]
    light = x * slope[0] + y * slope[1] + rng.normal(scale=3, size=(SIZE, SIZE))
    pixels = np.asarray(style.paper, dtype=float) + light[..., None]
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    if rng.random() < 0.4:
        desk = photo_crop(rng, style.split, SIZE, SIZE)
        inset = [int(v) for v in rng.integers(0, 5 * SUPERSAMPLING, size=4)]
        window = (inset[0], inset[1], SIZE - inset[2], SIZE - inset[3])
        desk.paste(image.crop(window), (inset[0], inset[1]))
        image = desk
    return Canvas(image)


def row_rules(
    canvas: Canvas, style: Style, left: float, right: float, middles: list[float], pitch: float
) -> None:
    """Draw what sets rows apart: lines, a frame around each, dots or stripes."""
    faint = tuple((3 * p + i) // 4 for p, i in zip(style.paper, style.ink, strict=True))
    for number, middle in enumerate(middles):
        top, bottom = middle - pitch / 2, middle + pitch / 2
        if style.rule == "lines":
            canvas.line([(left, bottom), (right, bottom)], faint)  # type: ignore[arg-type]
        elif style.rule == "boxes":
            canvas.rectangle((left, top, right, bottom), outline=faint)  # type: ignore[arg-type]
        elif style.rule == "dots":
            for x in np.arange(left, right, 4):
                canvas.rectangle((x, bottom - 0.5, x + 0.8, bottom), fill=faint)  # type: ignore[arg-type]
        elif style.rule == "zebra" and number % 2:
            canvas.rectangle((left, top, right, bottom), fill=_between(style, 0.12))


def _between(style: Style, share: float) -> Colour:
    """Return the paper with a share of the ink in it."""
    mixed = (round(p + share * (i - p)) for p, i in zip(style.paper, style.ink, strict=True))
    return tuple(mixed)  # type: ignore[return-value]


def draw_distractors(
    rng: np.random.Generator, canvas: Canvas, style: Style, top: float, bottom: float
) -> None:
    """Fill the empty band between `top` and `bottom` with things that no question asks about."""
    if bottom - top < 8 or rng.random() < 0.3:
        return
    kind = one(rng, DISTRACTORS[kind_of(style.split)])
    left = float(rng.uniform(4, 50))
    width = float(rng.uniform(25, 55))
    height = min(bottom - top - 2, 14.0)
    y = float(rng.uniform(top + 1, bottom - height))
    if kind == "barcode":
        for x in np.cumsum(rng.uniform(1, 3, size=int(width / 2))):
            bar = (left + x, y, left + x + rng.uniform(0.5, 1.5), y + height)
            canvas.rectangle(bar, fill=style.ink)
    elif kind == "stamp":
        tint = tuple(int(v) for v in rng.integers(60, 200, size=3))
        face = Face(one(rng, fonts_of(style.split)), 0.6 * height)
        canvas.rectangle((left, y, left + width, y + height), outline=tint, width=1)  # type: ignore[arg-type]
        word = one(rng, NOISE_WORDS)
        canvas.write(
            word, left + width / 2, y + height / 2, face.fitted(word.upper(), width - 4), tint, "m"
        )  # type: ignore[arg-type]
    elif kind == "stain":
        canvas.draw.ellipse(
            [v * SUPERSAMPLING for v in (left, y, left + height, y + height)],
            fill=_between(style, 0.25),
        )
    elif kind == "blocks":
        for row, column in np.argwhere(rng.random((int(height / 2), int(width / 2))) < 0.5):
            x0, y0 = left + 2 * column, y + 2 * row
            canvas.rectangle((x0, y0, x0 + 1.5, y0 + 1.5), fill=style.ink)
    elif kind == "scribble":
        xs = np.linspace(left, left + width, 14)
        ys = y + height / 2 + rng.normal(scale=height / 4, size=14)
        canvas.line(list(zip(xs, ys, strict=True)), _between(style, 0.7), 0.8)
    else:
        x = float(rng.uniform(10, 100))
        canvas.line([(x, 0), (x + 3, PAGE_SIZE)], _between(style, 0.2), 1)
