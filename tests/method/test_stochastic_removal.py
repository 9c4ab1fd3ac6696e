"""Random removal in training: exact, repeatable, with a gradient for every token that stays."""

import dataclasses

import pytest
import torch

from autoselect.config import ConfigError, DenoiserConfig, GateConfig, ScorerConfig, TrainConfig
from autoselect.method.gating import GateSetting
from autoselect.method.model import AutoSelect
from autoselect.method.statistics import calibrate
from autoselect.method.stochastic_removal import (
    GONE,
    RemovalRule,
    image_share,
    removal_logits,
    uniforms,
)
from autoselect.ops.noise import NoiseKey
from autoselect.reference.vlm import build_model, build_processor
from autoselect.vlm.backbone import FrozenVLM
from autoselect.vlm.text.batch import Collator
from tests.vlm.scene_samples import ROUNDS, sample
from tests.vlm.stock import asked_inputs, features_of, last_logits, loss_of, model_of, visual_of

PER_TOKEN, PER_IMAGE = RemovalRule("per_token", False), RemovalRule("per_image", False)
BUDGET = 16


def key(images, seed=3, step=4):
    return NoiseKey(seed, step, torch.as_tensor(images))


def test_a_token_is_removed_with_probability_p_times_one_minus_its_gate():
    gates = torch.tensor([0.0, 0.25, 0.5, 1.0]).repeat(4000, 1)
    removed = removal_logits(PER_TOKEN, gates, 0.8, key(range(4000))) == GONE
    expected = torch.tensor([0.8, 0.6, 0.4, 0.0])
    torch.testing.assert_close(removed.float().mean(0), expected, atol=0.03, rtol=0)
    assert not removed[:, 3].any()


def test_one_share_per_image_goes_from_none_to_all():
    gates = torch.zeros(4000, 32)
    removed = (removal_logits(PER_IMAGE, gates, 1.0, key(range(4000))) == GONE).float().mean(1)
    assert abs(float((removed == 0).float().mean()) - 0.25) < 0.03
    assert abs(float((removed == 1).float().mean()) - 0.25) < 0.03
    assert abs(float(removed.mean()) - 0.5) < 0.03
    assert image_share(torch.tensor([0.1, 0.25, 0.5, 0.75, 0.9])).tolist() == [0, 0, 0.5, 1, 1]


def test_probability_one_removes_every_closed_token_and_zero_none():
    gates = torch.zeros(8, 32)
    assert bool((removal_logits(PER_TOKEN, gates, 1.0, key(range(8))) == GONE).all())
    assert bool((removal_logits(PER_TOKEN, gates, 0.0, key(range(8))) == 0).all())


def test_draws_are_a_pure_function_of_seed_step_image_and_token():
    """So they are the same on any rank, in any batch, and after a resume."""
    gates = torch.full((6, 20), 0.5)
    whole = removal_logits(PER_TOKEN, gates, 0.9, key(range(6)))
    for images in ([4, 1], [5]):
        part = removal_logits(PER_TOKEN, gates[: len(images)], 0.9, key(images))
        assert torch.equal(part, whole[images])
    longer = removal_logits(PER_TOKEN, torch.full((6, 33), 0.5), 0.9, key(range(6)))
    assert torch.equal(longer[:, :20], whole)
    for other in (key(range(6), seed=9), key(range(6), step=5), key(range(1, 7))):
        assert not torch.equal(removal_logits(PER_TOKEN, gates, 0.9, other), whole)


def test_draws_are_uniform_and_differ_between_token_and_image():
    tokens, images = uniforms(torch.zeros(500, 40), key(range(500)))
    for drawn in (tokens, images):
        assert 0 < float(drawn.min()) and float(drawn.max()) < 1
        assert abs(float(drawn.mean()) - 0.5) < 0.05
        assert abs(float(drawn.var()) - 1 / 12) < 0.01
    assert not torch.equal(tokens[:, 0], images)


def test_presence_has_value_zero_and_the_score_functions_gradient():
    gates = torch.tensor([[0.2, 0.5, 0.9, 1.0]], requires_grad=True)
    logits = removal_logits(RemovalRule("per_token", True), gates, 0.6, key([0]))
    stay = logits.detach() != GONE
    assert torch.equal(logits.detach()[stay], torch.zeros(int(stay.sum())))
    logits[stay].sum().backward()
    expected = 0.6 / (1 - 0.6 * (1 - gates.detach()))
    torch.testing.assert_close(gates.grad, expected * stay)


@pytest.fixture(scope="module")
def vlm():
    return FrozenVLM(build_model(1), build_processor(), "tiny")


@pytest.fixture(scope="module")
def batch(vlm):
    return Collator(vlm)([sample(0, ROUNDS), sample(1, ROUNDS[:1]), sample(2, ROUNDS)])


