"""Image bytes to RGB pixels, under caps, with a reason whenever that fails."""

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
"""By Pillow's name of what it found: a JPEG with further pictures behind the first is MPO to it."""

_DAMAGE = (OSError, SyntaxError, ValueError, TypeError, EOFError, LookupError, ArithmeticError)
"""What Pillow's decoders raise about damaged data."""


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
    """The bytes are no image that can be decoded."""


class ImageTooLarge(ImageError):
    """The image breaks a cap of `Limits`."""


def decode_image(data: bytes, limits: Limits | None = None) -> Image.Image:
    """Decodes one image completely.

    Args:
        data: an encoded image in one of the formats of `IMAGE_SUFFIXES`.
        limits: caps on bytes and pixels; the defaults when None.

    Returns:
        The picture in mode RGB, all pixels loaded.

    Raises:
        ImageTooLarge: more bytes or pixels than the limits allow; decided before decoding.
        ImageError: not an image, an unsupported format, or damaged or truncated data.
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
            raise ImageError(f"{len(data)} bytes are no image of a known format") from error
        except Image.DecompressionBombError as error:
            raise ImageTooLarge(str(error)) from error
        except ImageError:
            raise
        except _DAMAGE as error:
            raise ImageError(f"decoding failed: {error}") from error


def reuse_image_memory(images: int) -> None:
    """Lets Pillow keep the memory of freed images for the next ones.

    Otherwise every image takes fresh pages from the system, which costs a fifth of the time of
    decoding.

    Args:
        images: how many to keep memory for, at most; larger images count as several.
    """
    Image.core.set_blocks_max(images)


def image_suffix(data: bytes) -> str:
    """The file suffix, without a dot, that belongs to the image's format.

    Raises:
        ImageError: the bytes are no image of a known format.
    """
    try:
        with Image.open(io.BytesIO(data), formats=tuple(IMAGE_SUFFIXES)) as image:
            return _SUFFIX_OF[str(image.format)]
    except _DAMAGE as error:
        raise ImageError(f"{len(data)} bytes are no image of a known format") from error
