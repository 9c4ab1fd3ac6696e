"""Places of the images in a batch of prompts: one block per image, clip or frame.

The features of all images form one matrix, in the order of their placeholders in the batch, row by
row; every family scatters them in this order. A block is the part that belongs to one image.
Everything here is integers of the host.

Dimension letters: B rows, T prompt tokens, M placeholders of the whole batch.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from autoselect.config import ConfigError
from autoselect.vlm.families import Family, Marker


@dataclass(frozen=True)
class Block:
    """The placeholders of one image (or clip, or frame) in a batch of prompts.

    Attributes:
        modality: `image` or `video`.
        row: row of the batch.
        columns: columns of its N tokens in that row, ascending, int64, [N].
        start: index of its first token in the feature matrix of its modality; the others follow.
        item: number of the image or clip among those of its modality and row; frames share a clip.
    """

    modality: str
    row: int
    columns: np.ndarray
    start: int
    item: int

    def __len__(self) -> int:
        return len(self.columns)


def find_all_blocks(
    input_ids: np.ndarray,
    token_ids: Mapping[str, int],
    entries: Iterable[tuple[str, Sequence[int]]],
    family: Family,
    lengths: Sequence[int] | None = None,
) -> list[Block]:
    """Find the blocks of all modalities that have features, one modality after the other.

    Args:
        input_ids: prompts with all placeholders, [B, T].
        token_ids: placeholder of each modality.
        entries: visual tokens of each entry of the features, by modality.
        family: tells what an image is, see `find_blocks`.
        lengths: visual tokens of each image; None to apply the family's rule.

    Raises:
        ConfigError: placeholders are missing, or their number differs from that of the features.
    """
    found: list[Block] = []
    for modality, sizes in entries:
        token_id = token_ids[modality]
        if not (input_ids == token_id).any():
            raise ConfigError(
                f"input_ids hold no {modality} token ({token_id}) although pixels are given; "
                "write the prompt with the model's chat template or its image token, and with a "
                "filled cache pass only the images of the new turn"
            )
        known = lengths if modality == "image" else None
        found += find_blocks(input_ids, token_id, modality, sizes, family, known)
    return found


def find_blocks(
    input_ids: np.ndarray,
    token_id: int,
    modality: str,
    entries: Sequence[int],
    family: Family,
    lengths: Sequence[int] | None,
) -> list[Block]:
    """Find the blocks of one modality, in order of appearance.

    Args:
        input_ids: prompts with all placeholders, [B, T].
        token_id: placeholder of this modality.
        modality: `image` or `video`.
        entries: visual tokens of each entry of the features.
        family: tells whether an image is one entry, one run of placeholders or several tiles.
        lengths: visual tokens of each image; None to apply the family's rule.

    Raises:
        ConfigError: placeholders and features differ in number, or two prompts share an image.
    """
    rows, columns = np.nonzero(input_ids == token_id)
    if not len(rows) == sum(entries) == sum(entries if lengths is None else lengths):
        raise ConfigError(
            f"input_ids hold {len(rows)} {modality} placeholders (token {token_id}) for "
            f"{sum(entries)} visual tokens; build text and pixels with one call of the model's "
            "own processor, and pass only the images of the new turn with a filled cache. If they "
            "come from one call, the processor does not fit the model: correct patch_size, "
            "num_additional_image_tokens and vision_feature_select_strategy in "
            "processor_config.json, or copy the processor's files of the model again"
        )
    if lengths is None:
        sizes = _image_lengths(input_ids, rows, columns, modality, entries, family)
    else:
        sizes = np.asarray(lengths)
    ends = np.cumsum(sizes)
    starts = ends - sizes
    if (rows[starts] != rows[ends - 1]).any():
        raise ConfigError(
            f"an {modality} has placeholders in two prompts of the batch; give every prompt "
            "all placeholders of its images"
        )
    own = rows[starts].tolist()
    items = np.arange(len(own)) - np.searchsorted(own, own)
    places = zip(own, starts.tolist(), ends.tolist(), items.tolist(), strict=True)
    return [Block(modality, row, columns[s:e], s, item) for row, s, e, item in places]


def _image_lengths(
    input_ids: np.ndarray,
    rows: np.ndarray,
    columns: np.ndarray,
    modality: str,
    entries: Sequence[int],
    family: Family,
) -> np.ndarray:
    if (family.images if modality == "image" else family.videos) == "entries":
        return np.asarray(entries)
    runs = run_lengths(rows, columns)
    if modality == "image" and family.tiles is not None:
        return merge_tiles(input_ids, rows, columns, runs, family.tiles)
    return runs


def run_lengths(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Return the lengths of the runs of adjacent placeholders, given by row [M] and column [M]."""
    new = (rows[1:] != rows[:-1]) | (columns[1:] != columns[:-1] + 1)
    return np.diff(np.flatnonzero(new) + 1, prepend=0, append=len(rows))


def merge_tiles(
    input_ids: np.ndarray,
    rows: np.ndarray,
    columns: np.ndarray,
    lengths: np.ndarray,
    marker: Marker,
) -> np.ndarray:
    """Return the visual tokens of each image from those of its tiles, see `Family.tiles`."""
    ends = np.cumsum(lengths)
    begins = ends - lengths
    beside = columns[ends - 1] + 1 if marker == "same_after_last" else columns[begins] - 1
    inside = (beside >= 0) & (beside < input_ids.shape[1])
    marks = np.where(inside, input_ids[rows[begins], beside.clip(0, input_ids.shape[1] - 1)], -1)
    first = np.flatnonzero(np.diff(rows[begins], prepend=-1))
    tiles = np.diff(first, append=len(marks))
    reference = first if marker == "same_before_first" else first + tiles - 1
    equal = marks == np.repeat(marks[reference], tiles)
    if marker == "same_before_first":
        return np.add.reduceat(lengths, np.flatnonzero(equal))
    return np.add.reduceat(lengths, np.flatnonzero(np.append(True, equal[:-1])))


def split_frames(blocks: Sequence[Block], frames: Sequence[int]) -> list[Block]:
    """Divide clips (one block each) into frames of equal size; a remainder joins the last frame."""
    parts: list[Block] = []
    for block, count in zip(blocks, frames, strict=True):
        size = len(block) // count
        for frame in range(count):
            begin = frame * size
            end = begin + size if frame < count - 1 else len(block)
            columns = block.columns[begin:end]
            parts.append(Block(block.modality, block.row, columns, block.start + begin, block.item))
    return parts
