"""Draw the paper, ink and row rules of a page; the test split has rules of its own."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from autoselect.reference.clutter import Split, photo_crop
from autoselect.reference.documents.canvas import PAGE_SIZE, Canvas, Colour, mixed, rgb
from autoselect.reference.documents.fonts import SUPERSAMPLING, Face, fonts_of
from autoselect.reference.documents.lexicon import one

RULES = {"train": ("none", "lines", "boxes"), "test": ("dots", "zebra")}
SIZE = PAGE_SIZE * SUPERSAMPLING


@dataclass(frozen=True)
class Style:
    """The look of a page.

    Attributes:
        split: split that decides which fonts, rules, distractors and photographs may appear.
        face: font of the text, at its largest size.
        ink: colour of the text.
        paper: colour of the background.
        rule: kind of separator between rows, an entry of `RULES`.
    """

    split: Split
    face: Face
    ink: Colour
    paper: Colour
    rule: str

    @property
    def faint(self) -> Colour:
        """Return a colour for lines, closer to the paper than to the ink."""
        return rgb((3 * p + i) // 4 for p, i in zip(self.paper, self.ink, strict=True))


def kind_of(split: Split) -> str:
    """Return `train` for the splits that look like training, else `test`."""
    return "test" if split == "test" else "train"


def draw_style(rng: np.random.Generator, split: Split, caps: tuple[float, float]) -> Style:
    """Draw a random style; `caps` holds the bounds of the height of capitals in pixels."""
    face = Face(one(rng, fonts_of(split)), float(rng.uniform(*caps)))
    paper = rgb(rng.integers(205, 256, size=3))
    ink = rgb(rng.integers(0, 70, size=3))
    if rng.random() < 0.12:
        paper, ink = ink, paper
    return Style(split, face, ink, paper, one(rng, RULES[kind_of(split)]))


def sheet(rng: np.random.Generator, style: Style) -> Canvas:
    """Draw an empty page of uneven brightness; some pages lie on a photograph."""
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
    """Draw the separators of rows: lines, boxes, dots or stripes."""
    faint = style.faint
    for number, middle in enumerate(middles):
        top, bottom = middle - pitch / 2, middle + pitch / 2
        if style.rule == "lines":
            canvas.line([(left, bottom), (right, bottom)], faint)
        elif style.rule == "boxes":
            canvas.rectangle((left, top, right, bottom), outline=faint)
        elif style.rule == "dots":
            for x in np.arange(left, right, 4):
                canvas.rectangle((x, bottom - 0.5, x + 0.8, bottom), fill=faint)
        elif style.rule == "zebra" and number % 2:
            canvas.rectangle((left, top, right, bottom), fill=mixed(style.paper, style.ink, 0.12))
