"""Read pictures as a person sees them: upright, transparency on white, RGB.

`read_image` reads every picture of the project: from shards, converters, lmms-eval and users.
transformers has two routes that disagree. It takes a PIL image as it is stored and puts
transparency on white; it turns a path upright and makes transparency black. `read_image` turns and
puts on white. Where both routes agree (palettes, CMYK), it does the same, with one exception: both
cut 16-bit values to 0..255, which makes most such pictures white, and floats of 0..1 black.
`read_image` scales them to 8 bits, as a viewer does.
"""

import base64
import binascii
import io
import os
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from autoselect.config import ConfigError
from autoselect.data.content import content_of
from autoselect.data.storage import is_web

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

_DAMAGE = (
    *(OSError, SyntaxError, ValueError, TypeError, EOFError, LookupError, ArithmeticError),
    *(RuntimeError, MemoryError, struct.error, zlib.error),
)
"""What Pillow's decoders raise for damaged data."""

_ORIENTATION = 0x112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes a picture upright, by its EXIF orientation."""

_PREMULTIPLIED = {"RGBa": "RGBA", "La": "LA"}
_STRICT = threading.Lock()


@dataclass(frozen=True)
class Limits:
    """Caps that keep one bad file from exhausting the memory.

    Attributes:
        member_bytes: largest member of a shard, in bytes.
        pixels: largest image, in pixels (width times height).
    """

    member_bytes: int = 64 * 2**20
    pixels: int = 50_000_000


class ImageError(ConfigError):
    """The bytes are not an image that can be decoded."""


class ImageTooLarge(ImageError):
    """The image exceeds a cap of `Limits`."""


def read_image(
    source: str | os.PathLike[str] | bytes | IO[bytes] | Image.Image, limits: Limits | None = None
) -> Image.Image:
    """Return a picture as a person sees it, in mode RGB; the first one of several.

    AutoSelect trains and evaluates on these pictures. Give them to a processor, and the model sees
    the same.

    Args:
        source: path of a file, `data:` URL, encoded bytes, file object open in binary mode, or PIL
            image, which is not changed. Files are JPEG, PNG, WebP, GIF, BMP or TIFF.
        limits: caps on bytes and pixels; None for the defaults. A PIL image has no caps by default.

    Raises:
        ImageTooLarge: the image exceeds a cap; checked before decoding.
        ImageError: `source` cannot be read, or is not an image, damaged, cut short, or of an
            unsupported format. Both are kinds of ConfigError.
    """
    if isinstance(source, Image.Image):
        with _as_image_errors(), _strict_decoding():
            return _as_seen(source, None if limits is None else limits.pixels, owned=False)
    limits = limits or Limits()
    if isinstance(source, (str, os.PathLike)):
        return _read_path(source, limits)
    data = source if isinstance(source, bytes) else _read_stream(source, limits.member_bytes)
    return _decode(data, limits)


def embedded_image(url: str) -> bytes:
    """Return the bytes of a `data:` URL; raise ImageError if it does not hold base64."""
    head, comma, text = url.partition(",")
    try:
        if not comma or not head.endswith(";base64"):
            raise ValueError("it must be data:image/png;base64,...")
        return base64.b64decode("".join(text.split()), validate=True)
    except (ValueError, binascii.Error) as error:
        raise ImageError(f"data URL {head[:40]!r} cannot be read: {error}") from error


def read_capped(path: Path, cap: int) -> bytes:
    """Return the bytes of a file, up to one more than `cap`; raise ImageError if unreadable."""
    try:
        if path.is_dir():
            raise ImageError("is a folder, not a file")
        with path.open("rb") as stream:
            return stream.read(min(cap, os.fstat(stream.fileno()).st_size) + 1)
    except OSError as error:
        raise ImageError(f"cannot be read: {error.strerror or error}") from error
    except ImageError:
        raise
    except ValueError as error:  # a name that no file system can hold
        raise ImageError(f"cannot be read: {error}") from error


def image_suffix(data: bytes) -> str:
    """Return the file suffix, without a dot, of the image's format; raise ImageError if unknown."""
    with _as_image_errors(data), Image.open(io.BytesIO(data), formats=tuple(IMAGE_SUFFIXES)) as one:
        return _SUFFIX_OF[str(one.format)]


def reuse_image_memory(images: int) -> None:
    """Let Pillow keep the memory of freed images for the next ones.

    Fresh pages from the system cost a fifth of the decoding time. `images` is the largest number
    of images to keep memory for; larger ones count as several.
    """
    Image.core.set_blocks_max(images)


def flat(image: Image.Image) -> Image.Image:
    """Return the image in mode RGB with 8 bits per channel, transparency on white; not turned.

    Raises:
        ImageError: integers or floats of an unknown scale, see `_in_eight_bits`.
    """
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _in_eight_bits(image).convert("RGB")
    if image.mode in _PREMULTIPLIED:
        image = image.convert(_PREMULTIPLIED[image.mode])
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, image).convert("RGB")


