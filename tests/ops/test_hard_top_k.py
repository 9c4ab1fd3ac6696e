"""Hard top-K: the k largest, in image order, ties to the lowest position."""

import pytest
import torch

from autoselect.ops import checks
from autoselect.ops.hard_top_k import (
    hard_top_k,
    hard_top_k_reference,
    select_tokens,
    select_tokens_reference,
)


@pytest.mark.parametrize("op", [hard_top_k, hard_top_k_reference])
def test_by_hand(op, device):
    scores = torch.tensor([[1.0, 3, 2, 3, 3], [0.0, -0.0, -1, 0, -2]], device=device)
    assert op(scores, 2).tolist() == [[1, 3], [0, 1]]
    assert op(scores, 4).tolist() == [[1, 2, 3, 4], [0, 1, 2, 3]]
    mask = torch.tensor([[1, 0, 1, 0, 0], [0, 0, 0, 0, 0]], dtype=torch.bool, device=device)
    assert op(scores, 3, mask).tolist() == [[0, 2, -1], [-1, -1, -1]]


@pytest.mark.parametrize("op", [hard_top_k, hard_top_k_reference])
def test_nan_ranks_below_every_number(op, device, monkeypatch):
    if device.type == "cpu":
        if op is hard_top_k:
            pytest.skip("the CPU kernel refuses NaN")
        monkeypatch.setattr(checks, "values_are_checkable", lambda tensor: False)  # as on a GPU
    nan, low = torch.nan, -torch.inf
    scores = torch.tensor([[nan, 1.0, nan, low, 2.0], [nan, nan, low, nan, nan]], device=device)
    assert op(scores, 2).tolist() == [[1, 4], [0, 2]]
    assert op(scores, 4).tolist() == [[0, 1, 3, 4], [0, 1, 2, 3]]
    mask = torch.tensor([[1, 0, 1, 1, 0], [0, 1, 0, 0, 1]], dtype=torch.bool, device=device)
    assert op(scores, 2, mask).tolist() == [[0, 3], [1, 4]]
    assert op(scores, 4, mask).tolist() == [[0, 2, 3, -1], [1, 4, -1, -1]]


@pytest.mark.parametrize("n", [1, 2, 63, 576, 2880, 16384])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_agrees_with_the_reference(n, dtype, device):
    torch.manual_seed(n)
    scores = torch.randn(3, n).to(dtype)
    mask = torch.rand(3, n) > 0.5
    for k in {1, max(1, n // 9), max(1, n - 1), n}:
        assert torch.equal(hard_top_k(scores.to(device), k).cpu(), hard_top_k_reference(scores, k))
        native = hard_top_k(scores.to(device), k, mask.to(device)).cpu()
        assert torch.equal(native, hard_top_k_reference(scores, k, mask))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("width", [1, 7, 64, 1024])
def test_selected_tokens_and_their_gradient(dtype, width, device):
    torch.manual_seed(width)
    tokens = torch.randn(2, 63, width).to(device, dtype)
    scores = torch.randn(2, 63, device=device)
    mask = torch.rand(2, 63, device=device) > 0.9
    for k, valid in ((7, None), (30, mask), (63, None)):
        results = []
        for op in (select_tokens, select_tokens_reference):
            leaf = tokens.clone().requires_grad_()
            kept, indices = op(leaf, scores, k, valid)
            upstream = torch.arange(kept.numel(), device=device).view_as(kept).to(dtype)
            kept.backward(upstream)
            results.append((kept.detach(), indices, leaf.grad))
        for native, reference in zip(*results, strict=True):
            assert torch.equal(native, reference)


def test_selecting_all_tokens_is_the_identity(device):
    tokens = torch.randn(2, 9, 5, device=device)
    kept, indices = select_tokens(tokens, torch.randn(2, 9, device=device), 9)
    assert torch.equal(kept, tokens)
    assert indices.tolist() == [list(range(9))] * 2


def test_strided_inputs(device):
    tokens = torch.randn(6, 2, 10, device=device).transpose(0, 1)[..., ::2]
    scores = torch.randn(6, 4, device=device).t()[::2]
    kept, indices = select_tokens(tokens, scores, 3)
    expected, expected_indices = select_tokens_reference(tokens, scores, 3)
    assert torch.equal(kept, expected) and torch.equal(indices, expected_indices)


def test_empty_batch(device):
    kept, indices = select_tokens(
        torch.zeros(0, 5, 4, device=device), torch.zeros(0, 5, device=device), 2
    )
    assert kept.shape == (0, 2, 4) and indices.shape == (0, 2)
