"""Draw backgrounds and distractors of the reference scenes, which no question asks about.

Backgrounds are crops of photographs that scikit-image, scikit-learn and matplotlib ship, so nothing
is downloaded. The photographs of the test split are never used for training.
"""

from functools import lru_cache
from importlib.resources import files
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from autoselect.config import ConfigError
from autoselect.config.extras import extra
from autoselect.data.decode import read_image

Split = Literal["train", "val", "test"]

TRAIN_PHOTOS = (
    ("skimage.data", "astronaut.png"),
    ("skimage.data", "camera.png"),
    ("skimage.data", "chelsea.png"),
    ("skimage.data", "motorcycle_left.png"),
    ("skimage.data", "rocket.jpg"),
    ("skimage.data", "retina.jpg"),
    ("skimage.data", "ihc.png"),
    ("skimage.data", "hubble_deep_field.jpg"),
    ("skimage.data", "brick.png"),
    ("skimage.data", "gravel.png"),
    ("skimage.data", "page.png"),
    ("skimage.data", "coins.png"),
    ("skimage.data", "moon.png"),
    ("sklearn.datasets.images", "china.jpg"),
    ("matplotlib", "mpl-data/sample_data/grace_hopper.jpg"),
)
TEST_PHOTOS = (
    ("sklearn.datasets.images", "flower.jpg"),
    ("skimage.data", "coffee.png"),
    ("skimage.data", "grass.png"),
    ("skimage.data", "clock_motion.png"),
    ("skimage.data", "cell.png"),
    ("skimage.data", "text.png"),
)
GLYPHS = "BDGJNOQSUVWYZ013689?&%#@"
FONT_FILES = ("DejaVuSans.ttf", "DejaVuSerif-Italic.ttf", "DejaVuSansMono-Oblique.ttf")


@lru_cache(maxsize=4)
def photos(split: Split) -> list[np.ndarray]:
    """Return the photographs of one split, uint8 [height, width, 3], shorter side 300 pixels."""
    loaded = []
    for package, name in TEST_PHOTOS if split == "test" else TRAIN_PHOTOS:
        with extra("evaluation"):
            path = files(package).joinpath(name)
        if not path.is_file():
            raise ConfigError(
                f"reference photograph {name} is missing from the installed package "
                f"{package.split('.')[0]}; install the versions of requirements.lock"
            )
        with path.open("rb") as stream:
            image = read_image(stream)
        scale = 300 / min(image.size)
        size = (round(image.width * scale), round(image.height * scale))
        loaded.append(np.asarray(image.resize(size, Image.Resampling.BILINEAR)))
    return loaded


@lru_cache(maxsize=64)
def font(name: str, size: int) -> ImageFont.FreeTypeFont:
    """Load a font that matplotlib ships; `size` in pixels."""
    with extra("evaluation"):
        path = files("matplotlib").joinpath("mpl-data/fonts/ttf", name)
    return ImageFont.truetype(str(path), size)


def photo_crop(rng: np.random.Generator, split: Split, width: int, height: int) -> Image.Image:
    bank = photos(split)
    photo = bank[rng.integers(len(bank))]
    scale = rng.uniform(0.7, 2.6)
    crop_w = min(int(width * scale), photo.shape[1])
    crop_h = min(int(height * scale), photo.shape[0])
    left = rng.integers(photo.shape[1] - crop_w + 1)
    top = rng.integers(photo.shape[0] - crop_h + 1)
    crop = photo[top : top + crop_h, left : left + crop_w]
    if rng.random() < 0.5:
        crop = crop[:, ::-1]
    if rng.random() < 0.4:
        tint = rng.uniform(0.3, 1.2, size=3)
        crop = np.clip(crop * tint, 0, 255).astype(np.uint8)
    if rng.random() < 0.15:
        crop = 255 - crop
    return Image.fromarray(np.ascontiguousarray(crop)).resize(
        (width, height), Image.Resampling.BILINEAR
    )


def background(rng: np.random.Generator, split: Split, size: int) -> Image.Image:
    """Draw a photograph, a collage, coloured noise or stripes, `size` pixels square."""
    kind = rng.random()
    if kind < 0.45:
        return photo_crop(rng, split, size, size)
    if kind < 0.85:
        canvas = photo_crop(rng, split, size, size)
        for _ in range(rng.integers(2, 5)):
            width, height = rng.integers(size // 4, 3 * size // 4, size=2)
            left, top = (int(v) for v in rng.integers(-size // 8, size, size=2))
            canvas.paste(photo_crop(rng, split, int(width), int(height)), (left, top))
        return canvas
    if kind < 0.93:
        cells = int(rng.integers(4, size // 2))
        noise = rng.integers(0, 256, size=(cells, cells, 3), dtype=np.uint8)
        return Image.fromarray(noise).resize((size, size), Image.Resampling.BILINEAR)
    angle, period = rng.uniform(0, np.pi), rng.uniform(4, 24)
    x, y = np.meshgrid(np.arange(size), np.arange(size))
    wave = 0.5 + 0.5 * np.sin((x * np.cos(angle) + y * np.sin(angle)) * 2 * np.pi / period)
    first, second = rng.integers(0, 256, size=(2, 3))
    stripes = wave[..., None] * first + (1 - wave[..., None]) * second
    return Image.fromarray(stripes.astype(np.uint8))


def draw_distractor(draw: ImageDraw.ImageDraw, rng: np.random.Generator, size: int) -> None:
    colour = tuple(int(c) for c in rng.integers(0, 256, size=3))
    x, y = (int(v) for v in rng.integers(0, size, size=2))
    radius = int(rng.integers(size // 24, size // 9))
    width = int(rng.integers(2, 5))
    kind = rng.integers(5)
    if kind == 0:
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), outline=colour, width=width)
    elif kind == 1:
        draw.line((x - radius, y - radius, x + radius, y + radius), fill=colour, width=width)
        draw.line((x - radius, y + radius, x + radius, y - radius), fill=colour, width=width)
    elif kind == 2:
        angle = rng.uniform(0, np.pi)
        dx, dy = 2 * radius * np.cos(angle), 2 * radius * np.sin(angle)
        draw.line((x - dx, y - dy, x + dx, y + dy), fill=colour, width=width)
    elif kind == 3:
        steps = rng.normal(0, size / 14, size=(int(rng.integers(4, 9)), 2)).cumsum(axis=0)
        draw.line([(x + sx, y + sy) for sx, sy in steps], fill=colour, width=width)
    else:
        name = FONT_FILES[rng.integers(len(FONT_FILES))]
        glyph = GLYPHS[rng.integers(len(GLYPHS))]
        draw.text((x, y), glyph, fill=colour, font=font(name, int(rng.integers(18, 40))))
