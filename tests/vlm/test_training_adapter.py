"""The training step through the adapter: soft gates on the visual tokens, a frozen model behind."""

import pytest
import torch

from autoselect.config import DenoiserConfig, ScorerConfig
from autoselect.method.denoiser import Denoiser
from autoselect.method.scorer import Scorer, standardise
from autoselect.ops.noise import NoiseKey, NoiseStatistics
from autoselect.ops.noise_gate import soft_top_k_noise_gate
from autoselect.vlm import VisualAdapter
from tests.vlm.stock import model_of
from tests.vlm.tiny import TINY, batch
from tests.vlm.tiny_prompts import FIRST_TEXT, WIDTH

ROWS = [["s", "l"], [], ["s"]]


def gated_loss(adapter, scorer, denoiser, inputs, budget, step=0):
    """Next-token loss of the text with noise in the place of unimportant tokens."""
    with torch.no_grad():
        outputs = adapter.encode(inputs)
    blocks = adapter.blocks(inputs["input_ids"], outputs)
    tokens, mask = adapter.tokens(blocks, outputs, later=True)
    scores = standardise(scorer(tokens[..., :WIDTH], mask), mask)
    channels = tokens.shape[-1]
    statistics = NoiseStatistics(torch.zeros(channels), torch.ones(channels))
    key = NoiseKey(0, step, torch.arange(len(blocks)))
    gated, gates = soft_top_k_noise_gate(tokens, scores, budget, 1.0, statistics, key, mask)
    repaired = torch.cat([denoiser(gated[..., :WIDTH]), gated[..., WIDTH:]], dim=-1)
    replaced = adapter.replace(outputs, blocks, repaired)
    call = adapter.with_outputs(inputs, replaced)
    ids = inputs["input_ids"]
    labels = ids.where(ids >= FIRST_TEXT, torch.tensor(-100))
    return adapter.model(**call, labels=labels).loss, gates


def parts(seed=0):
    torch.manual_seed(seed)
    scorer = Scorer(WIDTH, ScorerConfig(hidden_size=16, num_heads=2))
    return scorer, Denoiser(WIDTH, DenoiserConfig(num_layers=1))


@pytest.mark.parametrize("name", sorted(TINY))
def test_gradients_reach_scorer_and_denoiser_and_the_model_stays_frozen(name):
    adapter, (scorer, denoiser) = VisualAdapter(model_of(name)), parts()
    before = [p.clone() for p in adapter.model.parameters()]
    loss, gates = gated_loss(adapter, scorer, denoiser, batch(name, ROWS, "right"), 4)
    torch.testing.assert_close(gates.sum(1), torch.full((3,), 4.0), rtol=0, atol=1e-4)
    loss.backward()
    for part in (scorer, denoiser):
        gradients = [p.grad for p in part.parameters() if p.grad is not None]
        assert sum(float(g.abs().sum()) for g in gradients) > 0
        assert all(bool(torch.isfinite(g).all()) for g in gradients)
    assert all(p.grad is None for p in adapter.model.parameters())
    assert all(map(torch.equal, adapter.model.parameters(), before))


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
