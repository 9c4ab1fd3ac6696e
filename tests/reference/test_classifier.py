"""The small classifier of figure 3: labels, training, saving and loading."""

import pytest
import torch
import transformers as hf
from PIL import Image
from transformers import ViTConfig, ViTModel

from autoselect.config import ConfigError
from autoselect.data.shards import ShardSet, ShardWriter
from autoselect.reference.classifier import largest_object_colour, train_classifier
from autoselect.reference.scenes import COLOURS
from autoselect.reference.shards import render_sample
from autoselect.vlm.image_classifier import (
    extra_tokens,
    grid,
    load_classifier,
    only_patches,
)


def test_the_class_of_a_scene_is_the_colour_of_its_largest_object():
    objects = [
        {"shape": "star", "colour": "green", "box": [0, 0, 14, 14]},
        {"shape": "heart", "colour": "blue", "box": [20, 20, 40, 40]},
    ]
    assert list(COLOURS)[largest_object_colour({"objects": objects})] == "blue"
    assert largest_object_colour({}) is None


@pytest.fixture
def samples(tmp_path):
    with ShardWriter(str(tmp_path / "shards")) as writer:
        for index in range(8):
            key, record, jpeg = render_sample(1, "train", index)
            writer.write(key, record, [jpeg])
    return ShardSet.open(str(tmp_path / "shards"))


def test_one_that_was_killed_while_it_was_saved_is_trained_again(samples, tmp_path, monkeypatch):
    def killed(model, folder):
        model.config.save_pretrained(folder)  # transformers writes it before the weights
        raise KeyboardInterrupt

    folder = tmp_path / "classifier"
    with monkeypatch.context() as broken, pytest.raises(KeyboardInterrupt):
        broken.setattr(hf.ViTForImageClassification, "save_pretrained", killed)
        train_classifier(samples, folder, steps=4)
    load_classifier(train_classifier(samples, folder, steps=4))


def test_it_trains_is_kept_and_loads_back(samples, tmp_path):
    folder = train_classifier(samples, tmp_path / "classifier", steps=30)
    before = (folder / "model.safetensors").read_bytes()
    assert train_classifier(samples, folder, steps=30) == folder
    assert (folder / "model.safetensors").read_bytes() == before, "it is not trained again"
    model, preprocess = load_classifier(folder)
    assert [*model.config.id2label.values()] == [*COLOURS]
    pixels = preprocess([samples[i].pictures[0] for i in range(len(samples))])
    assert grid(model, pixels) == (6, 6)
    truth = torch.tensor([largest_object_colour(samples[i].record) for i in range(len(samples))])
    with torch.no_grad():
        assert float((model(pixels).logits.argmax(-1) == truth).float().mean()) >= 0.75
        with only_patches(model, torch.arange(4).expand(len(pixels), -1)):
            assert model(pixels).logits.shape == (8, len(COLOURS))


def test_a_classifier_without_its_head_is_refused(tmp_path):
    """transformers would give it a random one."""
    config = ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=32)
    ViTModel(config, add_pooling_layer=False).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"classifier=.*\(classifier.bias, classifier.weight\)"):
        load_classifier(tmp_path)


def test_folders_without_a_classifier_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="has no config.json; give"):
        load_classifier(tmp_path)


SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


def saved(model, folder, size):
    """Save a classifier whose processor gives square pictures of a size."""
    model.save_pretrained(folder)
    sides = {"height": size, "width": size}
    hf.ViTImageProcessorPil(size=sides).save_pretrained(folder)
    return folder


def dinov2(**more):
    torch.manual_seed(0)
    return hf.Dinov2ForImageClassification(
        hf.Dinov2Config(**SMALL, **more, image_size=70, patch_size=14, num_labels=3)
    )


def with_registers():
    config = hf.Dinov2WithRegistersConfig(
        **SMALL, image_size=70, patch_size=14, num_register_tokens=2
    )
    return hf.Dinov2WithRegistersForImageClassification(config)


def clip():
    vision = {**SMALL, "intermediate_size": 32, "image_size": 28, "patch_size": 14}
    return hf.CLIPForImageClassification(hf.CLIPConfig(vision_config=vision))


