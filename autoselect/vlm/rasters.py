"""Places of the visual tokens of an image on its picture, if they are one raster.

Dimension letters: N visual tokens of one image.
"""

import math

import numpy as np

from autoselect.vlm.families import Raster


def nearest_raster(num_tokens: int, size: tuple[int, int]) -> tuple[int, int]:
    """Return the rows and columns with product N whose shape is nearest to the picture's.

    `size` is the width and height of the picture in pixels.
    """
    pairs = [(n, num_tokens // n) for n in range(1, num_tokens + 1) if num_tokens % n == 0]
    aspect = np.log(size[0] / size[1])
    return min(pairs, key=lambda pair: abs(np.log(pair[1] / pair[0]) - aspect))


def raster_of(
    num_tokens: int, raster: Raster | None, size: tuple[int, int]
) -> tuple[int, int] | None:
    """Return the rows and columns of an image's N tokens, or None if they are not one raster.

    `size` is the width and height of the picture in pixels.
    """
    if raster == "picture":
        return nearest_raster(num_tokens, size)
    side = math.isqrt(num_tokens)
    return (side, side) if raster == "square" and side * side == num_tokens else None
