"""The small classifier of figure 3: labels, training, saving and loading."""

import pytest
import torch
from transformers import ViTConfig, ViTModel

from autoselect.config import ConfigError
from autoselect.data.shards import ShardSet, ShardWriter
from autoselect.reference.classifier import largest_object_colour, train_classifier
from autoselect.reference.scenes import COLOURS
from autoselect.reference.shards import render_sample
from autoselect.vlm.image_classifier import grid, load_classifier, only_patches


def test_the_class_of_a_scene_is_the_colour_of_its_largest_object():
    objects = [
        {"shape": "star", "colour": "green", "box": [0, 0, 14, 14]},
        {"shape": "heart", "colour": "blue", "box": [20, 20, 40, 40]},
    ]
    assert list(COLOURS)[largest_object_colour({"objects": objects})] == "blue"
    assert largest_object_colour({}) is None


def test_it_trains_is_kept_and_loads_back(tmp_path):
    with ShardWriter(str(tmp_path / "shards")) as writer:
        for index in range(8):
            key, record, jpeg = render_sample(1, "train", index)
            writer.write(key, record, [jpeg])
    samples = ShardSet.open(str(tmp_path / "shards"))
    folder = train_classifier(samples, tmp_path / "classifier", steps=30)
    before = (folder / "model.safetensors").read_bytes()
    assert train_classifier(samples, folder, steps=30) == folder
    assert (folder / "model.safetensors").read_bytes() == before, "it is not trained again"
    model, preprocess = load_classifier(folder)
    assert grid(model) == (6, 6) and [*model.config.id2label.values()] == [*COLOURS]
    pixels = preprocess([samples[i].pictures[0] for i in range(len(samples))])
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
    with pytest.raises(ConfigError, match="cannot be loaded"):
        load_classifier(tmp_path)
