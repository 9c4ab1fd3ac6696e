"""Maps of one layer are those that the stock model gives, and nothing behind it is computed."""

import pytest
import torch

from autoselect.evaluation.asking.tower_attention import tower_attention
from autoselect.reference.scenes import make_scene
from autoselect.reference.vlm import build_model, build_processor
from autoselect.vlm.attention_maps import attention_layers, attention_maps
from autoselect.vlm.backbone import FrozenVLM
from tests.vlm.tiny_models import llava_siglip


@pytest.fixture(scope="module")
def vlm():
    return FrozenVLM(build_model(3), build_processor(), "tiny")


@pytest.fixture(scope="module")
def images():
    return [make_scene(0, "train", index).image for index in range(2)]


@pytest.mark.parametrize("number", [0, 1, -1])
def test_they_are_those_of_the_stock_model(vlm, images, number):
    tower = vlm.model.model.vision_tower
    pixels = vlm.pixel_inputs(images)["pixel_values"]
    layers = attention_layers(tower)
    before = tower.config._attn_implementation
    assert before != "eager" and len(layers) == tower.config.num_hidden_layers
    calls = []
    watches = [layer.register_forward_hook(lambda m, *_: calls.append(m)) for layer in layers]
    hooks = len(layers[number]._forward_hooks)
    found = attention_maps(tower, layers[number], lambda: tower(pixels))
    assert len(layers[number]._forward_hooks) == hooks
    for watch in watches:
        watch.remove()
    assert calls == layers[: layers.index(layers[number]) + 1], "later layers are left out"
    assert tower.config._attn_implementation == before
    tower.set_attn_implementation("eager")
    try:
        stock = tower(pixels, output_attentions=True).attentions[number]
    finally:
        tower.set_attn_implementation(before)
    assert torch.equal(found, stock)


def test_the_attention_of_the_class_token_in_the_layer_whose_features_are_used(vlm, images):
    """The reference VLM takes its features from the layer that its configuration names."""
    tower, config = vlm.model.model.vision_tower, vlm.model.config
    pixels = vlm.pixel_inputs(images)["pixel_values"]
    layer = config.vision_feature_layer
    tower.set_attn_implementation("eager")
    stock = tower(pixels, output_attentions=True).attentions[layer if layer < 0 else layer - 1]
    tower.set_attn_implementation("sdpa")
    found = tower_attention(vlm.adapter, vlm.pixel_inputs(images), len(images) * 144).values
    torch.testing.assert_close(found.view(len(images), -1), stock.mean(dim=1)[:, 0, 1:])


def test_a_tower_without_a_class_token_gives_what_each_patch_receives():
    torch.manual_seed(0)
    vlm = FrozenVLM(llava_siglip(16), build_processor(), "siglip")
    pixels = {"pixel_values": torch.randn(2, 3, 16, 16)}
    found = tower_attention(vlm.adapter, pixels, 32).values.view(2, 16)
    torch.testing.assert_close(found.sum(dim=1), torch.ones(2))
