"""Every family beyond the checks of docs/backbones.md, which test_page runs."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers.modeling_outputs import BaseModelOutputWithPooling

from autoselect.pruning.attachment import keeping
from autoselect.vlm import VisualAdapter
from autoselect.vlm.families import FAMILIES as TABLE
from autoselect.vlm.features import feature_matrix, keep_features, with_entries
from tests.vlm import checks
from tests.vlm.backbones_page import remark
from tests.vlm.stock import attached, masked_generate, model_of
from tests.vlm.tiny import ALL, TINY, batch, padded
from tests.vlm.tiny_prompts import BOS

FAMILIES = sorted(TINY)
MASKING = [name for name in FAMILIES if TINY[name].equals_masking]
ROWS = [["s", "l"], [], ["s"]]
GREEDY = {"max_new_tokens": 4, "do_sample": False}


@pytest.mark.parametrize("name", [*FAMILIES, "llama4"])
@torch.no_grad()
def test_features_given_by_image_are_pruned_like_those_of_the_call(name):
    """An evaluation encodes images once, and hands their features to every call."""
    inputs, model = batch(name, [["s"], ["s"]]), model_of(name)
    adapter = VisualAdapter(model)
    outputs = adapter.encode(inputs)
    lengths = [len(block) for block in adapter.blocks(inputs["input_ids"], outputs)]
    entries = feature_matrix(outputs["image"], later=True).split(lengths)
    given = adapter.with_outputs(inputs, {"image": with_entries(outputs["image"], entries)})
    kept = [torch.tensor([1, 3]), torch.tensor([0, 4, 5])]
    with keeping(model, kept):
        assert torch.equal(model(**given).logits, model(**inputs).logits)


def test_features_may_be_on_another_device_than_their_prompt():
    """With `device_map` a prompt may be on the CPU; transformers moves it in the call."""
    with FakeTensorMode():
        features = [torch.empty(5, 3, device="cuda"), torch.empty(4, 3, device="cuda")]
        output = BaseModelOutputWithPooling(pooler_output=features)
        (left,) = keep_features(output, torch.tensor([1, 6, 8])).pooler_output
    assert (left.shape, left.device.type) == ((3, 3), "cuda")


RUNS = [("images or clips", n) for n in ALL if n in TABLE and TABLE[n].images == "runs"]
RUNS += [("clips", n) for n in ALL if n in TABLE and TABLE[n].videos == "runs"]


@pytest.mark.parametrize(("said", "name"), RUNS)
@torch.no_grad()
def test_images_side_by_side_are_told_apart_or_the_page_says_that_they_are_not(said, name):
    family, rng = ALL[name], torch.Generator().manual_seed(0)
    if said == "clips":
        one, pixels = family.clip.prompt, family.clip.pixels(rng)
        pixels = {key: torch.cat([value, value]) for key, value in pixels.items()}
    else:
        one, pixels = family.prompt("s"), family.joined([family.pixels(["s", "s"], rng)])
    inputs = padded([[BOS, 21, *one, *one, 33, 44]], "left")
    with attached(name, 4) as model:
        model(**inputs, **family.token_types(inputs["input_ids"]), **pixels)
        found = model.autoselect.last.images
    assert (len(found) == 1) == (f"{said} side by side" in remark(name))


@pytest.mark.parametrize("name", MASKING)
def test_pruning_equals_masking_with_padding_on_the_right(name):
    checks.pruning_equals_masking(name, "right")


@pytest.mark.parametrize("name", MASKING)
def test_generation_equals_that_of_the_masked_model(name):
    inputs, model = batch(name, ROWS), model_of(name)
    with attached(name, 0.3):
        ours = model.generate(**inputs, **GREEDY)
        selection = model.autoselect.last
    assert torch.equal(ours, masked_generate(model, inputs, selection, **GREEDY))
    assert torch.equal(ours[:, : inputs["input_ids"].shape[1]], inputs["input_ids"])


@pytest.mark.parametrize("name", FAMILIES)
def test_a_batch_with_padding_on_the_right_equals_its_rows(name):
    checks.a_batch_equals_its_rows_one_by_one(name, "right")
