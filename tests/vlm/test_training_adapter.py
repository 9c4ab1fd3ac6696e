"""The training step through the adapter: soft gates on the visual tokens, a frozen model behind."""

import pytest
import torch

from autoselect.config import ConfigError
from autoselect.vlm import VisualAdapter
from autoselect.vlm.batches.batch import TrainBatch
from autoselect.vlm.batches.rows import PADDING_SEGMENT
from autoselect.vlm.families import family_of
from autoselect.vlm.forward import answer_loss
from autoselect.vlm.sites import SITES
from tests.vlm.checks import gated_loss, parts
from tests.vlm.stock import PER_TOKEN, model_of
from tests.vlm.tiny import ALL, TINY, batch
from tests.vlm.tiny_prompts import FIRST_TEXT, WIDTH

ROWS = [["s", "l"], [], ["s"]]


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


TRAINED = [name for name in sorted(ALL) if not family_of(model_of(name).config).untrained]


@pytest.mark.parametrize("name", TRAINED)
@torch.no_grad()
def test_the_loss_of_training_is_that_of_the_stock_model(name):
    """All that the stock model is given has to be rebuilt: masks, positions, types of tokens.

    Weights of zero in attention change nothing, but need a mask for every kind of layer.
    """
    inputs, model = batch(name, [["l"], []], "right"), model_of(name)
    ids = inputs["input_ids"]
    labels = ids.where(ids >= FIRST_TEXT, torch.tensor(-100))
    adapter = VisualAdapter(model)
    segments = torch.zeros_like(ids).masked_fill(inputs["attention_mask"] == 0, PADDING_SEGMENT)
    rows = TrainBatch(
        input_ids=ids,
        labels=torch.nn.functional.pad(labels[:, 1:], (0, 1), value=-100),
        position_ids=torch.arange(ids.shape[1]).expand_as(ids),
        segments=segments,
        pixels={name: values for name, values in inputs.items() if name not in PER_TOKEN},
        tokens_per_image=[],
        image_ids=torch.zeros(1, dtype=torch.long),
    )
    count = int((labels[:, 1:] != -100).sum())
    stock = model(**inputs, labels=labels).loss
    outputs = SITES["after_projector"].read(adapter, rows.pixels, ids).outputs
    torch.testing.assert_close(answer_loss(adapter, rows, outputs) / count, stock)
    weights = torch.zeros(int((ids == adapter.image_token_id).sum()))
    if adapter.family.padding_mask_only:
        with pytest.raises(ConfigError, match="takes no mask that removes tokens"):
            answer_loss(adapter, rows, outputs, log_weights=weights)
        return
    weighted = answer_loss(adapter, rows, outputs, log_weights=weights) / count
    torch.testing.assert_close(weighted, stock, rtol=1e-4, atol=1e-4)
