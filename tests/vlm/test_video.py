"""Clips: a budget per clip or per frame, the untouched model at K = N, masking below."""

import pytest
import torch

from autoselect import ConfigError
from tests.vlm.stock import attached, close, masked_generate, masked_logits, model_of
from tests.vlm.tiny import TINY, clip_batch

VIDEO = [name for name in sorted(TINY) if TINY[name].clip]
GREEDY = {"max_new_tokens": 3, "do_sample": False}


@pytest.mark.parametrize("name", VIDEO)
@torch.no_grad()
def test_all_tokens_of_a_clip_kept_is_the_untouched_model(name):
    inputs, model = clip_batch(name), model_of(name)
    logits = model(**inputs).logits
    tokens = model.generate(**inputs, **GREEDY)
    with attached(name, 1.0):
        assert torch.equal(model(**inputs).logits, logits)
        assert torch.equal(model.generate(**inputs, **GREEDY), tokens)


@pytest.mark.parametrize("name", VIDEO)
@pytest.mark.parametrize("per", ["clip", "frame"])
@torch.no_grad()
def test_pruning_a_clip_equals_masking(name, per):
    inputs, model = clip_batch(name), model_of(name)
    with attached(name, 3, video_budget_per=per):
        ours = model(**inputs).logits
        selection = model.autoselect.last
        tokens = model.generate(**inputs, **GREEDY)
        assert torch.equal(model.autoselect.last.columns, selection.columns)
    blocks = 1 if per == "clip" else TINY[name].clip.frames
    assert [len(block.kept) for block in selection.images] == [3] * blocks
    assert {block.modality for block in selection.images} == {"video"}
    close(ours, masked_logits(model, inputs, selection))
    assert torch.equal(tokens, masked_generate(model, inputs, selection, **GREEDY))


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
