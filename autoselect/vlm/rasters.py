"""Places of the visual tokens of an image on its picture, if they are one raster.

Dimension letters: N visual tokens of one image.
"""

import math
from collections.abc import Callable

import numpy as np
from PIL import Image

from autoselect.vlm.families import Raster

Span = tuple[float, float]
NEARLY = 0.02
"""Edges this near to those of a picture, as a fraction of it, are those of the picture."""
LONGEST = 512
"""Longer side of the pictures that are tried; what is seen depends on the shape alone."""


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


def part_seen(
    seen: Callable[[Image.Image], Image.Image], size: tuple[int, int]
) -> tuple[Span, Span]:
    """Return which part of a picture an encoder sees: left and right, top and bottom.

    They are fractions of the picture; what is padded to it lies outside of 0..1. Two pictures tell,
    whose red and green are the column and the row: what differs between them is not padding.

    Args:
        seen: returns a picture as the encoder sees it.
        size: width and height of the picture in pixels.
    """
    scale = min(1.0, LONGEST / max(size))
    sides = [max(1, round(scale * side)) for side in size]
    tried = np.zeros((sides[1], sides[0], 3))
    tried[..., :2] = np.stack(np.meshgrid(*(256 * (np.arange(n) + 0.5) / n for n in sides)), -1)
    first, second = (
        np.asarray(seen(Image.fromarray((tried + [0, 0, blue]).astype(np.uint8)))) / 256
        for blue in (0, 255)
    )
    is_picture = second[..., 2] - first[..., 2] > 0.5
    return _span(first[..., 0], is_picture), _span(first[..., 1].T, is_picture.T)


def _span(places: np.ndarray, is_picture: np.ndarray) -> Span:
    """Return the places of the edges of the columns, continued in a straight line into padding.

    `places` [rows, columns] are known where `is_picture` is true.
    """
    known = np.flatnonzero(is_picture.any(axis=0))
    if len(known) < 2:
        return 0.0, 1.0
    means = np.array([places[is_picture[:, column], column].mean() for column in known])
    slope, start = np.polyfit(known + 0.5, means, 1)
    first, last = float(start), float(start + slope * places.shape[1])
    is_whole = abs(first) < NEARLY and abs(last - 1) < NEARLY or last - first < NEARLY
    return (0.0, 1.0) if is_whole else (first, last)
