"""Properties of the operators on inputs that hypothesis finds; skipped if it is missing."""

import math
from unittest import mock

import pytest
import torch

from autoselect.ops import checks
from autoselect.ops._native import EXTENSION
from autoselect.ops.hard_top_k import hard_top_k, hard_top_k_reference
from autoselect.ops.noise import NoiseKey, NoiseStatistics
from autoselect.ops.noise_gate import soft_top_k_noise_gate
from autoselect.ops.philox import philox4x32
from autoselect.ops.soft_top_k import soft_top_k

hypothesis = pytest.importorskip("hypothesis")
st = pytest.importorskip("hypothesis.strategies")


@hypothesis.settings(max_examples=60)
@hypothesis.given(st.data())
def test_any_scores_give_gates_that_sum_to_the_budget(data):
    n = data.draw(st.integers(1, 40))
    values = st.floats(-1e5, 1e5, width=32) | st.sampled_from([0.0, 1e30, -1e30, 3.4e38])
    row = data.draw(st.lists(values, min_size=n, max_size=n))
    k = data.draw(st.integers(1, n))
    temperature = data.draw(st.sampled_from([1e-3, 0.05, 1.0, 10.0]))
    scores = torch.tensor([row], dtype=torch.float32, requires_grad=True)
    gates = soft_top_k(scores, k, temperature)
    (gates * torch.linspace(-1, 1, n)).sum().backward()
    assert abs(float(gates.detach().double().sum()) - k) <= 1e-5 * k
    assert scores.grad.isfinite().all()
    order = scores[0].argsort()
    assert (gates[0][order].diff() >= 0).all(), "a larger score has no smaller gate"


@hypothesis.settings(max_examples=40)
@hypothesis.given(st.data())
def test_any_shape_and_scale_stays_finite(data):
    batch, n, width = (data.draw(st.integers(1, top)) for top in (3, 20, 40))
    torch.manual_seed(data.draw(st.integers(0, 1000)))
    dtype = data.draw(st.sampled_from(checks.FLOAT_DTYPES))
    tokens = torch.randn(batch, n, width).to(dtype).requires_grad_()
    scores = torch.randn(batch, n) * data.draw(st.sampled_from([0.0, 1.0, 1e4, 1e30]))
    scores.requires_grad_()
    k = torch.tensor(data.draw(st.lists(st.integers(1, n), min_size=batch, max_size=batch)))
    mask = torch.rand(batch, n) > data.draw(st.sampled_from([0.0, 0.5, 0.95]))
    rank = data.draw(st.integers(0, 6))
    mean, std = torch.randn(width), torch.rand(width) + 0.5
    factor = torch.randn(rank, width) * 0.3 if rank else None
    statistics = NoiseStatistics(mean, std, factor)
    key = NoiseKey(data.draw(st.integers(0, 2**63 - 1)), 3, torch.arange(batch))
    temperature = data.draw(st.sampled_from([1e-3, 0.5, 10.0]))
    gated, gates = soft_top_k_noise_gate(tokens, scores, k, temperature, statistics, key, mask)
    (gated.float().square().sum() + gates.square().sum()).backward()
    for tensor in (gated, gates, tokens.grad, scores.grad):
        assert tensor.isfinite().all()
    kept = mask.sum(-1).clamp(max=k)
    torch.testing.assert_close(gates.sum(-1), kept.float(), rtol=1e-5, atol=1e-5)


def _by_sorting(row, valid, k):
    """Sort by falling score, NaN last, then by position, in plain Python."""
    kept = [i for i in range(len(row)) if valid[i]]
    ranked = sorted(kept, key=lambda i: (1, 0, i) if math.isnan(row[i]) else (0, -row[i], i))
    kept = sorted(ranked[:k])
    return kept + [-1] * (k - len(kept))


@hypothesis.settings(max_examples=80)
@hypothesis.given(st.data())
def test_any_row_equals_plain_sorting(data):
    n = data.draw(st.integers(1, 60))
    special = [-1.0, 0.0, 2.0, math.inf, -math.inf, math.nan]
    values = st.sampled_from(special) | st.floats(-100, 100, width=16)
    row = data.draw(st.lists(values, min_size=n, max_size=n))
    valid = data.draw(st.lists(st.booleans(), min_size=n, max_size=n))
    k = data.draw(st.integers(1, n))
    dtype = data.draw(st.sampled_from([torch.float32, torch.float64, torch.float16]))
    scores, mask = torch.tensor([row], dtype=dtype), torch.tensor([valid])
    expected = _by_sorting(scores[0].tolist(), valid, k)
    with mock.patch.object(checks, "values_are_checkable", lambda tensor: False):  # as on a GPU
        assert hard_top_k_reference(scores, k, mask)[0].tolist() == expected
    if not scores[mask].isnan().any():
        assert hard_top_k(scores, k, mask)[0].tolist() == expected


@hypothesis.settings(max_examples=50)
@hypothesis.given(st.lists(st.integers(0, 0xFFFFFFFF), min_size=6, max_size=6))
def test_native_and_reference_agree_on_any_counter(words):
    if EXTENSION is None:
        pytest.skip("autoselect._C is not built")
    counter, key = (tuple(map(torch.tensor, part)) for part in (words[:4], words[4:]))
    assert EXTENSION.philox4x32(*words) == tuple(map(int, philox4x32(counter, key)))
