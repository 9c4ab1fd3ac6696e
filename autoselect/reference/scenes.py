"""Render reference scenes: coloured shapes and one text plate on a cluttered background.

A scene is a pure function of (seed, split, index). Everything that a question may ask about is
known, with its bounding box in pixels.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from autoselect.reference.clutter import Split, background, draw_distractor, font

IMAGE_SIZE = 96
SUPERSAMPLING = 2
GAP = 3
"""Pixels between two objects at least."""
COLOURS = {
    "red": (226, 32, 32),
    "green": (30, 170, 50),
    "blue": (35, 70, 230),
    "yellow": (250, 220, 30),
    "pink": (250, 120, 200),
    "cyan": (40, 215, 225),
}
SHAPES = ("circle", "square", "triangle", "star", "heart")
PLATE_CHARACTERS = "ACEFHKLMPRTX2457"
SPLIT_IDS = {"train": 0, "val": 1, "test": 2}


@dataclass(frozen=True)
class SceneObject:
    """One coloured shape. `box` is (left, top, right, bottom) in pixels."""

    shape: str
    colour: str
    box: tuple[int, int, int, int]

    @property
    def centre(self) -> tuple[float, float]:
        return (self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2


@dataclass(frozen=True)
class Plate:
    """The text plate: two characters, each with its own box in pixels."""

    text: str
    box: tuple[int, int, int, int]
    character_boxes: tuple[tuple[int, int, int, int], ...]


@dataclass(frozen=True)
class Scene:
    """Objects and plate that a question may ask about, and the image (RGB, 96 x 96 pixels)."""

    objects: tuple[SceneObject, ...]
    plate: Plate
    image: Image.Image


def scene_rng(seed: int, split: Split, index: int) -> np.random.Generator:
    return np.random.default_rng([seed, SPLIT_IDS[split], index])


def _overlaps(box: tuple[int, ...], others: list[tuple[int, ...]]) -> bool:
    return any(
        box[0] < other[2] + GAP
        and other[0] < box[2] + GAP
        and box[1] < other[3] + GAP
        and other[1] < box[3] + GAP
        for other in others
    )


def _place(
    rng: np.random.Generator, width: int, height: int, taken: list[tuple[int, ...]]
) -> tuple[int, int, int, int] | None:
    for _ in range(40):
        left = int(rng.integers(1, IMAGE_SIZE - width))
        top = int(rng.integers(1, IMAGE_SIZE - height))
        box = (left, top, left + width, top + height)
        if not _overlaps(box, taken):
            return box
    return None


def _outline(shape: str, box: tuple[float, ...], turn: float) -> list[tuple[float, float]]:
    """Return the vertices of a polygonal shape inside `box`, turned by `turn` radians."""
    cx, cy = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    radius = (box[2] - box[0]) / 2
    if shape == "heart":
        t = np.linspace(0, 2 * np.pi, 40)
        x = 16 * np.sin(t) ** 3
        y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
        return [(cx + radius * a / 17, cy + radius * b / 17) for a, b in zip(x, y, strict=True)]
    if shape == "star":
        angles = np.arange(10) * np.pi / 5 - np.pi / 2 + turn
        radii = np.where(np.arange(10) % 2 == 0, radius, 0.42 * radius)
    else:
        corners = {"triangle": 3, "square": 4}[shape]
        start = {"triangle": -np.pi / 2, "square": np.pi / 4}[shape]
        angles = np.arange(corners) * 2 * np.pi / corners + start + turn
        radii = np.full(corners, radius * 1.05)
    return [
        (cx + r * float(np.cos(a)), cy + r * float(np.sin(a)))
        for r, a in zip(radii, angles, strict=True)
    ]


def _draw_object(draw: ImageDraw.ImageDraw, rng: np.random.Generator, item: SceneObject) -> None:
    box = tuple(v * SUPERSAMPLING for v in item.box)
    shade = rng.uniform(0.85, 1.1)
    fill = tuple(int(min(255, c * shade)) for c in COLOURS[item.colour])
    if item.shape == "circle":
        draw.ellipse(box, fill=fill, outline=(15, 15, 15), width=SUPERSAMPLING)
        return
    points = _outline(item.shape, box, rng.uniform(-0.2, 0.2))
    draw.polygon(points, fill=fill, outline=(15, 15, 15), width=SUPERSAMPLING)


def _draw_plate(draw: ImageDraw.ImageDraw, plate: Plate) -> None:
    box = tuple(v * SUPERSAMPLING for v in plate.box)
    draw.rectangle(box, fill=(250, 250, 250), outline=(10, 10, 10), width=SUPERSAMPLING)
    face = font("DejaVuSans-Bold.ttf", 14 * SUPERSAMPLING)
    for character, corners in zip(plate.text, plate.character_boxes, strict=True):
        centre = (
            (corners[0] + corners[2]) / 2 * SUPERSAMPLING,
            (corners[1] + corners[3]) / 2 * SUPERSAMPLING,
        )
        draw.text(centre, character, fill=(5, 5, 5), font=face, anchor="mm")


def _draw_kinds(rng: np.random.Generator, count: int) -> list[tuple[str, str]]:
    """Draw shape and colour of each object; often several share one, to make counting useful."""
    colours, shapes = list(COLOURS), list(SHAPES)
    kinds = [
        (shapes[rng.integers(len(shapes))], colours[rng.integers(len(colours))])
        for _ in range(count)
    ]
    shared = int(rng.integers(2, count + 1)) if count >= 2 and rng.random() < 0.55 else 0
    if rng.random() < 0.5:
        kinds[:shared] = [(shape, kinds[0][1]) for shape, _ in kinds[:shared]]
    else:
        kinds[:shared] = [(kinds[0][0], colour) for _, colour in kinds[:shared]]
    return kinds


def make_scene(seed: int, split: Split, index: int) -> Scene:
    """Draw and render scene `index` of a split; the same arguments give the same pixels."""
    rng = scene_rng(seed, split, index)
    taken: list[tuple[int, ...]] = []
    plate_box = _place(rng, 26, 17, taken)
    assert plate_box is not None
    taken.append(plate_box)
    text = "".join(PLATE_CHARACTERS[i] for i in rng.integers(len(PLATE_CHARACTERS), size=2))
    middle = (plate_box[0] + plate_box[2]) // 2
    plate = Plate(
        text,
        plate_box,
        (
            (plate_box[0] + 1, plate_box[1], middle, plate_box[3]),
            (middle, plate_box[1], plate_box[2] - 1, plate_box[3]),
        ),
    )
    objects = []
    for shape, colour in _draw_kinds(rng, int(rng.integers(2, 6))):
        side = int(rng.integers(14, 25))
        box = _place(rng, side, side, taken)
        if box is not None:
            taken.append(box)
            objects.append(SceneObject(shape, colour, box))
    canvas = background(rng, split, IMAGE_SIZE * SUPERSAMPLING)
    draw = ImageDraw.Draw(canvas)
    for _ in range(rng.integers(3, 9)):
        draw_distractor(draw, rng, IMAGE_SIZE * SUPERSAMPLING)
    for item in objects:
        _draw_object(draw, rng, item)
    _draw_plate(draw, plate)
    image = canvas.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BOX)
    return Scene(tuple(objects), plate, image)
