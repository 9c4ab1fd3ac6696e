"""The training step through the adapter: soft gates on the visual tokens, a frozen model behind."""

import pytest
import torch

from autoselect.vlm import VisualAdapter
from tests.vlm import checks
from tests.vlm.checks import gated_loss, parts
from tests.vlm.stock import model_of
from tests.vlm.tiny import TINY, batch
from tests.vlm.tiny_prompts import FIRST_TEXT, WIDTH

ROWS = [["s", "l"], [], ["s"]]


@pytest.mark.parametrize("name", sorted(TINY))
def test_gradients_reach_scorer_and_denoiser_and_the_model_stays_frozen(name):
    checks.gradients_reach_scorer_and_denoiser_and_the_model_stays_frozen(name)


@pytest.mark.parametrize("name", sorted(TINY))
@torch.no_grad()
def test_open_gates_are_the_untouched_model(name):
    """A budget of all tokens opens every gate, and a fresh Denoiser is the identity."""
    model, inputs = model_of(name), batch(name, [["l"], []], "right")
    ids = inputs["input_ids"]
    labels = ids.where(ids >= FIRST_TEXT, torch.tensor(-100))
    budget = TINY[name].tokens("l")
    loss, _ = gated_loss(VisualAdapter(model), *parts(), inputs, budget)
    torch.testing.assert_close(loss, model(**inputs, labels=labels).loss)


@torch.no_grad()
def test_closed_gates_let_nothing_of_the_image_through_any_layer():
    """Qwen3-VL adds image features in later layers too; noise takes their place as well."""
    model = model_of("qwen3_vl")
    adapter = VisualAdapter(model)
    logits = []
    for seed in (0, 1):
        inputs = batch("qwen3_vl", [["l"]])
        inputs["pixel_values"] = batch("qwen3_vl", [["l"]], seed=seed)["pixel_values"]
        outputs = adapter.encode(inputs)
        blocks = adapter.blocks(inputs["input_ids"], outputs)
        tokens, _ = adapter.tokens(blocks, outputs, later=True)
        assert tokens.shape[-1] == 3 * WIDTH
        replaced = adapter.replace(outputs, blocks, torch.zeros_like(tokens))
        logits.append(model(**adapter.with_outputs(inputs, replaced)).logits)
    assert torch.equal(*logits)
