"""Dense targets of the tower's first stage: what covers each patch of a page or a scene."""

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
"""Classes of each channel: 0 is nothing; a word that is not in the lexicon has the last class."""
_PLATE_CAP = 10.0


def page_labels(page: Page) -> np.ndarray:
    """Return dense targets of a page, uint8 `[5, N]`; patches at rims are `IGNORED`."""
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
    """Return dense targets of a scene that fills the model's image, uint8 `[5, N]`."""
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
    """Return which patches have their centre in a box of pixels, bool `[GRID, GRID]`."""
    middles = (np.arange(GRID) + 0.5) * PATCH_SIZE
    columns = (middles >= box[0]) & (middles < box[2])
    rows = (middles >= box[1]) & (middles < box[3])
    return rows[:, None] & columns[None, :]


def _label_word(labels: np.ndarray, word: Printed, scale: float) -> None:
    """Write the characters, the identity and the colour of one word into `labels`.

    Args:
        labels: `[5, GRID, GRID]`.
        word: in pixels of its image.
        scale: pixels of the model's image for one of these.
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
