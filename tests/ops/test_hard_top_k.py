"""Hard top-K: the k largest, in image order, ties to the lowest position."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autoselect.ops.hard_top_k import (
    hard_top_k,
    hard_top_k_reference,
    select_tokens,
    select_tokens_reference,
)


def _by_sorting(row, valid, k):
    """Plain Python: sort by falling score, then by position."""
    ranked = sorted((i for i in range(len(row)) if valid[i]), key=lambda i: (-row[i], i))
    kept = sorted(ranked[:k])
    return kept + [-1] * (k - len(kept))


@pytest.mark.parametrize("op", [hard_top_k, hard_top_k_reference])
def test_by_hand(op, device):
    scores = torch.tensor([[1.0, 3, 2, 3, 3], [0.0, -0.0, -1, 0, -2]], device=device)
    assert op(scores, 2).tolist() == [[1, 3], [0, 1]]
    assert op(scores, 4).tolist() == [[1, 2, 3, 4], [0, 1, 2, 3]]
    mask = torch.tensor([[1, 0, 1, 0, 0], [0, 0, 0, 0, 0]], dtype=torch.bool, device=device)
    assert op(scores, 3, mask).tolist() == [[0, 2, -1], [-1, -1, -1]]


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_any_row_equals_plain_sorting(data):
    n = data.draw(st.integers(1, 60))
    values = st.sampled_from([-1.0, 0.0, 2.0, float("inf"), float("-inf")]) | st.floats(
        -100, 100, width=16
    )
    row = data.draw(st.lists(values, min_size=n, max_size=n))
    valid = data.draw(st.lists(st.booleans(), min_size=n, max_size=n))
    k = data.draw(st.integers(1, n))
    dtype = data.draw(st.sampled_from([torch.float32, torch.float64, torch.float16]))
    scores, mask = torch.tensor([row], dtype=dtype), torch.tensor([valid])
    expected = _by_sorting(scores[0].tolist(), valid, k)
    for op in (hard_top_k, hard_top_k_reference):
        assert op(scores, k, mask)[0].tolist() == expected


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
