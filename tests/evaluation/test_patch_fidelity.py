"""Figure 5 on patches: all patches change nothing, noise carries nothing, removal removes."""

import weakref
from collections.abc import Sequence
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers as hf

from autoselect.cli.main import main
from autoselect.evaluation.analyses.classifier import LabelledImages, labelled_images
from autoselect.evaluation.analyses.line_figures import fidelity_figure
from autoselect.evaluation.analyses.patch_fidelity import (
    TREATMENTS,
    patch_fidelity,
    patch_statistics,
    rewritten,
)
from autoselect.ops.noise import NoiseKey
from autoselect.ops.noise_gate import noise_gate
from tests.evaluation.fakes import make_samples


@pytest.fixture(scope="module")
def classifier():
    torch.manual_seed(0)
    config = hf.ViTConfig(
        image_size=24,
        patch_size=8,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        num_labels=7,
    )
    model = hf.ViTForImageClassification(config).eval().requires_grad_(False)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(10)
    return model


def preprocess(batch):
    pixels = torch.stack([torch.from_numpy(np.array(image)) for image in batch])
    return pixels.permute(0, 3, 1, 2) / 255


def images(count):
    return [sample.image for sample in make_samples(count)]


def test_all_patches_are_the_untouched_classifier(classifier):
    with torch.no_grad():
        labels = classifier(preprocess(images(12))).logits.argmax(dim=-1).tolist()
    data = LabelledImages(images(12), labels, "by hand")
    found = patch_fidelity(classifier, preprocess, data, (2, 9), images_per_batch=5)
    assert found["full"] == {"top1": 1.0, "top5": 1.0}
    assert all(found["curves"][name][1] == found["top5"][name][1] == 1.0 for name in TREATMENTS)
    assert all(found["curves"][n][0] <= found["top5"][n][0] for n in TREATMENTS)
    assert found["gaps"][1] == {"budget": 9, "gap": 0.0, "ci95": [0.0, 0.0]}
    noise, removal = (found["curves"][name][0] for name in ("noise gating", "hard removal"))
    assert found["gaps"][0]["gap"] == pytest.approx(noise - removal)
    assert found["mean_gap"] == pytest.approx(abs(noise - removal) / 2)
    assert fidelity_figure(found).axes[0].get_ylabel() == "top-1 accuracy"
    own = patch_fidelity(classifier, preprocess, LabelledImages(images(12), None, "own"), (2, 9))
    assert own["curves"] == found["curves"], "here the labels are its own predictions"


class Watched:
    """Count how many of the objects that passed by are alive at most at the same time."""

    def __init__(self):
        self.seen, self.most = [], 0

    def note(self, value):
        self.seen.append(weakref.ref(value))
        self.most = max(self.most, sum(ref() is not None for ref in self.seen))
        return value


class ShardLike(Sequence):
    """Samples whose images are decoded anew at each request, as those of shards are."""

    def __init__(self, count, watched):
        self.sources, self.watched = images(count), watched

    def __len__(self):
        return len(self.sources)

    def __getitem__(self, index):
        picture = self.watched.note(self.sources[index].copy())
        return SimpleNamespace(key="key", record={}, images=(b"",), pictures=(picture,))


def test_pictures_and_pixels_are_held_batch_by_batch(classifier):
    pictures, pixels = Watched(), Watched()
    data = labelled_images(ShardLike(30, pictures), {})
    patch_fidelity(classifier, lambda batch: pixels.note(preprocess(batch)), data, (2,), 3)
    assert 0 < pictures.most <= 6 and 0 < pixels.most <= 2


@pytest.mark.parametrize("labels", [None, [0] * 11])
def test_reading_images_one_by_one_changes_no_digit(labels, classifier):
    every = images(11)
    lazy = LabelledImages(labelled_images(ShardLike(11, Watched()), {}).images, labels, "own")
    held = LabelledImages(every, labels, "own")
    measured = partial(patch_fidelity, classifier, preprocess)
    assert measured(lazy, (2, 5), 4) == measured(held, (2, 5), 4)


def test_the_grid_is_that_of_the_pixels_and_not_of_the_configuration():
    config = hf.Dinov2Config(
        image_size=40, patch_size=8, hidden_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    model = hf.Dinov2ForImageClassification(config).eval()
    data = LabelledImages(images(4), None, "own")
    found = patch_fidelity(model, preprocess, data, (9,))
    assert found["grid"] == [3, 3]
    assert all(found["curves"][name] == [1.0] for name in TREATMENTS)


@torch.no_grad()
def test_patches_behind_closed_gates_carry_nothing_of_the_image(classifier):
    pixels = preprocess(images(4))
    channel, _ = patch_statistics(classifier, [pixels])
    gates = torch.zeros(2, 9)
    gates[:, 4] = 1.0
    key = NoiseKey(0, 0, torch.arange(2))
    other = pixels[2:].clone()
    other[:, :, 8:16, 8:16] = pixels[:2, :, 8:16, 8:16]  # the patch whose gate is open
    with rewritten(classifier, lambda patches: noise_gate(patches, gates, channel, key)):
        assert torch.equal(classifier(pixels[:2]).logits, classifier(other).logits)
        assert not torch.equal(classifier(pixels[:2]).logits, classifier(pixels[2:]).logits)


def test_the_site_belongs_to_fidelity_and_other_analyses_need_a_model(tmp_path, capsys, caplog):
    words = ["--shards", "s", "--budgets", "25%", "--out", str(tmp_path), "--no-tracking"]
    assert main(["analyse", "frequency", "--site", "patch_embedding", *words]) == 2
    assert "belongs to `analyse fidelity`" in capsys.readouterr().err + caplog.text
    assert main(["analyse", "fidelity", *words]) == 2
    assert "model= is missing" in capsys.readouterr().err + caplog.text
    patches = ["analyse", "fidelity", "--site", "patch_embedding", *words]
    assert main([*patches, "--selector", "mine"]) == 2
    assert "selector=mine has no part in an analysis" in capsys.readouterr().err + caplog.text