def _in_eight_bits(image: Image.Image) -> Image.Image:
    """Scale brightness to 0..255, mode L.

    16-bit images span 0..65535. 32-bit integers are taken as 0..255 if none is larger, else as
    0..65535; floats as 0..1 if none is larger, else as 0..255.

    Raises:
        ImageError: values are outside these ranges, or are not numbers.
    """
    values = np.asarray(image, dtype=np.float64)
    low, high = float(values.min()), float(values.max())
    if image.mode == "F":
        scales = [1.0, 255.0]
    else:
        scales = [65535.0] if image.mode.startswith("I;16") else [255.0, 65535.0]
    if not (low >= 0 and high <= scales[-1]):
        raise ImageError(
            f"mode {image.mode} with values of {low:g} to {high:g} has no known brightness; scale "
            f"them to 0..{scales[-1]:g}, or save the image with 8 bits per channel"
        )
    scale = next(scale for scale in scales if high <= scale)
    return Image.fromarray((values * (255 / scale)).round().astype(np.uint8))


def _read_path(source: str | os.PathLike[str], limits: Limits) -> Image.Image:
    name = os.fspath(source)
    try:
        if name.startswith("data:"):
            return _decode(embedded_image(name), limits)
        if is_web(name):
            raise ImageError("is a web address; download it and give the path of the file")
        return _decode(read_capped(Path(name), limits.member_bytes), limits)
    except ImageError as error:
        raise type(error)(f"image={name[:200]}: {error}") from error


def _read_stream(source: IO[bytes], cap: int) -> bytes:
    try:
        data = source.read(cap + 1)
    except AttributeError as error:
        raise ImageError(
            f"image={type(source).__name__} is not a path, bytes, a file object or a PIL image; "
            "give one of these, for example PIL.Image.fromarray(array)"
        ) from error
    except (OSError, ValueError) as error:
        raise ImageError(f"image={source!r} cannot be read: {error}") from error
    if not isinstance(data, bytes):
        raise ImageError(f"image={source!r} gives text; open the file in binary mode ('rb')")
    return data


def _decode(data: bytes, limits: Limits) -> Image.Image:
    if len(data) > limits.member_bytes:
        raise ImageTooLarge(f"more than the cap of {limits.member_bytes} bytes")
    with _as_image_errors(data), _strict_decoding():
        image = Image.open(io.BytesIO(data), formats=tuple(IMAGE_SUFFIXES))
        return _as_seen(image, limits.pixels, owned=True)


def _as_seen(image: Image.Image, pixels: int | None, owned: bool) -> Image.Image:
    """Load the image and return it upright, on white, in RGB and without metadata.

    Args:
        pixels: cap on width times height.
        owned: nobody else uses `image`, so that it may be changed.
    """
    width, height = image.size
    if not width or not height:
        raise ImageError(f"{width} x {height} pixels hold nothing")
    if pixels is not None and width * height > pixels:
        raise ImageTooLarge(f"{width} x {height} pixels exceed the cap of {pixels} pixels")
    image.load()
    method = _UPRIGHT.get(_orientation(image))
    plain = image.mode == "RGB" and "transparency" not in image.info
    seen = image if owned and plain else flat(image)
    if method is not None:
        seen = seen.transpose(method)
    seen.info = {}
    return seen


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 if it is absent or the EXIF data is damaged."""
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except _DAMAGE:
        return 1
    return value if isinstance(value, int) else 1


@contextmanager
def _as_image_errors(data: bytes | None = None) -> Iterator[None]:
    """Raise what goes wrong inside as an ImageError; `data` are the encoded bytes, if known."""
    with warnings.catch_warnings():
        # Pillow's own pixel warning has a fixed threshold; the cap of `Limits` replaces it.
        warnings.simplefilter("ignore")
        try:
            yield
        except ImageError:
            raise
        except UnidentifiedImageError as error:
            known = content_of(data or b"") if data is not None else None
            what = f"{len(data or b'')} bytes, {known or 'not an image of a known format'}"
            formats = ", ".join(IMAGE_SUFFIXES)
            raise ImageError(f"{what}; an image must be {formats}") from error
        except Image.DecompressionBombError as error:
            raise ImageTooLarge(str(error)) from error
        except _DAMAGE as error:
            raise ImageError(f"decoding failed: {error or type(error).__name__}") from error


@contextmanager
def _strict_decoding() -> Iterator[None]:
    """Refuse images that are cut short, even if another library told Pillow to accept them."""
    with _STRICT:
        if ImageFile.LOAD_TRUNCATED_IMAGES:
            ImageFile.LOAD_TRUNCATED_IMAGES = False
            try:
                yield
            finally:
                ImageFile.LOAD_TRUNCATED_IMAGES = True
            return
    yield
