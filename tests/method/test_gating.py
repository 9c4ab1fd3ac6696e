"""All gates: their formulas, and a gradient to every score that can change the result."""

from typing import get_args

import pytest
import torch

from autoselect.config import ConfigError, GateConfig, GateKind
from autoselect.method.gating import GateSetting, gate_tokens, gumbel_noise
from autoselect.method.statistics import calibrate
from autoselect.ops.noise import NoiseKey
from autoselect.ops.noise_gate import noise_gate
from autoselect.ops.soft_top_k import soft_top_k

BUDGET, TEMPERATURE = 3, 0.3


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(4, 12, 16, generator=generator)
    scores = torch.randn(4, 12, generator=generator)
    statistics = calibrate([tokens.flatten(0, 1)], 4)
    return tokens, scores.requires_grad_(), statistics, NoiseKey(1, 2, torch.arange(4))


def gated(kind, inputs, temperature=TEMPERATURE, mask=None):
    tokens, scores, statistics, key = inputs
    setting = GateSetting(BUDGET, temperature, key.seed, key.step)
    return gate_tokens(kind, tokens, scores, setting, statistics, key.sample_ids, mask)


@pytest.mark.parametrize("kind", get_args(GateKind))
def test_every_gate_keeps_the_budget_and_its_formula(kind, inputs):
    tokens, scores, statistics, key = inputs
    result = gated(kind, inputs)
    if kind == "gumbel":
        scores = scores + TEMPERATURE * gumbel_noise(scores, key)
    gates = soft_top_k(scores, BUDGET, TEMPERATURE)[..., None]
    filler = noise_gate(tokens, torch.zeros(4, 12), statistics, key)
    centred = tokens - statistics.mean
    best = torch.zeros(4, 12, 1).scatter(1, scores.topk(BUDGET).indices[..., None], 1.0)
    expected = {
        "noise": statistics.mean
        + gates.sqrt() * centred
        + (1 - gates).sqrt() * (filler - statistics.mean),
        "zero_fill": gates.sqrt() * tokens,
        "multiplicative": gates * tokens,
        "straight_through": best * tokens + (1 - best) * filler,
        "gumbel": best * tokens + (1 - best) * filler,
        "none": tokens,
    }[kind]
    torch.testing.assert_close(result.tokens, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(result.gates.sum(-1), torch.full((4,), float(BUDGET)))


@pytest.mark.parametrize("kind", [k for k in get_args(GateKind) if k != "none"])
@pytest.mark.parametrize("temperature", [0.3, 1e-3])
def test_scores_learn_and_stay_finite(kind, temperature, inputs):
    scores = inputs[1]
    weights = torch.randn(4, 12, 16, generator=torch.Generator().manual_seed(1))
    (gated(kind, inputs, temperature).tokens * weights).sum().backward()
    assert bool(torch.isfinite(scores.grad).all())
    if temperature == 0.3:
        assert float(scores.grad.abs().min()) > 0


@pytest.mark.parametrize("kind", get_args(GateKind))
def test_padding_is_never_kept(kind, inputs):
    mask = torch.ones(4, 12, dtype=torch.bool)
    mask[1, :10] = False  # two real tokens, fewer than the budget, behind the padding
    result = gated(kind, inputs, mask=mask)
    tokens = inputs[0]
    assert torch.equal(result.gates[1], mask[1].float())
    torch.testing.assert_close(result.tokens[1, 10:], tokens[1, 10:])


def test_gumbel_noise_is_a_pure_function_of_seed_step_image_and_token():
    """So it is the same on any rank, in any batch, and after a resume."""
    drawn = gumbel_noise(torch.zeros(6, 33), NoiseKey(3, 4, torch.arange(6)))
    for images in ([4, 1], [5]):
        part = gumbel_noise(torch.zeros(len(images), 20), NoiseKey(3, 4, torch.tensor(images)))
        assert torch.equal(part, drawn[images, :20])
    for seed, step, first in ((9, 4, 0), (3, 5, 0), (3, 4, 1)):
        other = gumbel_noise(
            torch.zeros(6, 33), NoiseKey(seed, step, torch.arange(first, first + 6))
        )
        assert not torch.equal(other, drawn)


def test_gumbel_noise_keeps_a_token_as_often_as_its_share_of_the_softmax():
    scores = torch.tensor([[1.0, 0.0, -1.0, 2.0]]).log_softmax(dim=-1)
    key = NoiseKey(0, 3, torch.arange(20000))
    best = (scores + gumbel_noise(scores.expand(20000, -1), key)).argmax(dim=-1)
    shares = best.bincount(minlength=4) / len(best)
    torch.testing.assert_close(shares, scores[0].exp(), atol=0.015, rtol=0)


def test_hard_gates_make_the_fillers_meet(inputs):
    """At a low temperature, straight-through and the noise gate give the same tokens."""
    torch.testing.assert_close(
        gated("straight_through", inputs, 1e-4).tokens,
        gated("noise", inputs, 1e-4).tokens,
        atol=1e-4,
        rtol=1e-4,
    )


def test_a_gate_that_gates_nothing_is_refused():
    with pytest.raises(ConfigError, match="gate.kind=none .* gate.soft_removal=true"):
        GateConfig(kind="none", soft_removal=False)
    GateConfig(kind="none", soft_removal=True)


@pytest.mark.parametrize("groups", [1, 2])
def test_isotropic_noise_is_mixed_with_tokens_normalised_over_their_channels(inputs, groups):
    """`groups` > 1: deepstack features follow each token's own channels."""
    tokens, scores, channel, key = inputs
    width = 16 // groups
    statistics = channel.isotropic(width)
    result = gated("noise", (tokens, scores, statistics, key))
    gates = soft_top_k(scores, BUDGET, TEMPERATURE)[..., None]
    parts = tokens.unflatten(-1, (groups, width))
    centred = parts - parts.mean(-1, keepdim=True)
    unit = (centred / (parts.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()).flatten(-2)
    every = tokens.flatten(0, 1).unflatten(-1, (groups, width))
    for group in range(groups):
        own = slice(group * width, (group + 1) * width)
        torch.testing.assert_close(statistics.mean[own], every[:, group].mean().expand(width))
        deviation = every[:, group].std(unbiased=False).expand(width)
        torch.testing.assert_close(statistics.std[own], deviation, atol=1e-4, rtol=1e-4)
    pure = gated("noise", (tokens * 0, scores, statistics, key)).tokens
    signal = result.tokens - pure
    expected = gates.sqrt() * unit * statistics.std
    torch.testing.assert_close(signal, expected, atol=1e-4, rtol=1e-3)


def test_an_isotropic_gate_keeps_the_variance_of_every_token_and_leaks_nothing_when_closed(inputs):
    tokens, _, channel, key = inputs
    wide = torch.randn(2, 12, 4096, generator=torch.Generator().manual_seed(3)) * 7 + 2
    statistics = calibrate([wide.flatten(0, 1)], None).isotropic(4096)
    key = NoiseKey(1, 2, torch.arange(2))
    for share in (0.0, 0.3, 1.0):
        mixed = noise_gate(statistics.fitted(wide), torch.full((2, 12), share), statistics, key)
        torch.testing.assert_close(mixed.std(-1), torch.full((2, 12), 7.0), atol=0.4, rtol=0)
    closed = [
        noise_gate(statistics.fitted(x), torch.zeros(2, 12), statistics, key)
        for x in (wide, wide.flip(0) * 3)
    ]
    assert torch.equal(*closed)


def test_statistics_of_isotropic_noise_are_stored_with_their_normalisation(inputs):
    statistics = inputs[2].isotropic(16)
    again = type(statistics).from_tensors(statistics.tensors())
    assert again.normalised == 16
    assert torch.equal(again.fitted(inputs[0]), statistics.fitted(inputs[0]))


def test_isotropic_noise_is_refused_for_a_gate_without_noise():
    with pytest.raises(ConfigError, match=r"gate.noise=isotropic .* gate.kind=zero_fill"):
        GateConfig(noise="isotropic", kind="zero_fill")
