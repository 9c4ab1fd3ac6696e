"""The frozen backbone: the untouched model at K = N, masking at K < N, blindness at K = 0."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageColor
from transformers import LlavaImageProcessor

from autoselect.config import ConfigError
from autoselect.pruning.attachment import keeping
from autoselect.reference.scenes import make_scene
from autoselect.reference.vlm import build_model, build_processor, save_vlm
from autoselect.vlm.backbone import FrozenVLM
from autoselect.vlm.rasters import part_seen
from tests.vlm.stock import asked_inputs, last_logits

QUESTIONS = ["is there a red circle ?", "what does the sign say ?", "how many hearts are there ?"]


@pytest.fixture(scope="module")
def vlm(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vlm")
    save_vlm(build_model(3), folder)
    return FrozenVLM.from_pretrained(folder)


@pytest.fixture(scope="module")
def images():
    return [make_scene(0, "train", index).image for index in range(len(QUESTIONS))]


def random_positions(kept: int, rows: int = 3, seed: int = 0) -> torch.Tensor:
    keys = torch.rand(rows, 144, generator=torch.Generator().manual_seed(seed))
    return keys.argsort(1)[:, :kept].sort(1).values


@pytest.fixture
def inputs(vlm, images):
    return asked_inputs(vlm, [[image] for image in images], QUESTIONS)


@torch.no_grad()
def test_all_tokens_kept_is_the_untouched_vlm_bit_for_bit(vlm, inputs):
    untouched = vlm.model(**inputs).logits[:, -1]
    assert torch.equal(last_logits(vlm, inputs, list(random_positions(144))), untouched)


@torch.no_grad()
def test_all_tokens_kept_generates_what_the_untouched_vlm_generates(vlm, inputs):
    options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    stock = vlm.model.generate(**inputs, **options)
    with keeping(vlm.model, list(random_positions(144))):
        assert torch.equal(vlm.model.generate(**inputs, **options), stock)


@pytest.mark.parametrize("kept", [1, 8, 143])
@torch.no_grad()
def test_pruning_equals_masking(vlm, inputs, kept):
    positions = random_positions(kept)
    visible = torch.zeros(3, 144, dtype=torch.long).scatter(1, positions, 1)
    mask = inputs["attention_mask"].clone()
    mask[inputs["input_ids"] == vlm.adapter.image_token_id] = visible.flatten()
    masked = vlm.model(**{**inputs, "attention_mask": mask}).logits[:, -1]
    pruned = last_logits(vlm, inputs, list(positions))
    torch.testing.assert_close(pruned, masked, rtol=0, atol=1e-5)


def test_a_batch_equals_its_rows_one_by_one_under_padding(vlm, images, inputs):
    positions = random_positions(12)
    together = last_logits(vlm, inputs, list(positions))
    for row, question in enumerate(QUESTIONS):
        alone = asked_inputs(vlm, [[images[row]]], [question])
        logits = last_logits(vlm, alone, [positions[row]])
        torch.testing.assert_close(logits[0], together[row], rtol=0, atol=1e-5)


def test_no_token_kept_does_not_depend_on_the_image(vlm, images):
    nothing = [torch.zeros(0, dtype=torch.long)] * 3
    answers = [
        last_logits(vlm, asked_inputs(vlm, [[image] for image in some], QUESTIONS), nothing)
        for some in (images, images[::-1])
    ]
    assert torch.equal(*answers)


def test_positions_for_another_number_of_images_are_refused(vlm, inputs):
    with pytest.raises(ConfigError, match="kept lists 2 images and the call has 3"):
        last_logits(vlm, inputs, list(random_positions(4, rows=2)))


def test_the_raster_of_an_image_is_known(vlm, images):
    assert vlm.grid_of(images[0]) == (12, 12)
    visual = vlm.encode_images(images)
    assert visual.tokens.shape == (3, 144, vlm.width) and visual.mask is None


@pytest.mark.parametrize(
    ("pads", "wide", "tall"),
    [(False, ((0.25, 0.75), (0, 1)), ((0, 1), (0.25, 0.75))), (True, ((0, 1), (-0.5, 1.5)), None)],
)
def test_it_is_known_which_part_of_a_picture_is_seen(pads, wide, tall, vlm, monkeypatch):
    if pads:
        cut = vlm.processor.image_processor
        padding = LlavaImageProcessor(do_pad=True, size=cut.size, crop_size=cut.crop_size)
        monkeypatch.setattr(vlm.processor, "image_processor", padding)
    colours = ["green", "red", "blue", "green"]
    stripes = [Image.new("RGB", (48, 96), colour) for colour in colours]
    picture = Image.fromarray(np.concatenate([np.asarray(stripe) for stripe in stripes], axis=1))
    seen = vlm.seen(picture)
    assert seen.size == (96, 96)
    found = [seen.getpixel((x, 48)) for x in ((3, 33, 62, 92) if pads else (40, 55))]
    wanted = [ImageColor.getrgb(colour) for colour in (colours if pads else colours[1:3])]
    assert np.abs(np.subtract(found, wanted)).max() < 4
    for size, part in (((192, 96), wide), ((1000, 2000), tall), ((77, 77), ((0, 1), (0, 1)))):
        if part is not None:
            assert np.abs(np.subtract(part_seen(vlm.seen, size), part)).max() < 0.02
    assert part_seen(vlm.seen, (300, 301)) == ((0, 1), (0, 1)), "what is nearly whole is whole"


def test_a_frozen_vlm_has_no_trainable_parameter_and_stays_in_eval_mode(vlm):
    assert not vlm.model.training
    assert not any(p.requires_grad for p in vlm.model.parameters())


def test_paths_that_are_no_vlm_are_named(tmp_path):
    with pytest.raises(ConfigError, match="has no config.json"):
        FrozenVLM.from_pretrained(tmp_path)
    text_model = tmp_path / "text"
    build_model().model.language_model.config.save_pretrained(text_model)
    with pytest.raises(ConfigError, match="is not a vision-language model"):
        FrozenVLM.from_pretrained(text_model)
    broken = tmp_path / "broken"
    save_vlm(build_model(), broken)
    (broken / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match="incomplete"):
        FrozenVLM.from_pretrained(broken)


def test_the_processor_survives_a_round_trip(tmp_path, vlm):
    build_processor().save_pretrained(tmp_path)
    text = "what does the sign say ?<assistant>K7</s>"
    assert vlm.processor.tokenizer.decode(
        vlm.processor.tokenizer(text)["input_ids"], skip_special_tokens=True
    ).endswith("K7")
