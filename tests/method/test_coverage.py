"""Coverage in training: the gate opens what selection with diversity keeps, with exact budget."""

import pytest
import torch

from autoselect.config import ConfigError, GateConfig
from autoselect.method import coverage
from autoselect.method.coverage import covered_scores, likeness_before
from autoselect.ops.diverse_top_k import diverse_top_k
from autoselect.ops.soft_top_k import soft_top_k

K = 5


@pytest.fixture(params=["all pairs", "a row per step"])
def inputs(request, monkeypatch):
    if request.param != "all pairs":
        monkeypatch.setattr(coverage, "MOST_TOKENS", 0)
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(6, 24, generator=generator)
    scores[:, 3], scores[:, 17] = 0.0, 1.0  # selection scales scores to 0..1
    return scores, torch.randn(6, 24, 4, generator=generator)


def opened(scores, tokens, weight, mask=None):
    covered = covered_scores(scores, tokens, K, weight, mask)
    return soft_top_k(covered, K, 1e-6, mask)


@pytest.mark.parametrize("diversity", [0.0, 0.3, 0.6, 0.9])
def test_hard_gates_are_open_at_what_selection_keeps(inputs, diversity):
    scores, tokens = inputs
    gates = opened(scores, tokens, diversity / (1 - diversity))
    kept = diverse_top_k(scores, tokens, K, diversity)
    expected = torch.zeros_like(gates).scatter(1, kept, 1.0)
    torch.testing.assert_close(gates, expected, atol=1e-3, rtol=0)


def test_padding_neither_opens_nor_counts(inputs):
    scores, tokens = inputs
    mask = torch.ones(6, 24, dtype=torch.bool)
    mask[2, 18:] = False
    mask[4, 3:] = False  # fewer real tokens than the budget
    gates = opened(scores, tokens, 1.0, mask)
    alone = opened(scores[2:3, :18], tokens[2:3, :18], 1.0)
    torch.testing.assert_close(gates[2:3, :18], alone)
    assert gates[4].tolist() == [1.0] * 3 + [0.0] * 21


@pytest.mark.parametrize("junk", [torch.nan, torch.inf, 3e38])
def test_padded_tokens_may_be_anything(inputs, junk):
    scores, tokens = inputs
    mask = torch.arange(24) < torch.tensor([[24], [18], [7], [3], [1], [0]])
    for real in (mask, mask.flip(1)):
        expected = likeness_before(scores, tokens, K, 0.7, real)
        spoiled = tokens.masked_fill(~real[..., None], junk)
        assert torch.equal(likeness_before(scores, spoiled, K, 0.7, real), expected)


def test_the_budget_is_exact_and_scores_learn(inputs):
    scores, tokens = inputs
    scores.requires_grad_()
    gates = soft_top_k(covered_scores(scores, tokens, K, 0.7), K, 0.3)
    torch.testing.assert_close(gates.sum(-1), torch.full((6,), float(K)))
    (gates * torch.randn(gates.shape, generator=torch.Generator().manual_seed(1))).sum().backward()
    assert bool(torch.isfinite(scores.grad).all()) and float(scores.grad.abs().min()) > 0


def test_autocast_changes_nothing(inputs):
    expected = likeness_before(*inputs, 9, 0.7)
    with torch.autocast("cpu", torch.bfloat16):
        found = likeness_before(*inputs, 9, 0.7)
    assert found.dtype == torch.float32 and torch.equal(found, expected)


def test_likeness_is_to_tokens_taken_before():
    """Four tokens of mean zero: two alike pairs of opposite directions."""
    tokens = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [-1.0, 0.0]]])
    scores = torch.tensor([[4.0, 3.0, 2.0, 1.0]])
    found = likeness_before(scores, tokens, 3, 5.0)
    # taken: 0 (nothing before it), 2 (opposite to 0), 1 (like 0); 3 is left over, like 2
    assert found.tolist() == [[-1.0, 1.0, -1.0, 1.0]]


def test_a_negative_weight_is_refused():
    with pytest.raises(ConfigError, match="gate.coverage=-1.0 must be 0 or more"):
        GateConfig(coverage=-1.0)


def test_comparing_all_pairs_at_once_changes_nothing(monkeypatch):
    generator = torch.Generator().manual_seed(1)
    scores = torch.randn(3, 90, generator=generator)
    tokens = torch.randn(3, 90, 9, generator=generator)
    mask = torch.rand(3, 90, generator=generator) > 0.3
    mask[2, 11:] = False  # fewer real tokens than the budget
    at_once = likeness_before(scores, tokens, 40, 0.7, mask)
    monkeypatch.setattr(coverage, "MOST_PAIRS", 2 * 90**2)
    assert torch.equal(at_once, likeness_before(scores, tokens, 40, 0.7, mask))
    assert likeness_before(scores, tokens, 40, 0.7).shape == (3, 90)
    monkeypatch.setattr(coverage, "MOST_TOKENS", 0)
    torch.testing.assert_close(at_once, likeness_before(scores, tokens, 40, 0.7, mask))
