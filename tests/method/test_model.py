"""One training step: what gets a gradient, what stays frozen, what a closed gate lets through."""

import dataclasses

import pytest
import torch
from PIL import Image

from autoselect.config import ConfigError, DenoiserConfig, GateConfig, ScorerConfig, TrainConfig
from autoselect.method.gating import GateSetting
from autoselect.method.model import AutoSelect
from autoselect.method.statistics import calibrate
from autoselect.ops.noise import NoiseKey
from autoselect.ops.noise_gate import noise_gate
from autoselect.reference.vlm import build_model, build_processor
from autoselect.vlm.backbone import FrozenVLM
from autoselect.vlm.batches.batch import Collator
from tests.vlm import tiny_processors
from tests.vlm.scene_samples import ROUNDS, sample
from tests.vlm.stock import features_of, loss_of, model_of, visual_of

CONFIG = TrainConfig(
    scorer=ScorerConfig(hidden_size=16, num_heads=2),
    denoiser=DenoiserConfig(num_layers=1, hidden_size=16),
    gate=GateConfig(token_budget=16, noise_rank=8),
)
SETTING = GateSetting(token_budget=16, temperature=0.1, seed=5, step=3)


@pytest.fixture(scope="module")
def vlm():
    return FrozenVLM(build_model(1), build_processor(), "tiny")


@pytest.fixture(scope="module")
def batch(vlm):
    return Collator(vlm)([sample(0, ROUNDS), sample(1, ROUNDS[:1]), sample(2, ROUNDS)])


@pytest.fixture
def model(vlm, batch):
    torch.manual_seed(0)
    tokens = features_of(vlm, batch)
    return AutoSelect(vlm, CONFIG, calibrate([tokens], 8)).train()


def test_only_scorer_and_denoiser_are_trained(model, batch):
    output = model(batch, SETTING)
    output.loss_sum.backward()
    trained = {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {"scorer", "denoiser"}
    assert all(p.grad is None for p in model.frozen.parameters())
    assert all(p.grad is not None for p in model.scorer.parameters())
    for name, parameter in model.scorer.named_parameters():
        if name != "score.bias":  # a shift of all scores changes no gate
            assert float(parameter.grad.abs().sum()) > 0, name
    assert float(model.denoiser.blocks[0].attention.output.weight.grad.abs().sum()) > 0


def test_every_denoiser_parameter_learns_once_its_branches_have_left_zero(model, batch):
    with torch.no_grad():
        for block in model.denoiser.blocks:
            block.attention.output.weight.normal_(std=0.02)
            block.mlp_out.weight.normal_(std=0.02)
    model(batch, SETTING).loss_sum.backward()
    for name, parameter in model.denoiser.named_parameters():
        assert float(parameter.grad.abs().sum()) > 0, name


def test_the_frozen_vlm_stays_in_eval_mode_and_keeps_its_weights(model, batch, vlm):
    before = [p.clone() for p in vlm.model.parameters()]
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=0.1)
    for _ in range(2):
        model.train()
        optimizer.zero_grad()
        model(batch, SETTING).loss_sum.backward()
        optimizer.step()
    assert not model.frozen.training
    assert all(map(torch.equal, vlm.model.parameters(), before))


def test_the_budget_is_met(model, batch):
    output = model(batch, SETTING)
    assert float(output.gate_sum) == pytest.approx(3 * 16, rel=1e-5)
    assert 0 < float(output.top_gate_sum) <= 3 * 16 * 1.00001
    assert output.answer_tokens == batch.num_answer_tokens


def test_a_step_does_not_depend_on_how_samples_are_batched(model, vlm):
    rows = [sample(number, ROUNDS) for number in range(3)]
    collate = Collator(vlm)
    together = float(model(collate(rows), SETTING).loss_sum.detach())
    apart = sum(float(model(collate([row]), SETTING).loss_sum.detach()) for row in reversed(rows))
    assert together == pytest.approx(apart, rel=1e-5)


def test_the_noise_of_a_step_is_its_own(model, batch):
    first, again = (model(batch, SETTING).loss_sum.item() for _ in range(2))
    other = model(batch, GateSetting(16, 0.1, seed=5, step=4)).loss_sum.item()
    assert first == again != other