def deit():
    config = hf.DeiTConfig(**SMALL, intermediate_size=32, image_size=28, patch_size=14)
    return hf.DeiTForImageClassificationWithTeacher(config)


@pytest.mark.parametrize(
    ("build", "side", "extra"),
    [(dinov2, 3, 1), (with_registers, 3, 3), (clip, 2, 1), (deit, 2, 2)],
)
@torch.no_grad()
def test_patches_are_counted_in_the_pixels_that_the_processor_gives(build, side, extra, tmp_path):
    model, preprocess = load_classifier(saved(build(), tmp_path, 14 * side))
    pixels = preprocess([Image.effect_noise((80, 60), 90).convert("RGB")])
    assert grid(model, pixels) == (side, side) and extra_tokens(model) == extra
    changed = pixels.clone()
    changed[..., 14:, :] = 1.0
    everything, first_row = torch.arange(side**2)[None], torch.arange(side)[None]
    with only_patches(model, everything):
        seen = model(pixels).logits
    assert torch.equal(seen, model(pixels).logits)
    with only_patches(model, first_row):
        assert torch.equal(model(pixels).logits, model(changed).logits)
        changed[..., :14, :14] = 1.0
        assert not torch.equal(model(pixels).logits, model(changed).logits)


def swin():
    config = hf.SwinConfig(image_size=32, embed_dim=16, depths=[1, 1], num_heads=[2, 2])
    return hf.SwinForImageClassification(config)


def beit():
    config = hf.BeitConfig(
        **SMALL, intermediate_size=32, image_size=32, patch_size=8, use_relative_position_bias=True
    )
    return hf.BeitForImageClassification(config)


def vit():
    return hf.ViTForImageClassification(ViTConfig(**SMALL, image_size=24, patch_size=8))


def convnext():
    return hf.ConvNextForImageClassification(
        hf.ConvNextConfig(hidden_sizes=[8] * 4, depths=[1] * 4)
    )


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (swin, "gives no row per patch"),
        (beit, "does not run on some of its patches"),
        (vit, "does not run on some of its patches"),
        (convnext, "gives no row per patch"),
    ],
)
def test_classifiers_whose_patches_cannot_be_removed_are_refused_at_loading(
    build, reason, tmp_path
):
    with pytest.raises(ConfigError, match=rf"{reason}.*give a vision transformer"):
        load_classifier(saved(build(), tmp_path, 32))


def test_rows_that_are_neither_patches_nor_known_tokens_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("autoselect.vlm.image_classifier.EXTRA_TOKENS", ())
    with pytest.raises(ConfigError, match="10 rows for 3 x 3 patches and 0 class and register"):
        load_classifier(saved(dinov2(), tmp_path, 42))


def test_patches_of_a_processor_that_crops_can_cover_the_whole_picture(tmp_path):
    clip().save_pretrained(tmp_path)
    hf.CLIPImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 28, "width": 28}, do_normalize=False
    ).save_pretrained(tmp_path)
    marked = Image.new("RGB", (320, 160))
    marked.paste("white", (0, 0, 60, 160))
    for whole, left in ((False, 0.0), (True, 1.0)):
        model, preprocess = load_classifier(tmp_path, whole=whole)
        pixels = preprocess([marked])
        assert grid(model, pixels) == (2, 2)
        assert float(pixels[0, :, :, 0].mean()) == pytest.approx(left, abs=0.01)


def test_a_picture_that_its_processor_refuses_is_named(samples, tmp_path, monkeypatch):
    folder = train_classifier(samples, tmp_path / "classifier", steps=1)
    real = hf.AutoImageProcessor.from_pretrained(folder)

    class Strict:
        def __call__(self, images, **more):
            if any(image.width == 1 for image in images):
                raise ValueError("too thin.")
            return real(images, **more)

    monkeypatch.setattr(hf.AutoImageProcessor, "from_pretrained", lambda _: Strict())
    _, preprocess = load_classifier(folder)
    wide, thin = Image.new("RGB", (32, 32)), Image.new("RGB", (1, 64))
    assert len(preprocess([wide])) == 1
    said = (
        f"classifier={folder}: Strict refuses its images of 1 x 64 pixels: too thin; leave it out"
    )
    with pytest.raises(ConfigError, match=f"^{said}$"):
        preprocess([wide, thin])
