"""The noise gate agrees with its reference, is bounded everywhere, and gradients are exact."""

import itertools

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from autoselect.ops._native import EXTENSION
from autoselect.ops.noise import NoiseStatistics
from autoselect.ops.noise_gate import (
    noise_gate,
    noise_gate_reference,
    soft_top_k_noise_gate,
    soft_top_k_noise_gate_reference,
)

# Relative to the largest value of the float64 reference. Normals are float32 for every dtype, and
# differ between implementations by rounding; so float64 tokens agree to float32 rounding.
TOLERANCE = {
    torch.float64: 1e-5,
    torch.float32: 1e-5,
    torch.bfloat16: 8e-3,
    torch.float16: 1e-3,
}
SHARED_ON_GPU = 3
"""How much larger it is on a GPU, where the noise that channels share is rounded as tokens are."""


def _statistics(width, rank=0):
    factor = torch.randn(rank, width) * 0.3 if rank else None
    return NoiseStatistics(torch.randn(width), torch.rand(width) + 0.5, factor)


def _moved(statistics, device=None, dtype=None):
    values = (statistics.mean, statistics.std, statistics.factor)
    return NoiseStatistics(*(v if v is None else v.to(device, dtype) for v in values))


def _close(actual, expected, tolerance):
    scale = expected.abs().max().clamp(min=1e-6)
    difference = (actual.cpu().double() - expected.cpu().double()).abs().max()
    assert difference <= tolerance * scale, f"{difference / scale} of the largest value"


def _run_fused(op, tokens, scores, upstream, arguments):
    tokens, scores = tokens.clone().requires_grad_(), scores.clone().requires_grad_()
    gated, gates = op(tokens, scores, **arguments)
    gated.backward(upstream)
    return gated.detach(), gates.detach(), tokens.grad, scores.grad


def _check_fused(
    shape, k, dtype, device, make_key, *, temperature=0.3, scale=1.0, rank=0, mask=None
):
    batch, n, width = shape
    statistics = _statistics(width, rank)
    tokens, scores = torch.randn(shape).to(dtype), torch.randn(batch, n) * scale
    upstream = torch.randn(shape).to(dtype)

    def arguments(where, kind):
        return {
            "k": k,
            "temperature": temperature,
            "statistics": _moved(statistics, where, kind),
            "noise_key": make_key(batch, where),
            "mask": None if mask is None else mask.to(where),
        }

    work = torch.float64 if dtype == torch.float64 else torch.float32
    native = _run_fused(
        soft_top_k_noise_gate,
        tokens.to(device),
        scores.to(device, work),
        upstream.to(device),
        arguments(device, work),
    )
    reference = _run_fused(
        soft_top_k_noise_gate_reference,
        tokens.double(),
        scores.double(),
        upstream.double(),
        arguments("cpu", torch.float64),
    )
    rounded = rank and dtype.itemsize == 2 and torch.device(device).type == "cuda"
    tolerance = TOLERANCE[dtype] * (SHARED_ON_GPU if rounded else 1)
    for actual, expected in zip(native, reference, strict=True):
        assert actual.isfinite().all()
        _close(actual, expected, tolerance)


