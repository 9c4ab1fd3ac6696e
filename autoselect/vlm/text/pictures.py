"""Find the pictures that a processor cannot take."""

from collections.abc import Callable
from typing import Any

from PIL import Image

from autoselect.config import ConfigError

IMAGE_ERRORS = (ValueError, ArithmeticError, RuntimeError)
"""Errors that image processors raise for a picture they cannot process."""


def refusal_of(
    processor: Any,
    process: Callable[[tuple[Image.Image, ...]], object],
    pictures: tuple[Image.Image, ...],
) -> str | None:
    """Return what a processor says against the pictures of one sample; None if it takes them.

    Args:
        processor: named in the text.
        process: calls it with these pictures.
        pictures: all pictures of the sample.

    Raises:
        ConfigError: it cannot be used at all.
    """
    try:
        process(pictures)
    except ConfigError:
        raise
    except IMAGE_ERRORS as error:
        said = " ".join(str(error).split()).rstrip(".")
        sizes = ", ".join(f"{picture.width} x {picture.height}" for picture in pictures)
        return f"{type(processor).__name__} refuses its images of {sizes} pixels: {said}"
    return None
