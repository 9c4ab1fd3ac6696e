"""The chosen tokens of an image, shown on the picture.

Dimension letters: N visual tokens of one image.
"""

import math

import numpy as np
from PIL import Image

from autoselect.config import ConfigError
from autoselect.pruning.selection import ImageSelection
from autoselect.vlm.families import Raster

REMOVED_BRIGHTNESS = 0.25


def token_raster(num_tokens: int, size: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns whose product is N and whose shape is nearest to the picture's.

    Args:
        num_tokens: N.
        size: width and height of the picture, pixels.
    """
    pairs = [(n, num_tokens // n) for n in range(1, num_tokens + 1) if num_tokens % n == 0]
    aspect = np.log(size[0] / size[1])
    return min(pairs, key=lambda pair: abs(np.log(pair[1] / pair[0]) - aspect))


def token_grid(
    selection: ImageSelection, raster: Raster | None, size: tuple[int, int]
) -> tuple[int, int]:
    """Rows and columns of the tokens of an image.

    Args:
        selection: of one image.
        raster: of the model's family.
        size: width and height of the picture, pixels.

    Raises:
        ConfigError: the tokens are no single raster of the picture, as far as is known.
    """
    count = len(selection.scores)
    side = math.isqrt(count)
    if selection.modality == "image" and raster == "picture":
        return token_raster(count, size)
    if selection.modality == "image" and raster == "square" and side * side == count:
        return side, side
    raise ConfigError(
        f"grid=None does not tell where the {count} visual tokens of this {selection.modality} are "
        "on the picture: there may be tiles, frames, newline tokens or resampled ones; give "
        "grid=(rows, columns) if they are one raster, or read model.autoselect.last.images"
    )


def selection_overlay(
    image: Image.Image, selection: ImageSelection, grid: tuple[int, int]
) -> Image.Image:
    """The picture with the parts darkened whose tokens were removed.

    Args:
        image: the picture.
        selection: of one image, from `model.autoselect.last`.
        grid: rows and columns of the tokens.

    Raises:
        ConfigError: the grid has another number of cells than there are tokens.
    """
    count = len(selection.scores)
    rows, columns = grid
    if rows * columns != count:
        raise ConfigError(f"grid={grid} has {rows * columns} cells for {count} visual tokens")
    brightness = np.full(count, REMOVED_BRIGHTNESS)
    brightness[selection.kept.cpu().numpy()] = 1.0
    cells = Image.fromarray((brightness.reshape(rows, columns) * 255).astype(np.uint8))
    mask = cells.resize(image.size, Image.Resampling.NEAREST)
    black = Image.new("RGB", image.size)
    return Image.composite(image.convert("RGB"), black, mask)
