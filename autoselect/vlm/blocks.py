"""Where the images of a batch of prompts are: one block per image, clip or frame.

Features of all images lie in one matrix, in the order of their placeholders in the batch, row by
row; that is how every family scatters them. A block is the part of it that belongs to one image.

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
        row: of the batch.
        columns: where its tokens are in that row, ascending, [N].
        start: number of its first row in the features of its modality; the others follow.
        item: which image or clip of its modality and row it belongs to; frames share a clip.
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
        family: says what one image is.
        lengths: visual tokens of each image, instead of the family's rule.

    Raises:
        ConfigError: the prompt has another number of placeholders than there are features, or an
            image would be divided between two prompts.
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
    """Return the visual tokens of each image or clip by the family's rule."""
    if (family.images if modality == "image" else family.videos) == "entries":
        return entries
    runs = run_lengths(rows, columns)
    if modality == "image" and family.tiles is not None:
        return merge_tiles(input_ids, rows, columns, runs, family.tiles)
    return runs


def run_lengths(rows: Tensor, columns: Tensor) -> list[int]:
    """Lengths of the runs of adjacent placeholders.

    Args:
        rows: of the placeholders, ascending, [M].
        columns: of the placeholders, ascending in each row, [M].
    """
    new = (rows[1:] != rows[:-1]) | (columns[1:] != columns[:-1] + 1)
    ends = (new.nonzero().flatten() + 1).tolist() + [len(rows)]
    return [end - begin for begin, end in zip([0, *ends[:-1]], ends, strict=True)]


def merge_tiles(
    input_ids: Tensor, rows: Tensor, columns: Tensor, lengths: Sequence[int], marker: Marker
) -> list[int]:
    """Lengths of images from lengths of their tiles, see `Family.tiles`."""
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
    """The token at a place, -1 outside the prompt."""
    inside = 0 <= int(column) < input_ids.shape[1]
    return int(input_ids[row, column]) if inside else -1


def split_frames(blocks: Sequence[Block], frames: Sequence[int]) -> list[Block]:
    """Blocks of clips as blocks of frames of equal size; what is left over joins the last frame.

    Args:
        blocks: of `find_blocks`, every clip one block.
        frames: frames of every clip, in the order of the blocks.
    """
    parts: list[Block] = []
    for block, count in zip(blocks, frames, strict=True):
        size = len(block) // count
        for frame in range(count):
            begin = frame * size
            end = begin + size if frame < count - 1 else len(block)
            columns = block.columns[begin:end]
            parts.append(Block(block.modality, block.row, columns, block.start + begin, block.item))
    return parts
