"""Fonts of the reference pages: matplotlib ships them all, so nothing is downloaded.

Fonts of the test split never appear in training. Sizes are given by the height of capitals, because
families differ in how much of their em a capital fills.
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
        cap: height of a capital in pixels of the finished page.
    """

    name: str
    cap: float

    @property
    def loaded(self) -> ImageFont.FreeTypeFont:
        """The font at the size of the supersampled canvas."""
        return font(self.name, max(8, round(self.cap * SUPERSAMPLING * _PROBE / _cap(self.name))))

    def width(self, text: str) -> float:
        """Advance width of `text` in pixels of the finished page."""
        return self.loaded.getlength(text) / SUPERSAMPLING

    def fitted(self, text: str, width: float) -> "Face":
        """Return this face, or a smaller one in which `text` is at most `width` pixels wide."""
        own = self.width(text)
        return self if own <= width else Face(self.name, self.cap * width / own)


@lru_cache(maxsize=64)
def _cap(name: str) -> int:
    """Height of a capital H at `_PROBE` pixels per em."""
    left, top, right, bottom = font(name, _PROBE).getbbox("H", anchor="ls")
    return round(-top)


def fonts_of(split: Split) -> tuple[str, ...]:
    """File names of the fonts that a split may use."""
    return TEST_FONTS if split == "test" else TRAIN_FONTS
