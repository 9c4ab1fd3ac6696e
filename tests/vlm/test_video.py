"""Clips beyond the checks of docs/backbones.md, which test_page runs."""

import pytest
import torch

from autoselect import ConfigError
from tests.vlm.stock import attached, masked_generate
from tests.vlm.tiny import clip_batch

GREEDY = {"max_new_tokens": 3, "do_sample": False}


def test_beams_share_the_budget_of_a_frame():
    inputs = clip_batch("qwen2_5_vl")
    arguments = {**GREEDY, "num_beams": 3}
    with attached("qwen2_5_vl", 3, video_budget_per="frame") as model:
        ours = model.generate(**inputs, **arguments)
        selection = model.autoselect.last
    assert len(selection.images) == 2
    assert torch.equal(ours, masked_generate(model, inputs, selection, **arguments))


def test_frames_that_nobody_tells_are_asked_for():
    inputs = clip_batch("qwen2_5_vl")
    with attached("qwen2_5_vl", 3, video_budget_per="frame") as model:
        outputs = {
            "video": model.model.get_video_features(
                inputs["pixel_values_videos"], inputs["video_grid_thw"], return_dict=True
            )
        }
        known = {n: inputs[n] for n in ("input_ids", "attention_mask", "mm_token_type_ids")}
        with pytest.raises(ConfigError, match="frames of every clip"):
            model(**known, mm_encoder_outputs=outputs)
