"""The fonts of the reference pages; all come with matplotlib.

The fonts of the test split never appear in training. Sizes are heights of capitals, because the
height of a capital differs between fonts of the same nominal size.
"""

from dataclasses import dataclass
from functools import lru_cache

from PIL import ImageFont

from autoselect.reference.clutter import Split, font

TRAIN_FONTS = (
    "DejaVuSans.ttf",
    "DejaVuSans-Bold.ttf",
    "DejaVuSans-Oblique.ttf",
    "DejaVuSansMono.ttf",
    "DejaVuSansMono-Oblique.ttf",
    "DejaVuSerif.ttf",
    "DejaVuSerif-BoldItalic.ttf",
    "STIXGeneral.ttf",
    "STIXGeneralBol.ttf",
    "cmb10.ttf",
    "cmr10.ttf",
    "cmss10.ttf",
)
TEST_FONTS = (
    "DejaVuSans-BoldOblique.ttf",
    "DejaVuSansMono-Bold.ttf",
    "DejaVuSerif-Bold.ttf",
    "DejaVuSerif-Italic.ttf",
    "STIXGeneralBolIta.ttf",
    "cmtt10.ttf",
)
SUPERSAMPLING = 2
_PROBE = 100


@dataclass(frozen=True)
class Face:
    """One font at one size.

    Attributes:
        name: file name of the font.
        cap: height of capitals in pixels of the finished page.
    """

    name: str
    cap: float

    @property
    def loaded(self) -> ImageFont.FreeTypeFont:
        """Load the font at the size of the canvas, which is `SUPERSAMPLING` times the page."""
        return font(self.name, max(8, round(self.cap * SUPERSAMPLING * _PROBE / _cap(self.name))))

    def width(self, text: str) -> float:
        """Return the advance width of a text in pixels of the finished page."""
        return self.loaded.getlength(text) / SUPERSAMPLING

    def fitted(self, text: str, width: float) -> "Face":
        """Return this face, or a smaller one if the text is wider than `width` pixels."""
        own = self.width(text)
        return self if own <= width else Face(self.name, self.cap * width / own)


@lru_cache(maxsize=64)
def _cap(name: str) -> int:
    """Return the height of a capital H at a font size of `_PROBE` pixels."""
    left, top, right, bottom = font(name, _PROBE).getbbox("H", anchor="ls")
    return round(-top)


def fonts_of(split: Split) -> tuple[str, ...]:
    """Return the file names of the fonts of a split."""
    return TEST_FONTS if split == "test" else TRAIN_FONTS