@pytest.mark.parametrize("soft_removal", [False, True])
def test_recomputing_activations_changes_no_gradient(model, batch, monkeypatch, soft_removal):
    """Soft removal has a path of its own to the scores, through the attention mask."""
    monkeypatch.setattr(model, "soft_removal", soft_removal)
    gradients = []
    for recompute in (False, True):
        monkeypatch.setattr(model, "activation_checkpointing", recompute)
        model.zero_grad()
        model(batch, SETTING).loss_sum.backward()
        gradients.append([p.grad.clone() for p in model.scorer.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_soft_removal_reaches_the_scorer_and_stays_finite(vlm, batch, model):
    model.soft_removal = True
    hard = GateSetting(token_budget=16, temperature=1e-3, seed=5, step=3)
    for setting in (SETTING, hard):
        model.zero_grad()
        model(batch, setting).loss_sum.backward()
        gradient = model.scorer.score.weight.grad
        assert bool(torch.isfinite(gradient).all())
        assert float(gradient.abs().sum()) > 0


def test_closed_gates_carry_nothing_of_the_image(vlm, model, batch):
    tokens = visual_of(vlm, batch).tokens
    statistics, closed = model.statistics, torch.zeros(tokens.shape[:2])
    key = NoiseKey(0, 0, torch.arange(len(tokens)))
    gated = [noise_gate(x, closed, statistics, key) for x in (tokens, tokens.flip(0) * 3)]
    assert torch.equal(*gated)
    assert torch.equal(model.denoiser(gated[0]), model.denoiser(gated[1]))


def test_open_gates_are_the_untouched_tokens(vlm, model, batch):
    everything = GateSetting(144, 0.1, 0, 0)
    visual = visual_of(vlm, batch)
    gated = model.gate(visual, everything, batch.image_ids)
    assert torch.equal(gated.tokens, visual.tokens)
    assert torch.equal(gated.gates, torch.ones_like(gated.gates))


def test_rows_without_images_train_nothing_in_every_split(model, vlm):
    text, pictured = sample(0, ROUNDS, image=False), sample(1, ROUNDS)
    collate = Collator(vlm)
    alone = model(collate([text]), SETTING)
    alone.loss_sum.backward()
    for name, parameter in model.named_parameters():
        assert not parameter.requires_grad or float(parameter.grad.abs().sum()) == 0, name
    assert (alone.images, alone.wanted_sum, float(alone.gate_sum)) == (0, 0, 0.0)
    with torch.no_grad():
        together = model(collate([text, pictured]), SETTING)
        apart = model(collate([pictured]), SETTING)
    assert (float(alone.loss_sum.detach()), alone.answer_tokens) == (0.0, 0)
    torch.testing.assert_close(together.loss_sum, apart.loss_sum, rtol=1e-5, atol=1e-4)
    assert together.answer_tokens == apart.answer_tokens


def test_images_of_one_sample_get_different_noise_wherever_they_sit(vlm):
    pair = sample(3, ROUNDS)
    pair.pictures = pair.pictures * 2
    collate = Collator(vlm)
    ids = collate([sample(7, ROUNDS), pair, sample(7, ROUNDS)]).image_ids
    assert ids.tolist() == [28672, 12288, 12289, 28672]
    assert collate([pair]).image_ids.tolist() == [12288, 12289]


@pytest.fixture
def early(vlm, batch):
    """Build a model with the gate before the projector, whose width is another one."""
    torch.manual_seed(0)
    config = dataclasses.replace(CONFIG, gate=GateConfig(site="before_projector", noise_rank=8))
    before = visual_of(vlm, batch, "before_projector").gated
    return AutoSelect(vlm, config, calibrate([before.flatten(0, 1)], 8)).train()


def test_a_model_is_made_without_its_tower(vlm, batch, monkeypatch):
    """At ZeRO-3 the weights of the tower are split over the ranks then."""
    before = visual_of(vlm, batch, "before_projector").gated
    statistics = calibrate([before.flatten(0, 1)], 8)
    config = dataclasses.replace(CONFIG, gate=GateConfig(site="before_projector", noise_rank=8))

    def encode(*arguments, **more):
        raise AssertionError("the tower was run")

    monkeypatch.setattr(vlm.adapter, "encode", encode)
    assert AutoSelect(vlm, config, statistics).denoiser.width == before.shape[-1] != vlm.width


def test_a_gate_before_the_projector_trains_scorer_and_denoiser_there(early, batch, vlm):
    output = early(batch, SETTING)
    output.loss_sum.backward()
    assert float(output.gate_sum) == pytest.approx(3 * 16, rel=1e-5)
    assert early.denoiser.blocks[0].attention.value.in_features == 128 != vlm.width
    assert early.scorer.width == 128
    assert float(early.scorer.score.weight.grad.abs().sum()) > 0
    assert float(early.denoiser.blocks[0].attention.output.weight.grad.abs().sum()) > 0
    assert all(p.grad is None for p in early.frozen.parameters())


def test_open_gates_before_the_projector_are_the_untouched_model(early, batch, vlm):
    everything = GateSetting(144, 0.1, 0, 0)
    early.soft_removal = False
    with torch.no_grad():
        untouched = loss_of(vlm, batch)
        loss = early(batch, everything).loss_sum
    torch.testing.assert_close(loss, untouched)


def test_a_model_without_a_projector_of_single_tokens_is_refused():
    other = FrozenVLM(model_of("idefics3"), tiny_processors.idefics3(), "idefics3")
    with pytest.raises(ConfigError, match=r"site=before_projector .*=idefics3: "):
        other.encode_images([Image.new("RGB", (64, 64))], "before_projector")