def model(vlm, batch, **gate):
    torch.manual_seed(0)
    config = TrainConfig(
        scorer=ScorerConfig(hidden_size=16, num_heads=2),
        denoiser=DenoiserConfig(num_layers=1, hidden_size=16),
        gate=GateConfig(token_budget=BUDGET, noise_rank=8, **gate),
    )
    return AutoSelect(vlm, config, calibrate([features_of(vlm, batch)], 8)).train()


SETTING = GateSetting(BUDGET, temperature=0.1, seed=5, step=3, removal=0.9)


def test_what_a_removed_token_holds_changes_nothing(vlm, batch):
    features = features_of(vlm, batch)
    logits = torch.zeros(len(features))
    logits[::3] = GONE
    other = features.clone()
    other[::3] = 100 * torch.randn_like(other[::3])
    first, second = (loss_of(vlm, batch, f, log_weights=logits) for f in (features, other))
    assert torch.equal(first, second)
    assert not torch.equal(first, loss_of(vlm, batch, other))


def test_removal_from_attention_is_removal_from_the_sequence(vlm):
    """The loss of each answer token is that of the model that `attach` gives fewer tokens."""
    shown = sample(0, ROUNDS)
    question = ROUNDS[0][0]
    kept = torch.arange(0, 144, 7)
    inputs = asked_inputs(vlm, [shown.pictures], [question])
    told = Collator(vlm)([sample(0, [(question, "no")])])
    logits = torch.full((144,), GONE)
    logits[kept] = 0.0
    row = last_logits(vlm, inputs, [kept])[0].log_softmax(-1)
    first = int(told.labels[told.labels >= 0][0])
    told.labels[told.labels >= 0] = torch.tensor(
        [first] + [-100] * (int((told.labels >= 0).sum()) - 1)
    )
    loss = loss_of(vlm, told, log_weights=logits)
    torch.testing.assert_close(loss, -row[first], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("gate", [{"removal": "per_token"}, {"removal": "per_image"}])
def test_a_step_repeats_exactly_and_does_not_depend_on_the_batch(vlm, batch, gate):
    trained = model(vlm, batch, **gate)
    rows = [sample(number, ROUNDS) for number in range(3)]
    collate = Collator(vlm)
    together, again = (trained(collate(rows), SETTING).loss_sum.item() for _ in range(2))
    apart = sum(trained(collate([row]), SETTING).loss_sum.item() for row in reversed(rows))
    assert together == again == pytest.approx(apart, rel=1e-5)
    none = dataclasses.replace(SETTING, removal=0.0)
    plain = model(vlm, batch)
    assert trained(collate(rows), none).loss_sum.item() == pytest.approx(
        plain(collate(rows), none).loss_sum.item(), rel=1e-5
    )
    assert together != pytest.approx(plain(collate(rows), none).loss_sum.item(), rel=1e-3)


@pytest.mark.parametrize("presence", [False, True])
@pytest.mark.parametrize("recompute", [False, True])
def test_tokens_that_stay_have_a_gradient_and_removed_ones_none(vlm, batch, presence, recompute):
    trained = model(vlm, batch, removal="per_token", removal_presence=presence)
    trained.activation_checkpointing = recompute
    visual = visual_of(vlm, batch)
    seen = {}

    def gate(*arguments):
        gated = AutoSelect.gate(trained, *arguments)
        gated.tokens.retain_grad()
        seen["gated"] = gated
        return gated

    trained.gate = gate
    trained(batch, SETTING).loss_sum.backward()
    gated = seen["gated"]
    logits = trained.attention_logits(visual, gated.gates, SETTING, batch.image_ids)
    gone = (logits.detach() == GONE).view_as(gated.gates)
    assert 0.5 < float(gone.float().mean()) < 0.95
    strength = gated.tokens.grad.abs().sum(-1)
    assert float(strength[gone].max()) == 0 < float(strength[~gone].min())
    assert all(bool(torch.isfinite(p.grad).all()) for p in trained.scorer.parameters())
    assert float(trained.scorer.score.weight.grad.abs().sum()) > 0


def test_settings_that_contradict_each_other_are_refused():
    with pytest.raises(ConfigError, match="gate.soft_removal=true both change attention"):
        GateConfig(removal="per_token", soft_removal=True)
    with pytest.raises(ConfigError, match="gate.removal_presence=true needs tokens"):
        GateConfig(removal_presence=True)
    with pytest.raises(ConfigError, match=r"gate.removal_probability=1.5 must lie in 0..1"):
        GateConfig(removal="per_token", removal_probability=1.5)


def test_a_model_whose_convolutions_see_removed_tokens_is_refused():
    other = FrozenVLM(model_of("lfm2_vl"), build_processor(), "lfm2")
    config = TrainConfig(gate=GateConfig(removal="per_image"))
    with pytest.raises(ConfigError, match="gate.removal=per_image: convolutions of model=lfm2"):
        AutoSelect(other, config, calibrate([torch.randn(9, other.width)], None))
