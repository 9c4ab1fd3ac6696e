"""Batches of images as vLLM hands them to an encoder, in bounded parts and image by image."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

ENTRY, SHARED = -1, -2
"""Numbers of rows that mean: one entry of a batched argument; an argument of all images."""

Rows = Sequence[Tensor]
"""For each image and argument (sorted by name): number of rows and their dimension, [A, 2]."""


def sub_batches(
    arguments: Mapping[str, Any], rows: Rows, sizes: Sequence[int], most: int
) -> Iterator[tuple[slice, dict[str, Any]]]:
    """Yield consecutive images with their arguments; the whole batch at once if it is small.

    The scheduler counts the tokens that stay, so its batches have more images than the memory for
    encoding was measured with.

    Args:
        arguments: batched arguments of the encoder.
        rows: what each image has of them.
        sizes: tokens of each image before pruning.
        most: tokens of a part, unless it is one image.
    """
    first, total = 0, 0
    for number, size in enumerate([*sizes, most + 1]):
        if number > first and total + size > most:
            part = slice(first, number)
            yield part, some_images(arguments, rows, part)
            first, total = number, 0
        total += size


def some_images(arguments: Mapping[str, Any], rows: Rows, part: slice) -> dict[str, Any]:
    """Return the batched arguments of some consecutive images."""
    if part == slice(0, len(rows)):
        return dict(arguments)
    found = {}
    for place, name in enumerate(sorted(arguments)):
        value = arguments[name]
        counts = [int(own[place, 0]) for own in rows]
        if counts[0] == SHARED:
            found[name] = value
        elif counts[0] == ENTRY:
            found[name] = value[part]
        else:
            begin, length = sum(counts[: part.start]), sum(counts[part])
            if isinstance(value, Tensor):
                found[name] = value.narrow(int(rows[0][place, 1]), begin, length)
            else:
                found[name] = value[begin : begin + length]
    return found
