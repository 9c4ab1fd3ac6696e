"""The order of maximal marginal relevance: its rule, ties, padding, devices, errors."""

import pytest
import torch

from autoselect.config import ConfigError
from autoselect.ops import checks
from autoselect.ops.diverse_top_k import LARGEST_SCORE
from autoselect.ops.marginal_order import marginal_order, marginal_order_reference

BOTH = pytest.mark.parametrize("op", [marginal_order, marginal_order_reference])


def inputs(count, device):
    generator = torch.Generator().manual_seed(count)
    scores = torch.randn(3, count, generator=generator)
    likeness = torch.rand(3, count, count, generator=generator) * 2 - 1
    mask = torch.rand(3, count, generator=generator) > 0.4
    mask[2, 1:] = False
    return scores.to(device), likeness.to(device), mask.to(device)


@pytest.mark.parametrize("count, k", [(1, 1), (63, 63), (300, 40), (2100, 12), (4097, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_agrees_with_the_reference(count, k, dtype, device):
    scores, likeness, mask = inputs(count, device)
    scores = scores.to(dtype)
    for valid in (None, mask):
        expected = marginal_order_reference(scores, likeness, k, 0.7, valid)
        assert torch.equal(marginal_order(scores, likeness, k, 0.7, valid), expected)


@BOTH
def test_without_weight_it_is_the_order_of_the_scores(op, device):
    scores, likeness, _ = inputs(40, device)
    assert torch.equal(op(scores, likeness, 9, 0.0), scores.topk(9).indices)
    likeness[:, :, ::2] = torch.inf
    assert torch.equal(op(scores, likeness, 9, 0.0), scores.topk(9).indices)


@BOTH
def test_the_likest_are_taken_last(op, device):
    """Tokens 0 and 1 are alike, 2 is like neither."""
    likeness = torch.tensor([[[1.0, 0.9, 0.0], [0.9, 1.0, 0.0], [0.0, 0.0, 1.0]]], device=device)
    scores = torch.tensor([[3.0, 2.0, 1.5]], device=device)
    assert op(scores, likeness, 3, 1.0).tolist() == [[0, 2, 1]]
    assert op(scores, likeness, 3, 0.1).tolist() == [[0, 1, 2]]


@BOTH
def test_ties_go_to_the_lowest_position_and_padding_is_never_taken(op, device):
    scores, likeness = torch.zeros(2, 6, device=device), torch.zeros(2, 6, 6, device=device)
    mask = torch.tensor([[1, 0, 1, 1, 1, 0], [0, 0, 0, 0, 0, 0]], dtype=torch.bool, device=device)
    assert op(scores, likeness, 3, 1.0, mask).tolist() == [[0, 2, 3], [-1, -1, -1]]
    assert op(scores, likeness, 5, 1.0, mask)[0].tolist() == [0, 2, 3, 4, -1]


@BOTH
@pytest.mark.parametrize("least", [-8.0, -1e8, -torch.inf])
def test_a_token_far_below_does_not_blur_the_others(op, least, device):
    scores = torch.tensor([[1.0, 1.0000001, 0.5, least]], device=device)
    likeness = torch.zeros(1, 4, 4, device=device)
    assert op(scores, likeness, 4, 0.0).tolist() == [[1, 0, 2, 3]]
    assert op(scores, likeness, 3, 0.5).tolist() == [[1, 0, 2]]


@BOTH
def test_likenesses_that_are_not_numbers_do_not_count(op, device):
    scores, likeness, _ = inputs(40, device)
    likeness[0, 7] = likeness[0, :, 7] = torch.nan
    numbers = likeness.nan_to_num(-1.0)
    assert torch.equal(op(scores, likeness, 20, 0.7), op(scores, numbers, 20, 0.7))


@BOTH
def test_tokens_are_taken_also_if_no_gain_is_finite(op, device):
    scores, likeness, mask = inputs(7, device)
    free = mask.sum(-1, keepdim=True)
    for value, weight in ((torch.inf, 0.5), (10.0, LARGEST_SCORE)):
        order = op(scores, torch.full_like(likeness, value), 7, weight, mask)
        assert torch.equal(order >= 0, torch.arange(7, device=device) < free)
        rest = order[:, 1:].masked_fill(order[:, 1:] < 0, 7)
        assert torch.equal(rest, rest.sort(-1).values)  # ties


@BOTH
def test_nan_ranks_below_every_number_where_it_is_not_refused(op, device, monkeypatch):
    if device.type == "cpu":
        if op is marginal_order:
            pytest.skip("the CPU kernel refuses NaN")
        monkeypatch.setattr(checks, "values_are_checkable", lambda tensor: False)  # as on a GPU
    scores = torch.tensor([[torch.nan, 1.0, -1e30, 2.0]], device=device)
    assert op(scores, torch.zeros(1, 4, 4, device=device), 4, 0.5).tolist() == [[3, 1, 2, 0]]


@BOTH
@pytest.mark.parametrize("weight", [1e30, LARGEST_SCORE])
def test_a_huge_weight_leaves_the_scores_out(op, weight, device):
    scores, likeness, _ = inputs(40, device)
    first = scores[0].argmax()
    order = op(scores, likeness, 2, weight)[0]
    likeness[0, first, first] = 2.0
    assert order.tolist() == [int(first), int(likeness[0, first].argmin())]


@BOTH
def test_bad_arguments_are_refused(op):
    scores, likeness = torch.zeros(2, 6), torch.zeros(2, 6, 6)
    for weight in (-1, 1e39, torch.inf, torch.nan):
        with pytest.raises(ConfigError, match="weight=.* must lie in 0..8e"):
            op(scores, likeness, 3, weight)
    with pytest.raises(ConfigError, match="likeness"):
        op(scores, likeness.long(), 3, 1.0)
    with pytest.raises(ConfigError, match="likeness"):
        op(scores, likeness[:, :5], 3, 1.0)
    with pytest.raises(ConfigError, match="7"):
        op(scores, likeness, 7, 1.0)
