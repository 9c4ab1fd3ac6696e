"""The tiny models see their images: without that, no other check of a family could fail."""

import pytest
import torch

from autoselect.vlm import VisualAdapter
from tests.vlm.stock import model_of
from tests.vlm.tiny import ALL, batch, clip_batch

SEEDS = (0, 1, 2)
LEAST_SPREAD = 0.01
"""Smallest accepted standard deviation of the visual tokens; the smallest family has 0.016."""
LEAST_CHANGE = 0.2
"""Smallest accepted change of a logit by another image, in standard deviations of the logits."""

INPUTS = [(name, kind) for name in sorted(ALL) for kind in "sl"]
INPUTS += [(name, "clip") for name in sorted(ALL) if ALL[name].clip]


def calls_of(name: str, kind: str) -> list[dict]:
    """Return calls with one prompt and different pixels.

    Args:
        name: the family.
        kind: size of the one image, or `clip`.
    """
    make = clip_batch if kind == "clip" else lambda name, seed: batch(name, [[kind]], seed=seed)
    calls = [make(name, seed=seed) for seed in SEEDS]
    given = {n: value for n, value in calls[0].items() if isinstance(value, torch.Tensor)}
    pixels = [n for n, value in given.items() if value.is_floating_point()]
    assert pixels
    return [{**calls[0], **{n: call[n] for n in pixels}} for call in calls]


@pytest.mark.parametrize(("name", "kind"), INPUTS)
@torch.no_grad()
def test_visual_tokens_differ_from_each_other_and_between_images(name, kind):
    adapter = VisualAdapter(model_of(name))
    features = []
    for call in calls_of(name, kind):
        outputs = adapter.encode(call)
        tokens, _ = adapter.tokens(adapter.blocks(call["input_ids"], outputs), outputs)
        features.append(tokens.flatten(0, 1))
    visual = torch.stack(features)  # [images, tokens, width]
    assert float(visual.std(dim=1).mean()) > LEAST_SPREAD, "tokens of an image are alike"
    assert float(visual.std(dim=0).mean()) > LEAST_SPREAD, "images are alike"


@pytest.mark.parametrize(("name", "kind"), INPUTS)
@torch.no_grad()
def test_the_answer_depends_on_the_image(name, kind):
    first, *others = (model_of(name)(**call).logits[:, -1] for call in calls_of(name, kind))
    known = first > torch.finfo(first.dtype).min
    least = LEAST_CHANGE * float(first[known].std())
    assert all(float((first - other).abs().max()) > least for other in others)