@pytest.mark.parametrize("width", [1, 7, 64, 1024])
@pytest.mark.parametrize("n", [1, 2, 63])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_fused_agrees_with_the_float64_reference(n, width, dtype, device, make_key):
    torch.manual_seed(n * width)
    mask = torch.rand(2, n) > 0.4
    for k in sorted({1, max(1, n // 9), max(1, n - 1), n}):
        _check_fused((2, n, width), k, dtype, device, make_key, mask=mask)
        _check_fused((2, n, width), k, dtype, device, make_key, rank=min(5, width))


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_fused_agrees_at_the_sizes_of_a_vlm(dtype, device, make_key):
    torch.manual_seed(0)
    _check_fused((1, 576, 512), 64, dtype, device, make_key, rank=64)


@pytest.mark.parametrize("op", [soft_top_k_noise_gate, soft_top_k_noise_gate_reference])
def test_autocast_does_not_reach_into_the_operator(op, device, make_key):
    torch.manual_seed(0)
    tokens, scores = torch.randn(2, 30, 24, device=device), torch.randn(2, 30, device=device)
    arguments = (5, 0.3, _moved(_statistics(24, 4), device), make_key(2, device))
    gated, _ = op(tokens, scores, *arguments)
    with torch.autocast(torch.device(device).type, torch.bfloat16):
        again, _ = op(tokens, scores, *arguments)
    assert torch.equal(gated, again)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(1, 576, 4096), (1, 2880, 1024), (1, 16384, 64)])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_fused_agrees_at_large_sizes(shape, dtype, device, make_key):
    torch.manual_seed(0)
    _check_fused(shape, shape[1] // 9, dtype, device, make_key)


@pytest.mark.parametrize(
    "temperature, scale", list(itertools.product((1e-3, 1.0, 10.0), (0.0, 1.0, 1e4)))
)
def test_fused_is_bounded_for_polarised_and_for_equal_scores(temperature, scale, device, make_key):
    torch.manual_seed(0)
    options = {"temperature": temperature, "scale": scale}
    _check_fused((2, 63, 16), 7, torch.float32, device, make_key, **options)


def _run_gate(op, tokens, gates, upstream, arguments):
    tokens, gates = tokens.clone().requires_grad_(), gates.clone().requires_grad_()
    out = op(tokens, gates, *arguments)
    out.backward(upstream)
    return out.detach(), tokens.grad, gates.grad


@pytest.mark.parametrize("rank", [0, 3])
def test_separate_gate_agrees_with_the_reference(rank, device, make_key):
    torch.manual_seed(0)
    statistics = _statistics(33, rank)
    tokens, gates = torch.randn(2, 9, 33), torch.rand(2, 9)
    gates[:, 0], gates[:, 1] = 0.0, 1.0
    upstream = torch.randn(2, 9, 33)

    for where, kind in ((device, torch.float32), (device, torch.float64)):
        arguments = (_moved(statistics, where, kind), make_key(2, where))
        moved = (tokens.to(where, kind), gates.to(where, kind), upstream.to(where, kind))
        native = _run_gate(noise_gate, *moved, arguments)
        reference = _run_gate(noise_gate_reference, *moved, arguments)
        for actual, expected in zip(native, reference, strict=True):
            assert actual.isfinite().all()
            _close(actual, expected, 1e-5)


@pytest.mark.parametrize("reference", [False, True])
@pytest.mark.parametrize("rank", [0, 3])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("junk", [torch.nan, torch.inf])
def test_a_closed_gate_lets_nothing_through(reference, rank, dtype, junk, device, make_key):
    """Neither the token nor, in the backward pass, the gradient of the result."""
    torch.manual_seed(0)
    statistics, key = _moved(_statistics(37, rank), device), make_key(2, device)
    tokens, upstream = (torch.randn(2, 9, 37, device=device).to(dtype) for _ in range(2))
    scores = torch.randn(2, 9, device=device)
    mask = torch.arange(9, device=device) % 4 > 0
    mask = mask.expand(2, 9)
    fused = soft_top_k_noise_gate_reference if reference else soft_top_k_noise_gate
    separate = noise_gate_reference if reference else noise_gate
    masked = {"k": 3, "temperature": 0.5, "statistics": statistics, "noise_key": key, "mask": mask}
    gates = scores.sigmoid().masked_fill(~mask, 0.0)

    def both(x, g):
        one = _run_fused(fused, x, scores, g, masked)
        return *one, *_run_gate(separate, x, gates, g, (statistics, key))

    closed = ~mask[..., None]
    expected = both(tokens.masked_fill(closed, 0.0), upstream.masked_fill(closed, 0.0))
    found = both(tokens.masked_fill(closed, junk), upstream.masked_fill(closed, junk))
    assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize("op", [noise_gate, noise_gate_reference])
def test_gates_finer_than_the_arithmetic_count_as_rounded(op, device, make_key):
    """These float64 gates are 0 and 1 in float32, where a gate gets no gradient."""
    gates = torch.tensor([[1e-60, 1 - 1e-12, 0.25]], dtype=torch.float64, device=device)
    tokens, upstream = (torch.randn(1, 3, 8, device=device) for _ in range(2))
    arguments = (_moved(_statistics(8), device), make_key(1, device))
    out, _, grad = _run_gate(op, tokens, gates, upstream, arguments)
    rounded, _, expected = _run_gate(op, tokens, gates.float(), upstream, arguments)
    assert torch.equal(out, rounded) and torch.equal(grad.float(), expected)
    assert grad[0, :2].tolist() == [0.0, 0.0] and grad.isfinite().all()


@pytest.mark.parametrize("flush", [False, True])
def test_an_open_gate_lets_every_float16_through(flush, native, make_key):
    """Also those below 2^-14, if the processor flushes floats below 2^-126 to zero."""
    bits = torch.arange(-(2**15), 2**15).to(torch.int16)
    tokens = bits.view(torch.float16).reshape(1, 1024, 64)
    statistics = NoiseStatistics(torch.zeros(64), torch.ones(64))
    if not torch.set_flush_denormal(flush):
        pytest.skip("this processor cannot flush small numbers")
    try:
        found = noise_gate(tokens, torch.ones(1, 1024), statistics, make_key(1))
    finally:
        torch.set_flush_denormal(False)
    assert torch.equal(found.nan_to_num(7.0), tokens.nan_to_num(7.0))


def test_fused_equals_the_separate_operators(device, make_key):
    from autoselect.ops.soft_top_k import soft_top_k

    torch.manual_seed(0)
    statistics = _moved(_statistics(24), dtype=torch.float64)
    tokens, scores = torch.randn(2, 30, 24).double(), torch.randn(2, 30, dtype=torch.float64)
    upstream = torch.randn(2, 30, 24).double()
    key = make_key(2)

    def separate(x, r, k, temperature, statistics, noise_key):
        gates = soft_top_k(r, k, temperature)
        return noise_gate(x, gates, statistics, noise_key), gates

    arguments = {"k": 4, "temperature": 0.5, "statistics": statistics, "noise_key": key}
    one = _run_fused(soft_top_k_noise_gate, tokens, scores, upstream, arguments)
    two = _run_fused(separate, tokens, scores, upstream, arguments)
    for fused, apart in zip(one, two, strict=True):
        torch.testing.assert_close(fused, apart, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("rank", [0, 2])
def test_gradcheck(rank, device, make_key):
    torch.manual_seed(0)
    statistics = _moved(_statistics(6, rank), device, torch.float64)
    tokens = torch.randn(2, 7, 6, dtype=torch.float64, device=device, requires_grad=True)
    scores = torch.randn(2, 7, dtype=torch.float64, device=device, requires_grad=True)
    gates = torch.rand(2, 7, dtype=torch.float64, device=device) * 0.8 + 0.1
    mask = torch.tensor([[1] * 7, [1, 0, 1, 1, 0, 1, 1]], dtype=torch.bool, device=device)
    key = make_key(2, device)
    for op in (soft_top_k_noise_gate, soft_top_k_noise_gate_reference):
        fused = lambda x, r, op=op: op(x, r, 2, 0.5, statistics, key, mask)  # noqa: E731
        assert torch.autograd.gradcheck(fused, (tokens, scores))
    for op in (noise_gate, noise_gate_reference):
        separate = lambda x, s, op=op: op(x, s, statistics, key)  # noqa: E731
        assert torch.autograd.gradcheck(separate, (tokens, gates.clone().requires_grad_()))


def test_strided_inputs(device, make_key):
    torch.manual_seed(0)
    tokens = torch.randn(10, 2, 18, device=device).transpose(0, 1)[..., ::2]
    scores = torch.randn(10, 2, device=device).t()
    mean, std = torch.randn(18, device=device)[::2], torch.rand(18, device=device)[::2]
    upstream = torch.randn(9, 10, 2, device=device).permute(2, 1, 0)
    arguments = {"k": 3, "temperature": 0.5, "noise_key": make_key(2, device)}
    sparse = {**arguments, "statistics": NoiseStatistics(mean, std)}
    strided = _run_fused(soft_top_k_noise_gate, tokens, scores, upstream, sparse)
    dense = {**arguments, "statistics": NoiseStatistics(mean.contiguous(), std.contiguous())}
    inputs = (tokens.contiguous(), scores.contiguous(), upstream.contiguous())
    # The references add numbers in the order in which they lie in memory.
    exact = {} if EXTENSION is None else {"rtol": 0, "atol": 0}
    for one, two in zip(strided, _run_fused(soft_top_k_noise_gate, *inputs, dense), strict=True):
        torch.testing.assert_close(one, two, **exact)


@pytest.mark.parametrize("shape", [(0, 5, 4), (2, 5, 0)])
@pytest.mark.parametrize("rank", [0, 2])
def test_empty_tensors(shape, rank, device, make_key):
    statistics = _moved(_statistics(shape[2], rank), device)
    tokens = torch.randn(shape, device=device, requires_grad=True)
    scores = torch.randn(shape[:2], device=device, requires_grad=True)
    key = make_key(shape[0], device)
    gated, _ = soft_top_k_noise_gate(tokens, scores, 2, 0.5, statistics, key)
    gated.sum().backward()
    assert gated.shape == shape and tokens.grad.shape == shape
    assert (scores.grad == 0).all()


def test_gate_of_zero_tokens(device, make_key):
    out = noise_gate(
        torch.zeros(2, 0, 4, device=device),
        torch.zeros(2, 0, device=device),
        NoiseStatistics(torch.zeros(4, device=device), torch.ones(4, device=device)),
        make_key(2, device),
    )
    assert out.shape == (2, 0, 4)


def test_backward_keeps_the_tokens_and_not_the_noise(native, make_key):
    """Saved for backward: the tokens themselves and less than a tenth of their size beside them."""
    tokens = torch.randn(2, 50, 256, requires_grad=True)
    scores = torch.randn(2, 50, requires_grad=True)
    saved = {}

    def remember(tensor):
        saved[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
        statistics = NoiseStatistics(torch.zeros(256), torch.ones(256))
        soft_top_k_noise_gate(tokens, scores, 5, 0.5, statistics, make_key(2))
    assert tokens.data_ptr() in saved
    assert sum(saved.values()) < 1.1 * tokens.numel() * tokens.element_size()


class Backwards(TorchDispatchMode):
    """Record the operators that write gradients, and the sizes of what they return."""

    def __init__(self):
        super().__init__()
        self.sizes = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func.name().endswith("noise_gate_backward"):
            self.sizes[func.name()] = [tensor.numel() for tensor in result]
        return result


@pytest.mark.parametrize("rank", [0, 5])
def test_the_token_gradient_is_written_only_if_somebody_needs_it(rank, native, make_key, device):
    torch.manual_seed(0)
    tokens, upstream = (torch.randn(2, 9, 70, device=device) for _ in range(2))
    scores = torch.randn(2, 9, device=device)
    factor = torch.randn(rank, 70, device=device) if rank else None
    channels = (torch.randn(70, device=device), torch.rand(70, device=device), factor)
    noise = NoiseStatistics(*channels), make_key(2, device)
    for fused in (True, False):
        gradients = []
        for needed in (True, False):
            x, r = tokens.clone().requires_grad_(needed), scores.clone().requires_grad_()
            if fused:
                gated = soft_top_k_noise_gate(x, r, 3, 0.5, *noise)[0]
            else:
                gated = noise_gate(x, r.sigmoid(), *noise)
            with Backwards() as seen:
                gated.backward(upstream)
            assert list(seen.sizes.values()) == [[tokens.numel() if needed else 0, scores.numel()]]
            assert (x.grad is not None) == needed
            gradients.append(r.grad)
        assert torch.equal(*gradients)
