"""What a call says about its clips, beside their pixels."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

COMPRESSION = "video_compression_mask"
"""Argument with the tokens of clips that stay, [M]; `forward` removes the others itself."""


def clip_frames(
    inputs: Mapping[str, Any], config: Any, merged: bool = False
) -> Tensor | list[int] | None:
    """Return the frames of every clip as the language model sees them.

    Args:
        inputs: arguments of `forward`.
        config: configuration of the model.
        merged: the tower makes one frame of all frames of a clip.

    Returns:
        one number for each clip; None if they are unknown, or if frames have different numbers of
        tokens.
    """
    if inputs.get(COMPRESSION) is not None:
        return None
    if (counts := inputs.get("num_frames_per_video")) is not None:
        return counts
    if (grid := inputs.get("video_grids")) is not None:
        return grid[:, 0]
    if (grid := inputs.get("video_grid_thw")) is not None:
        if merged:
            return [1] * len(grid)
        vision = getattr(config, "vision_config", None)
        return grid[:, 0] // getattr(vision, "temporal_merge_size", 1)
    pixels = inputs.get("pixel_values_videos")
    return None if pixels is None or pixels.ndim != 5 else [pixels.shape[1]] * len(pixels)
