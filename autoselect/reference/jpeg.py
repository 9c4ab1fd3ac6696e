"""Store the pictures of the reference data as JPEG."""

import io

from PIL import Image

JPEG_QUALITY = 92


def to_jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()


def through_jpeg(image: Image.Image) -> Image.Image:
    """Return an image with the JPEG artefacts that it has in the shards."""
    return Image.open(io.BytesIO(to_jpeg(image)))
