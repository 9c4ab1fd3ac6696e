"""Plans of calls are shared by calls of one layout and change nothing."""

import pytest
import torch

from autoselect.pruning import plans
from autoselect.vlm.features import with_features
from tests.vlm.stock import attached
from tests.vlm.tiny import batch

FAMILIES = ["llava", "idefics3", "llava_next", "qwen2_5_vl", "aya_vision"]


def forget_plans():
    plans._planned.cache_clear()
    plans.plan_columns.cache_clear()


def with_other_words(inputs):
    """Return the call with other pictures and another first token of text at the end."""
    ids = inputs["input_ids"].clone()
    ids[:, -1] += 1
    pixels = {n: 0.5 * v for n, v in inputs.items() if v.is_floating_point()}
    return {**inputs, **pixels, "input_ids": ids}


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_a_call_of_a_known_layout_gives_what_it_would_alone(name):
    first = batch(name, [["s", "l"], ["l"]])
    second = with_other_words(first)
    with attached(name, 3) as model:
        forget_plans()
        model(**first)
        made = plans._planned.cache_info().misses
        shared = model(**second).logits
        forget_plans()
        assert torch.equal(shared, model(**second).logits)
        assert made == 1


@torch.no_grad()
def test_a_token_and_the_whole_image_are_different_budgets_of_one_layout():
    inputs = batch("llava", [["l"]])
    forget_plans()
    kept = []
    for budget in (1, 1.0, 0.5):
        with attached("llava", budget) as model:
            model(**inputs)
            kept.append(len(model.autoselect.last.images[0].kept))
    assert kept == [1, 16, 8]


def test_other_masks_and_longer_prompts_are_other_layouts():
    inputs = batch("llava", [["l"], ["l"]])
    hidden = inputs["attention_mask"].clone()
    hidden[0, :3] = 0
    with torch.no_grad(), attached("llava", 4) as model:
        forget_plans()
        for mask in (inputs["attention_mask"], hidden):
            seen = model(**{**inputs, "attention_mask": mask}).logits
            forget_plans()
            assert torch.equal(seen, model(**{**inputs, "attention_mask": mask}).logits)


def test_a_plan_made_without_autograd_serves_a_call_with_it():
    inputs = batch("llava", [["l"]])
    forget_plans()
    with attached("llava", 4) as model:
        with torch.inference_mode():
            model(**inputs)
        adapter = model.autoselect.adapter
        features = adapter.features(adapter.encode(inputs)).detach().requires_grad_()
        outputs = {"image": with_features(adapter.encode(inputs)["image"], features)}
        call = {**adapter.with_outputs(inputs, outputs), "labels": inputs["input_ids"]}
        model(**call).loss.backward()
        kept = model.autoselect.last.images[0].kept
    assert features.grad.any(dim=1).nonzero().view(-1).tolist() == kept.tolist()
