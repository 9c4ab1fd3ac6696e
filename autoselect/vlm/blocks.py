"""Places of the images in a batch of prompts: one block per image, clip or frame.

The features of all images form one matrix, in the order of their placeholders in the batch, row by
row; every family scatters them in this order. A block is the part that belongs to one image.

Dimension letters: B rows, T prompt tokens, M placeholders of the whole batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from autoselect.config import ConfigError
from autoselect.vlm.families import Family, Marker


@dataclass(frozen=True)
class Block:
    """The placeholders of one image (or clip, or frame) in a batch of prompts.

    Attributes:
        modality: `image` or `video`.
        row: row of the batch.
        columns: columns of its N tokens in that row, ascending, [N].
        start: index of its first token in the feature matrix of its modality; the others follow.
        item: number of the image or clip among those of its modality and row; frames share a clip.
    """

    modality: str
    row: int
    columns: Tensor
    start: int
    item: int

    def __len__(self) -> int:
        return len(self.columns)


def find_blocks(
    input_ids: Tensor,
    token_id: int,
    modality: str,
    entries: Sequence[int],
    family: Family,
    lengths: Sequence[int] | None = None,
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
    rows, columns = (input_ids == token_id).nonzero(as_tuple=True)
    if not len(rows) == sum(entries) == sum(lengths or entries):
        raise ConfigError(
            f"input_ids hold {len(rows)} {modality} placeholders (token {token_id}) for "
            f"{sum(entries)} visual tokens; build text and pixels with one call of the model's "
            "own processor, and pass only the images of the new turn with a filled cache. If they "
            "come from one call, the processor does not fit the model: correct patch_size, "
            "num_additional_image_tokens and vision_feature_select_strategy in "
            "processor_config.json, or copy the processor's files of the model again"
        )
    if lengths is None:
        lengths = _image_lengths(input_ids, rows, columns, modality, entries, family)
    blocks: list[Block] = []
    start = 0
    for length in lengths:
        row = int(rows[start])
        if int(rows[start + length - 1]) != row:
            raise ConfigError(
                f"an {modality} has placeholders in two prompts of the batch; give every prompt "
                "all placeholders of its images"
            )
        item = blocks[-1].item + 1 if blocks and blocks[-1].row == row else 0
        blocks.append(Block(modality, row, columns[start : start + length], start, item))
        start += length
    return blocks


def _image_lengths(
    input_ids: Tensor,
    rows: Tensor,
    columns: Tensor,
    modality: str,
    entries: Sequence[int],
    family: Family,
) -> Sequence[int]:
    if (family.images if modality == "image" else family.videos) == "entries":
        return entries
    runs = run_lengths(rows, columns)
    if modality == "image" and family.tiles is not None:
        return merge_tiles(input_ids, rows, columns, runs, family.tiles)
    return runs


def run_lengths(rows: Tensor, columns: Tensor) -> list[int]:
    """Return the lengths of the runs of adjacent placeholders, given by row [M] and column [M]."""
    new = (rows[1:] != rows[:-1]) | (columns[1:] != columns[:-1] + 1)
    ends = (new.nonzero().flatten() + 1).tolist() + [len(rows)]
    return [end - begin for begin, end in zip([0, *ends[:-1]], ends, strict=True)]


def merge_tiles(
    input_ids: Tensor, rows: Tensor, columns: Tensor, lengths: Sequence[int], marker: Marker
) -> list[int]:
    """Return the visual tokens of each image from those of its tiles, see `Family.tiles`."""
    ends = torch.tensor(lengths).cumsum(0).tolist()
    begins = [end - length for end, length in zip(ends, lengths, strict=True)]
    tile_rows = rows[begins].tolist()
    if marker == "same_after_last":
        beside = [_token(input_ids, rows[e - 1], columns[e - 1] + 1) for e in ends]
    else:
        beside = [_token(input_ids, rows[b], columns[b] - 1) for b in begins]
    merged: list[int] = []
    for row in sorted(set(tile_rows)):
        tiles = [number for number, own in enumerate(tile_rows) if own == row]
        reference = beside[tiles[0 if marker == "same_before_first" else -1]]
        closes = [beside[number] == reference for number in tiles]
        if marker == "same_before_first":
            closes = [*closes[1:], True]
        total = 0
        for number, is_last in zip(tiles, closes, strict=True):
            total += lengths[number]
            if is_last:
                merged.append(total)
                total = 0
    return merged


def _token(input_ids: Tensor, row: Tensor, column: Tensor) -> int:
    inside = 0 <= int(column) < input_ids.shape[1]
    return int(input_ids[row, column]) if inside else -1


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
