"""What the host decides about a call before its scores are known, made once per layout of prompts.

A layout is where the images, the hidden columns and the padding of a prompt are, not its words or
pictures. Calls of one layout, such as all requests of a template with texts of equal length, share
one plan, and its index tensors are on their device already.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from autoselect.config import ConfigError
from autoselect.vlm.adapter import VisualAdapter
from autoselect.vlm.blocks import Block, find_all_blocks, split_frames
from autoselect.vlm.columns import PrunePlan
from autoselect.vlm.families import Family
from autoselect.vlm.host import HostPrompt
from autoselect.vlm.token_rows import TokenRows

MOST_PLANS = 64
"""Layouts that are remembered; a plan takes some 50 bytes per visual token."""


@dataclass(frozen=True)
class CallLayout:
    """All that a plan depends on.

    Attributes:
        shape: B and T.
        ids: token ids of the new columns, int64, [B, T]; zeros for what the family does not look
            at.
        real: false at hidden columns, bool, [B, T].
        hides_before: whether the mask hides columns of the conversation before the call.
        token_ids: placeholder of each modality.
        entries: visual tokens of each entry of the features, by modality.
        family: tells what an image is.
        copies: how often the batch holds every prompt.
        per_frame: whether a budget holds for each frame of a clip.
        frames: frames of every clip, if they were asked for and are known.
    """

    shape: tuple[int, int]
    ids: bytes
    real: bytes
    hides_before: bool
    token_ids: tuple[tuple[str, int], ...]
    entries: tuple[tuple[str, tuple[int, ...]], ...]
    family: Family
    copies: int
    per_frame: bool
    frames: tuple[int, ...] | None

    def prompt(self) -> HostPrompt:
        ids = np.frombuffer(self.ids, dtype=np.int64).reshape(self.shape)
        real = np.frombuffer(self.real, dtype=bool).reshape(self.shape)
        return HostPrompt(ids, real, self.hides_before)


@dataclass(frozen=True, eq=False)
class CallPlan:
    """Where the images of a call are.

    Attributes:
        prompt: a prompt of its layout.
        blocks: its images; frames of clips if budgets hold for frames.
        rows: visual tokens of the images as padded rows.
        hides_tokens: whether the attention mask hides visual tokens.
    """

    prompt: HostPrompt
    blocks: tuple[Block, ...]
    rows: TokenRows
    hides_tokens: bool


def plan_call(
    adapter: VisualAdapter,
    prompt: HostPrompt,
    outputs: Mapping[str, Any],
    copies: int,
    per_frame: bool,
) -> CallPlan:
    """Find the images of a call, or remember where they are.

    Args:
        adapter: adapter of the model.
        prompt: the new columns of the call.
        outputs: encoder outputs by modality.
        copies: how often the batch holds every prompt.
        per_frame: whether a budget holds for each frame of a clip.

    Raises:
        ConfigError: placeholders and features differ in number, or there are clips whose frames are
            needed and unknown.
    """
    ids, frames = prompt.ids, prompt.frames
    if adapter.family.tiles is None:
        places = np.logical_or.reduce([ids == token for token in adapter.token_ids.values()])
        ids = np.where(places, ids, 0)
    return _planned(
        CallLayout(
            (len(ids), ids.shape[1]),
            ids.tobytes(),
            prompt.real.tobytes(),
            prompt.hides_before,
            tuple(adapter.token_ids.items()),
            adapter.entries(outputs),
            adapter.family,
            copies,
            per_frame,
            None if frames is None else tuple(frames),
        )
    )


@lru_cache(maxsize=MOST_PLANS)
def _planned(layout: CallLayout) -> CallPlan:
    prompt = layout.prompt()
    blocks = find_all_blocks(prompt.ids, dict(layout.token_ids), layout.entries, layout.family)
    if layout.per_frame:
        blocks = frame_blocks(blocks, layout.frames, layout.copies)
    rows = TokenRows.of(blocks, layout.entries)
    real = [prompt.real[block.row, block.columns].all() for block in blocks]
    return CallPlan(prompt, tuple(blocks), rows, not all(real))


@lru_cache(maxsize=MOST_PLANS)
def plan_columns(plan: CallPlan, counts: tuple[int, ...]) -> PrunePlan:
    """Plan the columns that stay, or remember them; `counts` tokens of each block stay."""
    return PrunePlan.of(plan.prompt, plan.blocks, counts)


def clip_numbers(blocks: Sequence[Block], copies: int) -> list[int]:
    """Return the number of each block's image or clip in the call; copies of a prompt share it."""
    numbers: dict[tuple[str, int, int], int] = {}
    return [numbers.setdefault((b.modality, b.row // copies, b.item), len(numbers)) for b in blocks]


def frame_blocks(blocks: Sequence[Block], frames: Sequence[int] | None, copies: int) -> list[Block]:
    """Divide clips, which follow the images in `blocks`, into one block per frame.

    `frames` counts those of every clip of the call; the batch holds every prompt `copies` times.

    Raises:
        ConfigError: there are clips, but their frames are unknown.
    """
    images = [block for block in blocks if block.modality != "video"]
    clips = [block for block in blocks if block.modality == "video"]
    if not clips:
        return images
    numbers = clip_numbers(clips, copies)
    if frames is None or len(frames) != max(numbers) + 1:
        raise ConfigError(
            "video_budget_per='frame' needs the frames of every clip, and this call does not tell "
            "them; give pixel_values_videos (or video_grid_thw), or use video_budget_per='clip'"
        )
    return images + split_frames(clips, [frames[number] for number in numbers])
