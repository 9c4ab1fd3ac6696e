"""Sounds of omni models pass through a pruned call untouched."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from tests.vlm.stock import attached, close, model_of, reduced
from tests.vlm.tiny import ALL, padded
from tests.vlm.tiny_prompts import BOS

SOUND, START, END = 14, 15, 16
GREEDY = {"max_new_tokens": 4, "do_sample": False}


@dataclass(frozen=True)
class Sound:
    """Arguments of a call for one sound, and the placeholders that its tower fills."""

    arguments: Callable[[torch.Generator], dict[str, Any]]
    tokens: int


def frames(rng: torch.Generator) -> dict[str, Any]:
    mask = torch.ones(1, 16, dtype=torch.long)
    features = torch.randn(1, 8, 16, generator=rng)
    return {"input_features": features, "feature_attention_mask": mask}


def bins(rng: torch.Generator) -> dict[str, Any]:
    mask = torch.ones(1, 4, dtype=torch.long)
    features = torch.randint(4, (1, 4, 8), generator=rng)
    return {"audio_input_ids": features, "audio_input_ids_mask": mask}


SOUNDS = {
    "inkling_mm_model": Sound(bins, 4),
    "qwen2_5_omni_thinker": Sound(frames, 4),
    "qwen3_omni_moe_thinker": Sound(frames, 2),
}


def call(name: str, first: str, seed: int = 0) -> dict[str, Any]:
    """Return a call with an image and a sound, of which `first` comes first."""
    tiny, sound = ALL[name], SOUNDS[name]
    parts = [tiny.prompt("s"), [START, *[SOUND] * sound.tokens, END]]
    image, heard = parts if first == "image" else reversed(parts)
    inputs = padded([[BOS, 21, *image, 33, *heard, 44, 55]], "left")
    pixels = tiny.pixels(["s"], torch.Generator().manual_seed(0))
    return {**inputs, **pixels, **sound.arguments(torch.Generator().manual_seed(seed))}


@pytest.mark.parametrize("first", ["image", "sound"])
@pytest.mark.parametrize("name", SOUNDS)
@torch.no_grad()
def test_a_sound_beside_a_pruned_image_is_heard_as_it_is(name, first):
    model, inputs = model_of(name), call(name, first)
    logits, tokens = model(**inputs).logits, model.generate(**inputs, **GREEDY)
    with attached(name, 1.0):
        assert torch.equal(model(**inputs).logits, logits)
        assert torch.equal(model.generate(**inputs, **GREEDY), tokens)
        pruned = model(**inputs, visual_token_budget=4).logits
        selection = model.autoselect.last
        assert not torch.equal(model(**call(name, first, 9), visual_token_budget=4).logits, pruned)
    sound = SOUNDS[name].arguments(torch.Generator().manual_seed(0))
    close(pruned, model(**reduced(model, inputs, selection), **sound).logits)
