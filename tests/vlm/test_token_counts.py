"""Visual tokens are as many as their placeholders, whatever the configuration says."""

import pytest
import torch

from autoselect.config import ConfigError
from autoselect.pruning.attachment import keeping
from autoselect.vlm import Collator, FrozenVLM
from tests.vlm import tiny_processors
from tests.vlm.conversations import SQUARE, WIDE, frozen, sample
from tests.vlm.stock import asked_inputs, features_of, loss_of, model_of, visual_of
from tests.vlm.tiny_prompts import IMAGE

QUESTIONS = ["is there a red star ?", "what does the sign say ?"]


@torch.no_grad()
def test_prompts_have_the_placeholders_that_the_processor_writes():
    """SigLIP at full resolution: 25 tokens, while the configuration says 16."""
    vlm = frozen("llava_siglip")
    assert vlm.num_tokens == 25
    inputs = asked_inputs(vlm, [[SQUARE], [WIDE]], QUESTIONS)
    assert (inputs["input_ids"] == IMAGE).sum(dim=1).tolist() == [25, 25]
    kept = list(torch.tensor([[3, 17, 22, 24]] * 2))
    with keeping(vlm.model, kept) as attachment:
        vlm.model(**inputs)
    assert attachment.last.columns.shape[1] == inputs["input_ids"].shape[1] - 25 + 4


def test_images_of_many_sizes_have_no_fixed_number_of_tokens():
    """Pixtral-12B, whose configuration says one token per image."""
    assert frozen("llava_pixtral").num_tokens is None


def test_a_processor_that_cannot_count_is_refused():
    with pytest.raises(ConfigError, match="model=llava: its processor has no patch_size"):
        FrozenVLM(model_of("llava_siglip"), tiny_processors.llava_siglip(patch_size=None), "llava")


def test_a_processor_of_another_model_is_named():
    processor = tiny_processors.llava_siglip(num_additional_image_tokens=1)
    vlm = FrozenVLM(model_of("llava_siglip"), processor, "llava")
    batch = Collator(vlm)([sample(0, (SQUARE,))])
    count = int((batch.input_ids == IMAGE).sum())
    with pytest.raises(ConfigError, match=f"{count} image placeholders .* for 25 visual tokens"):
        visual_of(vlm, batch)
    with pytest.raises(ConfigError, match="correct patch_size, num_additional_image_tokens"):
        vlm.encode_images([WIDE])


@pytest.mark.parametrize("name", ["llava_siglip", "llava_next", "qwen3_vl"])
def test_a_loss_without_a_placeholder_for_every_token_is_refused(name):
    vlm = frozen(name)
    batch = Collator(vlm)([sample(0, (SQUARE,))])
    features = features_of(vlm, batch)
    for wrong in (features[1:], torch.cat([features, features[:1]])):
        with pytest.raises((ValueError, RuntimeError), match="(?i)image features"):
            loss_of(vlm, batch, wrong)
