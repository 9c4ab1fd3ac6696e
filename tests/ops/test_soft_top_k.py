"""Soft top-K: gates sum to the budget, and the gradient is the implicit one, everywhere."""

import math

import pytest
import torch

from autoselect.config import ConfigError
from autoselect.ops import checks
from autoselect.ops.checks import FLOAT_DTYPES
from autoselect.ops.soft_top_k import soft_top_k, soft_top_k_reference

SUM_TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
# Largest difference to the float64 reference: of a gate, and of a gradient times the temperature.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6}

SCORES = {
    "normal": lambda n: torch.randn(2, n, dtype=torch.float64),
    "ties": lambda n: torch.randn(2, n, dtype=torch.float64).round(),
    "equal": lambda n: torch.full((2, n), 1e4, dtype=torch.float64),
    "huge": lambda n: torch.randn(2, n, dtype=torch.float64) * 1e4,
    "two levels": lambda n: torch.where(torch.rand(2, n) > 0.5, 1e4, -1e4).double(),
    "outlier": lambda n: torch.randn(2, n, dtype=torch.float64).index_fill(
        1, torch.tensor([n // 2]), torch.inf
    ),
}


def _budgets(n):
    return sorted({1, max(1, n // 9), max(1, n - 1), n})


def _gates_and_gradient(op, scores, k, temperature, mask, upstream):
    scores = scores.clone().requires_grad_()
    gates = op(scores, k, temperature, mask)
    gates.backward(upstream)
    return gates.detach(), scores.grad


def _check_case(scores, k, temperature, mask, device):
    dtype = scores.dtype
    upstream = torch.randn_like(scores)
    on_device = None if mask is None else mask.to(device)
    gates, grad = _gates_and_gradient(
        soft_top_k, scores.to(device), k, temperature, on_device, upstream.to(device)
    )
    expected, expected_grad = _gates_and_gradient(
        soft_top_k_reference, scores.double(), k, temperature, mask, upstream.double()
    )
    valid = torch.full(scores.shape[:1], scores.shape[1]) if mask is None else mask.sum(-1)
    excess = gates.cpu().double().sum(-1) - valid.clamp(max=k)
    assert (excess.abs() <= SUM_TOLERANCE[dtype] * k).all()
    assert ((gates >= 0) & (gates <= 1)).all()
    assert grad.isfinite().all()
    assert (gates.cpu() - expected).abs().max() <= TOLERANCE[dtype]
    assert (grad.cpu() - expected_grad).abs().max() * temperature <= TOLERANCE[dtype]
    if mask is not None:
        assert (gates.cpu()[~mask] == 0).all() and (grad.cpu()[~mask] == 0).all()


@pytest.mark.parametrize("kind", SCORES)
@pytest.mark.parametrize("n", [1, 2, 63, 576, pytest.param(2880, marks=pytest.mark.slow)])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_agrees_with_the_float64_reference(kind, n, dtype, device):
    torch.manual_seed(n)
    scores = SCORES[kind](n).to(dtype)
    for temperature in (1e-3, 0.3, 10.0):
        for k in _budgets(n):
            _check_case(scores, k, temperature, None, device)
            _check_case(scores, k, temperature, torch.rand(2, n) > 0.4, device)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_agrees_at_16384_tokens(dtype, device):
    torch.manual_seed(0)
    for temperature in (1e-3, 10.0):
        _check_case(torch.randn(1, 16384).to(dtype), 16384 // 9, temperature, None, device)


def test_gates_and_gradient_by_hand(device):
    """sigmoid(ln 3) = 3/4 and sigmoid(ln 4) = 4/5: these four gates sum to 2 at threshold 5."""
    logits = torch.tensor([[math.log(3), -math.log(3), math.log(4), -math.log(4)]])
    temperature = 0.1
    scores = (5 + temperature * logits.double()).to(device).requires_grad_()
    gates = soft_top_k(scores, 2, temperature)
    expected = torch.tensor([[0.75, 0.25, 0.8, 0.2]], dtype=torch.float64)
    torch.testing.assert_close(gates.cpu(), expected, rtol=0, atol=1e-7)

    gates[0, 0].backward()
    slope = torch.tensor([3 / 16, 3 / 16, 4 / 25, 4 / 25], dtype=torch.float64)
    weight = slope / slope.sum()
    expected_grad = slope[0] * (torch.tensor([1.0, 0, 0, 0]) - weight) / temperature
    torch.testing.assert_close(scores.grad[0].cpu(), expected_grad, rtol=0, atol=1e-6)


def test_budget_of_all_tokens_keeps_all_exactly(device):
    scores = torch.randn(3, 9, device=device, requires_grad=True)
    gates = soft_top_k(scores, 9, 0.1)
    gates.sum().backward()
    assert (gates == 1).all() and (scores.grad == 0).all()


def test_each_row_may_have_its_own_budget(device):
    scores = torch.randn(4, 20, device=device)
    budgets = torch.tensor([1, 5, 19, 20], device=device)
    gates = soft_top_k(scores, budgets, 0.3)
    torch.testing.assert_close(gates.sum(-1), budgets.float(), rtol=1e-5, atol=0)
    for row, k in enumerate(budgets.tolist()):
        torch.testing.assert_close(gates[row], soft_top_k(scores[row : row + 1], k, 0.3)[0])


def test_rows_with_one_and_no_valid_token(device):
    scores = torch.randn(2, 5, device=device, requires_grad=True)
    mask = torch.zeros(2, 5, dtype=torch.bool, device=device)
    mask[0, 3] = True
    gates = soft_top_k(scores, 2, 0.5, mask)
    gates.sum().backward()
    assert gates[0].tolist() == [0, 0, 0, 1, 0] and gates[1].tolist() == [0] * 5
    assert (scores.grad == 0).all()


def test_padded_scores_may_be_anything(device):
    scores = torch.randn(2, 6, device=device)
    mask = torch.tensor([[1, 1, 1, 1, 0, 0]] * 2, dtype=torch.bool, device=device)
    padded = scores.masked_fill(~mask, torch.nan)
    for op in (soft_top_k, soft_top_k_reference):
        gates = op(padded, 2, 0.5, mask)
        torch.testing.assert_close(gates[:, :4], soft_top_k(scores[:, :4].contiguous(), 2, 0.5))


@pytest.mark.parametrize("op", [soft_top_k, soft_top_k_reference])
@pytest.mark.parametrize("junk", [math.nan, math.inf])
def test_gradients_of_padded_gates_do_not_count(op, junk, device):
    """The entropy of the gates has such ones where a gate is 0."""
    torch.manual_seed(0)
    scores, upstream = torch.randn(2, 6, device=device), torch.randn(2, 6, device=device)
    mask = torch.tensor([[1, 1, 1, 1, 0, 0], [1] * 6], dtype=torch.bool, device=device)
    _, expected = _gates_and_gradient(op, scores, 2, 0.5, mask, upstream)
    upstream = upstream.masked_fill(~mask, junk)
    assert torch.equal(_gates_and_gradient(op, scores, 2, 0.5, mask, upstream)[1], expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_scores_get_float32_gates(dtype, device):
    scores = torch.randn(2, 63, device=device).to(dtype).requires_grad_()
    gates = soft_top_k(scores, 7, 0.2)
    gates.pow(2).sum().backward()
    assert gates.dtype == torch.float32 and scores.grad.dtype == dtype
    torch.testing.assert_close(gates, soft_top_k(scores.float(), 7, 0.2), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_the_largest_scores_of_a_dtype_are_those_of_the_reference(dtype, k, device):
    largest = torch.finfo(dtype).max
    rows = [
        [largest, 0.9 * largest, 0.0, -largest, -torch.inf],
        [torch.inf, largest, 1.0, 0.0, -1.0],
        [torch.inf, torch.inf, torch.inf, -torch.inf, -torch.inf],
        [65504.0, 61440.0, 60416.0, -61440.0, -65504.0],
    ]
    scores = torch.tensor(rows, dtype=torch.float64).to(device, dtype)
    for temperature in (1e-3, 1.0, 1e3):
        gates = soft_top_k(scores, k, temperature)
        torch.testing.assert_close(gates.sum(-1).cpu(), torch.full((4,), k).to(gates.dtype))
        expected = soft_top_k_reference(scores, k, temperature)
        torch.testing.assert_close(gates, expected, rtol=0, atol=TOLERANCE[gates.dtype])


@pytest.mark.parametrize("temperature", [1e-30, 1e-20, 1e20, 1e30])
@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
@pytest.mark.parametrize("kind", ["normal", "ties", "equal", "outlier"])
def test_every_temperature_allowed_gives_the_budget(temperature, dtype, kind, device):
    torch.manual_seed(0)
    scores = SCORES[kind](63).to(device, dtype).requires_grad_()
    for k in _budgets(63):
        gates = soft_top_k(scores, k, temperature)
        torch.testing.assert_close(gates.sum(-1).cpu(), torch.full((2,), k).to(gates.dtype))
        (grad,) = torch.autograd.grad(gates.square().sum(), scores)
        # Rounding divided by such a temperature may exceed 65504, the largest float16.
        assert not grad.isnan().any()
        assert dtype == torch.float16 or (grad * temperature).isfinite().all()


@pytest.mark.parametrize("op", [soft_top_k, soft_top_k_reference])
def test_the_default_device_does_not_matter(op, device):
    scores = torch.randn(2, 9, device=device)
    expected = op(scores, 3, 0.5)
    with torch.device("meta"):
        assert torch.equal(op(scores, 3, 0.5), expected)
        with pytest.raises(ConfigError, match="temperature=0"):
            op(scores, 3, 0)


@pytest.mark.parametrize("op", [soft_top_k, soft_top_k_reference])
@pytest.mark.parametrize("k", [2, 5])
def test_a_nan_score_shows_in_its_row_where_it_is_not_refused(op, k, device, monkeypatch):
    if device.type == "cpu":
        if op is soft_top_k:
            pytest.skip("the CPU kernel refuses NaN")
        monkeypatch.setattr(checks, "values_are_checkable", lambda tensor: False)  # as on a GPU
    scores = torch.randn(2, 6, device=device)
    scores[1, 3] = torch.nan
    mask = torch.arange(6, device=device).expand(2, 6) < 5
    gates, grad = _gates_and_gradient(op, scores, k, 0.5, mask, torch.ones_like(scores))
    assert gates[0].isfinite().all() and grad[0].isfinite().all()
    assert gates[1, :5].isnan().all() and grad[1, :5].isnan().all() and gates[1, 5] == 0


def test_gates_that_are_nan_have_such_gradients(native, device):
    logits = torch.randn(2, 9, device=device)
    logits[1] = torch.nan
    temperature = torch.tensor(0.5, dtype=torch.float64)
    grad = torch.ops.autoselect.soft_top_k_backward(torch.randn_like(logits), logits, temperature)
    assert grad[0].isfinite().all() and grad[1].isnan().all()


def test_strided_scores(device):
    base = torch.randn(63, 8, device=device, dtype=torch.float64)
    for strided in (base.t(), base[::2, ::3].t(), base[:, :1].t().expand(3, 63)):
        direct = soft_top_k(strided, 5, 0.3)
        torch.testing.assert_close(direct, soft_top_k(strided.contiguous(), 5, 0.3), rtol=0, atol=0)


def test_gradcheck(device):
    torch.manual_seed(0)
    scores = torch.randn(2, 7, dtype=torch.float64, device=device, requires_grad=True)
    mask = torch.rand(2, 7, device=device) > 0.3
    for op in (soft_top_k, soft_top_k_reference):
        assert torch.autograd.gradcheck(lambda r, op=op: op(r, 2, 0.4, mask), scores)


def test_empty_batch(device):
    scores = torch.zeros(0, 5, device=device, requires_grad=True)
    gates = soft_top_k(scores, 2, 0.5)
    gates.sum().backward()
    assert gates.shape == (0, 5) and scores.grad.shape == (0, 5)
