"""Overlay that shows the chosen tokens of an image on its picture.

Dimension letters: N visual tokens of one image.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from autoselect.config import ConfigError
from autoselect.data.decode import flat
from autoselect.pruning.selection import ImageSelection
from autoselect.vlm.families import Raster
from autoselect.vlm.rasters import raster_of

REMOVED_BRIGHTNESS = 0.25


def shown_image(images: Sequence[ImageSelection], number: int, picture: Any) -> ImageSelection:
    """Return the choice of image `number`, which a picture is to show.

    Raises:
        ConfigError: the call had no such image, or the picture is not a PIL image.
    """
    if not isinstance(picture, Image.Image):
        raise ConfigError(
            f"image is of type {type(picture).__name__}, not a PIL image; give the one that the "
            "processor was given, such as autoselect.read_image(PATH)"
        )
    if not 0 <= number < len(images):
        raise ConfigError(
            f"number={number} is not an image of the last call, which had {len(images)}; choose "
            f"0..{len(images) - 1}"
        )
    return images[number]


def token_grid(
    selection: ImageSelection, raster: Raster | None, size: tuple[int, int]
) -> tuple[int, int]:
    """Return rows and columns of an image's tokens; `size` is width and height in pixels.

    Raises:
        ConfigError: the tokens are not known to be one raster of the picture.
    """
    count = len(selection.scores)
    if selection.modality == "image" and (found := raster_of(count, raster, size)) is not None:
        return found
    raise ConfigError(
        f"grid=None does not tell where the {count} visual tokens of this {selection.modality} are "
        "on the picture: there may be tiles, frames, newline tokens or resampled ones; give "
        "grid=(rows, columns) if they are one raster, or read model.autoselect.last.images"
    )


def selection_overlay(
    image: Image.Image, selection: ImageSelection, grid: tuple[int, int]
) -> Image.Image:
    """Darken the parts of a picture whose tokens were removed; `grid` is rows, columns.

    The picture is not turned, because processors take PIL images as they are stored.

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
    return Image.composite(flat(image), black, mask)
