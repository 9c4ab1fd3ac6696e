"""Draw reference pages and record the position of every word and mark."""

from collections.abc import Iterable
from dataclasses import dataclass

from PIL import Image, ImageDraw

from autoselect.reference.documents.fonts import SUPERSAMPLING, Face

PAGE_SIZE = 112
Box = tuple[int, int, int, int]
Colour = tuple[int, int, int]


def rgb(values: Iterable[float]) -> Colour:
    """Convert three values to a colour of whole numbers."""
    red, green, blue = (int(v) for v in values)
    return red, green, blue


def mixed(first: Colour, second: Colour, share: float) -> Colour:
    """Mix two colours; a share of 1 gives `second`."""
    return rgb(round(a + share * (b - a)) for a, b in zip(first, second, strict=True))


@dataclass(frozen=True)
class Printed:
    """One printed word.

    Attributes:
        text: the characters as printed, in capitals.
        box: left, top, right and bottom in pixels.
        edges: horizontal positions of the C + 1 borders of C characters, in pixels.
        colour: name of the colour if questions may ask for it, else an empty string.
    """

    text: str
    box: Box
    edges: tuple[float, ...]
    colour: str = ""


@dataclass(frozen=True)
class Mark:
    """A drawn thing that is not text: a bar, a panel or an arrow.

    `colour` names the colour of a bar or panel, or the direction of an arrow.
    """

    colour: str
    box: Box


def around(words: list[Printed]) -> tuple[Box, ...]:
    return tuple(word.box for word in words)


class Canvas:
    """A page that is drawn at twice its size; all coordinates are pixels of the finished page.

    Args:
        image: square background with a side of `PAGE_SIZE * SUPERSAMPLING` pixels; modified.
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
            x: horizontal position of the left end, middle or right end of the line.
            middle: vertical position of the middle of the capitals.
            face: font and size.
            ink: RGB values.
            side: the part of the line that lies at `x`: `l`, `m` or `r`.
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
        """Round a region outwards to whole pixels and clip it to the page."""
        return (
            max(0, int(left)),
            max(0, int(top)),
            min(PAGE_SIZE, int(right) + 1),
            min(PAGE_SIZE, int(bottom) + 1),
        )

    def mark(self, colour: str, left: float, top: float, right: float, bottom: float) -> Mark:
        """Record a thing that was drawn and return it."""
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
        """Draw a rectangle with left, top, right and bottom as in `box`."""
        corners = tuple(v * SUPERSAMPLING for v in box)
        self.draw.rectangle(corners, fill, outline, max(1, round(width * SUPERSAMPLING)))

    def line(self, points: list[tuple[float, float]], fill: Colour, width: float = 0.5) -> None:
        """Draw connected segments."""
        scaled = [(x * SUPERSAMPLING, y * SUPERSAMPLING) for x, y in points]
        self.draw.line(scaled, fill, max(1, round(width * SUPERSAMPLING)))

    def finished(self) -> Image.Image:
        """Return the image at the size of the page, `PAGE_SIZE` pixels square."""
        return self.image.resize((PAGE_SIZE, PAGE_SIZE), Image.Resampling.BOX)
