"""The sheet that reference pages are drawn on; it notes where every word and mark lies."""

from collections.abc import Iterable
from dataclasses import dataclass

from PIL import Image, ImageDraw

from autoselect.reference.documents.fonts import SUPERSAMPLING, Face

PAGE_SIZE = 112
Box = tuple[int, int, int, int]
Colour = tuple[int, int, int]


def rgb(values: Iterable[float]) -> Colour:
    """Return three values as a colour of whole numbers."""
    red, green, blue = (int(v) for v in values)
    return red, green, blue


def mixed(first: Colour, second: Colour, share: float) -> Colour:
    """Return `first` with a share of `second` in it."""
    return rgb(round(a + share * (b - a)) for a, b in zip(first, second, strict=True))


@dataclass(frozen=True)
class Printed:
    """One printed word.

    Attributes:
        text: as printed, capitals and digits.
        box: left, top, right, bottom in pixels.
        edges: horizontal borders between its characters in pixels, one more than characters.
        colour: name of its colour, or an empty string.
    """

    text: str
    box: Box
    edges: tuple[float, ...]
    colour: str = ""


@dataclass(frozen=True)
class Mark:
    """A coloured thing that is not text: a bar, a panel, an arrow."""

    colour: str
    box: Box


def around(words: list[Printed]) -> tuple[Box, ...]:
    """Return the boxes of `words`."""
    return tuple(word.box for word in words)


class Canvas:
    """Draws at twice the size in coordinates of the finished page.

    Args:
        image: background, `PAGE_SIZE * SUPERSAMPLING` pixels square.
    """

    def __init__(self, image: Image.Image) -> None:
        self.image = image
        self.draw = ImageDraw.Draw(image)
        self.words: list[Printed] = []
        self.marks: list[Mark] = []

    def write(
        self,
        text: str,
        x: float,
        middle: float,
        face: Face,
        ink: Colour,
        side: str = "l",
        colour: str = "",
    ) -> list[Printed]:
        """Print words in capitals on one line and return them.

        Args:
            text: one or more words.
            x: left end, middle or right end of the line in pixels, according to `side`.
            middle: half the height of its capitals, in pixels from the top.
            face: font and size.
            ink: RGB.
            side: `l`, `m` or `r`.
            colour: name of the ink if questions may ask for it.
        """
        shown = text.upper()
        left = x - {"l": 0.0, "m": 0.5, "r": 1.0}[side] * face.width(shown)
        baseline = (middle + face.cap / 2) * SUPERSAMPLING
        self.draw.text(
            (left * SUPERSAMPLING, baseline), shown, fill=ink, font=face.loaded, anchor="ls"
        )
        printed, start = [], 0
        for word in shown.split():
            start = shown.index(word, start)
            ends = range(start, start + len(word) + 1)
            edges = tuple(left + face.width(shown[:end]) for end in ends)
            box = self._box(edges[0], middle - face.cap / 2, edges[-1], middle + face.cap / 2)
            printed.append(Printed(word, box, edges, colour))
            start += len(word)
        self.words += printed
        return printed

    def _box(self, left: float, top: float, right: float, bottom: float) -> Box:
        """Return whole pixels around a region, clipped to the page."""
        return (
            max(0, int(left)),
            max(0, int(top)),
            min(PAGE_SIZE, int(right) + 1),
            min(PAGE_SIZE, int(bottom) + 1),
        )

    def mark(self, colour: str, left: float, top: float, right: float, bottom: float) -> Mark:
        """Note a coloured thing that was drawn."""
        mark = Mark(colour, self._box(left, top, right, bottom))
        self.marks.append(mark)
        return mark

    def rectangle(
        self,
        box: tuple[float, float, float, float],
        fill: Colour | None = None,
        outline: Colour | None = None,
        width: float = 0.5,
    ) -> None:
        """Draw a rectangle; `box` and `width` in pixels of the finished page."""
        corners = tuple(v * SUPERSAMPLING for v in box)
        self.draw.rectangle(corners, fill, outline, max(1, round(width * SUPERSAMPLING)))

    def line(self, points: list[tuple[float, float]], fill: Colour, width: float = 0.5) -> None:
        """Draw connected segments; points and width in pixels of the finished page."""
        scaled = [(x * SUPERSAMPLING, y * SUPERSAMPLING) for x, y in points]
        self.draw.line(scaled, fill, max(1, round(width * SUPERSAMPLING)))

    def finished(self) -> Image.Image:
        """Return the page at its own size."""
        return self.image.resize((PAGE_SIZE, PAGE_SIZE), Image.Resampling.BOX)
