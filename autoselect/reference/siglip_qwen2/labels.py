"""Build the dense labels of the vision tower: what covers each patch of a page or a scene."""

import numpy as np

from autoselect.reference.corpus import IGNORED
from autoselect.reference.documents.canvas import PAGE_SIZE, Printed
from autoselect.reference.documents.lexicon import CHARACTERS, DIRECTIONS, PRINTED, TEXT_COLOURS
from autoselect.reference.documents.pages import Page
from autoselect.reference.documents.signs import PANEL_COLOURS
from autoselect.reference.scenes import COLOURS, IMAGE_SIZE, SHAPES, Scene
from autoselect.reference.siglip_qwen2.vlm import GRID, PATCH_SIZE

COLOUR_NAMES = tuple(dict.fromkeys([*COLOURS, *TEXT_COLOURS, *PANEL_COLOURS]))
SHAPE_NAMES = (*SHAPES, *DIRECTIONS)
CHANNELS = {
    "left": len(CHARACTERS) + 1,
    "right": len(CHARACTERS) + 1,
    "word": len(PRINTED) + 2,
    "colour": len(COLOUR_NAMES) + 1,
    "shape": len(SHAPE_NAMES) + 1,
}
"""Number of classes per channel. Class 0 is nothing; the last class of `word` is any other word."""
_PLATE_CAP = 10.0


def page_labels(page: Page) -> np.ndarray:
    """Return the dense labels of a page, uint8 [5, N]."""
    labels = _empty()
    for mark in page.marks:
        inside = _inside(mark.box)
        if mark.colour in DIRECTIONS:
            labels[4][inside] = 1 + SHAPE_NAMES.index(mark.colour)
        else:
            labels[3][inside] = 1 + COLOUR_NAMES.index(mark.colour)
    for word in page.words:
        _label_word(labels, word, 1.0)
    return labels.reshape(len(CHANNELS), -1)


def scene_labels(scene: Scene) -> np.ndarray:
    """Return the dense labels of a scene resized to `PAGE_SIZE`, uint8 [5, N].

    Patches at the rim of an object are `IGNORED`.
    """
    scale = PAGE_SIZE / IMAGE_SIZE
    labels = _empty()
    middles = (np.arange(GRID) + 0.5) * PATCH_SIZE / scale
    for item in scene.objects:
        cx, cy = item.centre
        radius = (item.box[2] - item.box[0]) / 2
        distance = np.hypot(middles[None, :] - cx, middles[:, None] - cy)
        labels[3:, distance < 1.35 * radius] = IGNORED
        inside = distance < 0.75 * radius
        labels[3, inside] = 1 + COLOUR_NAMES.index(item.colour)
        labels[4, inside] = 1 + SHAPE_NAMES.index(item.shape)
    first, second = scene.plate.character_boxes
    middle = (scene.plate.box[1] + scene.plate.box[3]) / 2
    box = (first[0], int(middle - _PLATE_CAP / 2), second[2], int(middle + _PLATE_CAP / 2))
    plate = Printed(scene.plate.text, box, (first[0], first[2], second[2]))
    _label_word(labels, plate, scale)
    return labels.reshape(len(CHANNELS), -1)


def _empty() -> np.ndarray:
    return np.zeros((len(CHANNELS), GRID, GRID), dtype=np.uint8)


def _inside(box: tuple[float, ...]) -> np.ndarray:
    """Return True for patches whose centre lies in a box in pixels, [GRID, GRID]."""
    middles = (np.arange(GRID) + 0.5) * PATCH_SIZE
    columns = (middles >= box[0]) & (middles < box[2])
    rows = (middles >= box[1]) & (middles < box[3])
    return rows[:, None] & columns[None, :]


def _label_word(labels: np.ndarray, word: Printed, scale: float) -> None:
    """Write the characters, the word and its colour into `labels`.

    Args:
        labels: dense labels, [5, GRID, GRID]; modified.
        word: a printed word in pixels of its image.
        scale: size of the model's input image divided by the size of the word's image.
    """
    top, bottom = word.box[1] * scale, word.box[3] * scale
    middles = (np.arange(GRID) + 0.5) * PATCH_SIZE
    rows = np.flatnonzero((middles >= top) & (middles < bottom))
    if not len(rows):
        rows = np.array([np.abs(middles - (top + bottom) / 2).argmin()])
    edges = np.asarray(word.edges) * scale
    lexical = word.text.lower()
    identity = 1 + PRINTED.index(lexical) if lexical in PRINTED else len(PRINTED) + 1
    for channel, places in ((0, middles - 2), (1, middles + 2), (2, middles)):
        number = np.searchsorted(edges, places, side="right") - 1
        columns = np.flatnonzero((number >= 0) & (number < len(word.text)))
        for column in columns:
            character = 1 + CHARACTERS.index(word.text[number[column]])
            labels[channel, rows, column] = identity if channel == 2 else character
            if word.colour and channel == 2:
                labels[3, rows, column] = 1 + COLOUR_NAMES.index(word.colour)
