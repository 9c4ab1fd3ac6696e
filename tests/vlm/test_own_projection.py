"""Llama 4 projects visual tokens in its own `forward`: they have the channels of its tower."""

import pytest
import torch

from autoselect import ConfigError, Selector, attach
from autoselect.config import ScorerConfig
from autoselect.method.scorer import Scorer
from autoselect.vlm import VisualAdapter
from autoselect.vlm.shape import read_shape
from autoselect.vlm.sites import SITES
from tests.vlm import tiny_large
from tests.vlm.stock import close, masked_logits
from tests.vlm.tiny import batch
from tests.vlm.tiny_prompts import WIDTH

OF_TOWER = 48


@pytest.fixture(scope="module")
def wide():
    torch.manual_seed(0)
    return tiny_large.llama4(OF_TOWER).eval().requires_grad_(False)


def scorer_of(width: int) -> Selector:
    torch.manual_seed(7)
    return Selector(Scorer(width, ScorerConfig(hidden_size=16, num_heads=2))).eval()


@torch.no_grad()
def test_tokens_are_scored_with_the_channels_of_the_tower(wide):
    with pytest.raises(ConfigError, match=f"tokens of {WIDTH} channels, .* have {OF_TOWER}"):
        attach(wide, scorer_of(WIDTH), 4)
    inputs = batch("llama4", [["l", "s"], []])
    model = attach(wide, scorer_of(OF_TOWER), 4)
    try:
        ours = model(**inputs).logits
        selection = model.autoselect.last
    finally:
        model.autoselect.remove()
        del model.autoselect
    assert [len(image.kept) for image in selection.images] == [4, 4]
    close(ours * (selection.columns >= 0)[..., None], masked_logits(model, inputs, selection))


def test_the_site_before_the_projector_says_that_it_is_the_default_one(wide):
    with pytest.raises(ConfigError, match="use site=after_projector"):
        SITES["before_projector"].check(VisualAdapter(wide))


def test_sizes_are_read_from_the_configuration(wide, tmp_path):
    wide.config.save_pretrained(tmp_path)
    shape = read_shape(str(tmp_path), visual_tokens=16)
    assert shape.width_at("after_projector") == OF_TOWER
    assert shape.width == WIDTH
    assert shape.parameters == sum(parameter.numel() for parameter in wide.parameters())
    language = wide.language_model.model
    inside = sum(parameter.numel() for parameter in language.layers.parameters())
    assert inside < shape.language_parameters < inside + 2 * WIDTH
