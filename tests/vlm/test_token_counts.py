"""Visual tokens are as many as their placeholders, whatever the configuration says."""

import pytest
import torch

from autoselect.config import ConfigError
from autoselect.vlm import Collator, FrozenVLM
from autoselect.vlm.forward import answer_loss
from tests.vlm import tiny_processors
from tests.vlm.conversations import SQUARE, WIDE, frozen, sample
from tests.vlm.stock import model_of
from tests.vlm.tiny_prompts import IMAGE

QUESTIONS = ["is there a red star ?", "what does the sign say ?"]


def untouched(vlm, pictures):
    """Last hidden states of the untouched model on what its own processor makes."""
    text = [f"<s><user><image>{question}<assistant>" for question in QUESTIONS]
    inputs = vlm.processor(text=text, images=pictures, return_tensors="pt", padding=True)
    return vlm.model.model(**inputs).last_hidden_state


@torch.no_grad()
def test_prompts_have_the_placeholders_that_the_processor_writes():
    """SigLIP at full resolution: 25 tokens, where the configuration says 16."""
    vlm = frozen("llava_siglip")
    assert vlm.is_spliced
    tokens = vlm.encode_images([SQUARE, WIDE]).tokens
    prefix = vlm.prefix(vlm.prompt(QUESTIONS), tokens)
    ours = vlm.model.model(**prefix).last_hidden_state
    real = prefix["attention_mask"].bool()
    torch.testing.assert_close(ours[real], untouched(vlm, [SQUARE, WIDE])[real])
    kept = torch.tensor([[3, 17, 22, 24]] * 2)
    chosen = tokens.gather(1, kept[..., None].expand(-1, -1, tokens.shape[-1]))
    pruned = vlm.prefix(vlm.prompt(QUESTIONS), chosen, kept)
    assert pruned["inputs_embeds"].shape[1] == prefix["inputs_embeds"].shape[1] - 25 + 4


def test_prompts_of_images_of_many_sizes_are_not_written_by_hand():
    """Pixtral-12B, whose configuration says one token per image."""
    assert not frozen("llava_pixtral").is_spliced


def test_a_processor_that_does_not_count_leaves_it_to_the_configuration():
    model = model_of("llava_siglip")
    vlm = FrozenVLM(model, tiny_processors.llava_siglip(patch_size=None), "llava")
    assert vlm.num_tokens == model.config.image_seq_length


@pytest.mark.parametrize("more", [{"num_additional_image_tokens": 1}, {"patch_size": None}])
def test_a_processor_of_another_model_is_named(more):
    vlm = FrozenVLM(model_of("llava_siglip"), tiny_processors.llava_siglip(**more), "llava")
    batch = Collator(vlm)([sample(0, (SQUARE,))])
    count = int((batch.input_ids == IMAGE).sum())
    for pixels in (batch.pixels, vlm.pixel_inputs([WIDE])):
        with pytest.raises(ConfigError, match=f"model=llava: 25 visual .* {count} placeholders"):
            vlm.encode(pixels)


@pytest.mark.parametrize("name", ["llava_siglip", "llava_next", "qwen3_vl"])
def test_a_loss_without_a_placeholder_for_every_token_is_refused(name):
    vlm = frozen(name)
    batch = Collator(vlm)([sample(0, (SQUARE,))])
    visual = vlm.encode(batch.pixels)
    tokens = visual.channels[0]
    for wrong in (tokens[1:], torch.cat([tokens, tokens[:1]])):
        with pytest.raises(ConfigError, match=f"{len(wrong)} visual tokens for {len(tokens)}"):
            answer_loss(vlm, batch, wrong, output=visual.output)


@pytest.mark.parametrize("positions", [None, torch.tensor([[22, 23, 24, 25]])])
def test_a_prefix_without_a_placeholder_for_every_token_is_refused(positions):
    vlm = frozen("llava_siglip")
    tokens = vlm.encode_images([SQUARE]).tokens[:, :4]
    with pytest.raises(ConfigError, match="4 visual tokens for"):
        vlm.prefix(vlm.prompt(QUESTIONS[:1]), tokens, positions)
