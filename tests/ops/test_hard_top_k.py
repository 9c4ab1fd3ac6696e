"""Hard top-K: the k largest, in image order, ties to the lowest position."""

import pytest
import torch

from autoselect.config import ConfigError
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


@pytest.mark.parametrize("masked", [False, True])
def test_a_budget_per_row_is_that_of_the_rows_alone(masked, device):
    torch.manual_seed(0)
    scores = torch.randn(4, 63, device=device).mul(2).round()
    tokens = torch.randn(4, 63, 5, device=device)
    mask = torch.rand(4, 63, device=device) > 0.5 if masked else None
    budgets = torch.tensor([1, 40, 7, 20], device=device)
    kept, positions = select_tokens(tokens, scores, budgets, mask, width=40)
    assert torch.equal(hard_top_k(scores, budgets, mask, width=40), positions)
    assert torch.equal(hard_top_k_reference(scores, budgets, mask, width=40), positions)
    for row, k in enumerate(budgets.tolist()):
        one = None if mask is None else mask[row : row + 1]
        alone = select_tokens(tokens[row : row + 1], scores[row : row + 1], k, one)
        assert torch.equal(positions[row, :k], alone[1][0])
        assert torch.equal(kept[row, :k], alone[0][0])
        assert (positions[row, k:] == -1).all() and (kept[row, k:] == 0).all()


@pytest.mark.parametrize("op", [hard_top_k, hard_top_k_reference])
def test_the_width_of_budgets_per_row(op):
    scores, budgets = torch.randn(2, 9), torch.tensor([2, 5])
    assert op(scores, budgets).shape == (2, 5)
    assert torch.equal(op(scores, budgets, width=7)[:, :5], op(scores, budgets))
    for k, width, words in (
        (budgets, 4, "width=4 is below the largest k=5"),
        (budgets, 10, "k=10 exceeds the 9 tokens"),
        (torch.tensor([0, 1]), 4, r"k=\[0, 1\] leaves the range"),
        (3, 4, "width=4 does not fit k=3"),
    ):
        with pytest.raises(ConfigError, match=words):
            op(scores, k, width=width)


def test_a_width_is_demanded_if_reading_it_would_wait_for_the_device():
    scores, budgets = torch.zeros(2, 9, device="meta"), torch.zeros(2, device="meta").long()
    with pytest.raises(ConfigError, match="width is missing"):
        hard_top_k(scores, budgets)
    assert hard_top_k(scores, budgets, width=4).shape == (2, 4)


def test_only_kept_tokens_of_a_strided_view_are_copied(native):
    """The view is far too large to be copied: its rows repeat one row of memory."""
    row = torch.randn(1, 1, 4096)
    tokens = row.expand(1000, 1_000_000, 4096)
    scores = torch.zeros(1, 1).expand(1000, 1_000_000)[:2]
    kept, positions = select_tokens(tokens[:2], scores, 3)
    assert torch.equal(kept, row.expand(2, 3, 4096)) and positions.tolist() == [[0, 1, 2]] * 2
