"""Decode image bytes to RGB pixels, under caps; every failure has a reason."""

import io
import warnings
from dataclasses import dataclass

from PIL import Image, UnidentifiedImageError

IMAGE_SUFFIXES = {
    "JPEG": "jpg",
    "PNG": "png",
    "WEBP": "webp",
    "GIF": "gif",
    "BMP": "bmp",
    "TIFF": "tif",
}
_SUFFIX_OF = IMAGE_SUFFIXES | {"MPO": "jpg"}
"""By Pillow's format name; Pillow calls a JPEG that holds further pictures MPO."""

_DAMAGE = (OSError, SyntaxError, ValueError, TypeError, EOFError, LookupError, ArithmeticError)
"""What Pillow's decoders raise for damaged data."""


@dataclass(frozen=True)
class Limits:
    """Caps that keep one bad file from exhausting the memory.

    Attributes:
        member_bytes: largest member of a shard, in bytes.
        pixels: largest image, in pixels (width times height).
    """

    member_bytes: int = 64 * 2**20
    pixels: int = 50_000_000


class ImageError(ValueError):
    """The bytes are not an image that can be decoded."""


class ImageTooLarge(ImageError):
    """The image exceeds a cap of `Limits`."""


def decode_image(data: bytes, limits: Limits | None = None) -> Image.Image:
    """Decode one image completely, to mode RGB.

    Args:
        data: encoded image in one of the formats of `IMAGE_SUFFIXES`.
        limits: caps on bytes and pixels; None for the defaults.

    Raises:
        ImageTooLarge: the image exceeds a cap; checked before decoding.
        ImageError: the bytes are not an image, damaged, cut, or in an unsupported format.
    """
    limits = limits or Limits()
    if len(data) > limits.member_bytes:
        raise ImageTooLarge(f"{len(data)} bytes exceed the cap of {limits.member_bytes} bytes")
    with warnings.catch_warnings():
        # Pillow's own pixel warning has a fixed threshold; the cap below replaces it.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            image = Image.open(io.BytesIO(data), formats=tuple(IMAGE_SUFFIXES))
            width, height = image.size
            if width * height > limits.pixels:
                raise ImageTooLarge(
                    f"{width} x {height} pixels exceed the cap of {limits.pixels} pixels"
                )
            image.load()
            return image if image.mode == "RGB" else image.convert("RGB")
        except UnidentifiedImageError as error:
            raise ImageError(f"{len(data)} bytes are not an image of a known format") from error
        except Image.DecompressionBombError as error:
            raise ImageTooLarge(str(error)) from error
        except ImageError:
            raise
        except _DAMAGE as error:
            raise ImageError(f"decoding failed: {error}") from error


def reuse_image_memory(images: int) -> None:
    """Let Pillow keep the memory of freed images for the next ones.

    Fresh pages from the system cost a fifth of the decoding time. `images` is the largest number
    of images to keep memory for; larger ones count as several.
    """
    Image.core.set_blocks_max(images)


def image_suffix(data: bytes) -> str:
    """Return the file suffix, without a dot, of the image's format; raise ImageError if unknown."""
    try:
        with Image.open(io.BytesIO(data), formats=tuple(IMAGE_SUFFIXES)) as image:
            return _SUFFIX_OF[str(image.format)]
    except _DAMAGE as error:
        raise ImageError(f"{len(data)} bytes are not an image of a known format") from error
