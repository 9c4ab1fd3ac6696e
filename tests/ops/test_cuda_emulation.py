"""The CUDA kernels compute the right numbers: run block by block on the CPU, without a GPU.

`emulation/cuda_runtime.h` runs a thread block as fibers; the kernels are the files of `csrc/`,
untouched but for the launch syntax and `kManyTokens`, which is smaller. It finds wrong indices,
barriers and sums. It says nothing about speed, memory ordering or the GPU's own special functions.
"""

import ctypes
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from autoselect.ops import checks
from autoselect.ops.diverse_top_k import diverse_top_k_reference
from autoselect.ops.hard_top_k import hard_top_k_reference, select_tokens_reference
from autoselect.ops.marginal_order import marginal_order_reference
from autoselect.ops.noise import NoiseKey, NoiseStatistics
from autoselect.ops.noise_gate import (
    noise_gate_reference,
    soft_top_k_noise_gate_reference,
)
from autoselect.ops.philox import standard_normals
from autoselect.ops.soft_top_k import soft_top_k_reference

HERE = Path(__file__).parent
CSRC = HERE.parents[1] / "csrc"
MANY = 512
LAUNCH = re.compile(r"([\w<>, ]+?)\s*<<<(.*?)>>>\s*\(", re.DOTALL)


def _as_cpp(source: str) -> str:
    """Rewrite `kernel<<<grid, threads, ...>>>(x)` into `emulation::launch(kernel, ..., x)`."""

    def call(match):
        grid, threads = (part.strip() for part in match[2].split(",")[:2])
        return f"\n emulation::launch({match[1].strip()}, {grid}, {threads}, "

    source = LAUNCH.sub(call, source)
    declared = r"extern __shared__ int64_t own_positions\[\];"
    pointer = "int64_t* own_positions = reinterpret_cast<int64_t*>(emulation::dynamic_shared);"
    source = re.sub(declared, pointer, source)
    many, replaced = re.subn(r"kManyTokens = \d+", f"kManyTokens = {MANY}", source)
    assert replaced == ("kManyTokens" in source)
    return many


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    """Build the emulated kernels as a shared library."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++ on this machine")
    build = tmp_path_factory.mktemp("emulation")
    names = ("soft_top_k", "noise_gate", "hard_top_k", "diverse_top_k")
    for name in names:
        text = _as_cpp((CSRC / "cuda" / f"{name}_kernels.cu").read_text())
        # Each file gets its own namespace for what it keeps to itself.
        text = text.replace("namespace {", f"namespace {name}_local {{").replace(
            "}  // namespace\n", f"}}\nusing namespace {name}_local;\n"
        )
        (build / f"{name}.cpp").write_text(text)
    shutil.copy(HERE / "emulation" / "entry.cpp", build)
    flags = ["-std=c++20", "-O1", "-fPIC", f"-I{HERE / 'emulation'}", f"-I{CSRC}"]
    objects = []
    for name in (*names, "entry"):
        objects.append(build / f"{name}.o")
        command = [compiler, *flags, "-c", str(build / f"{name}.cpp"), "-o", str(objects[-1])]
        run = subprocess.run(command, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
    library = build / "kernels.so"
    subprocess.run([compiler, "-shared", "-o", str(library), *map(str, objects)], check=True)
    return ctypes.CDLL(str(library))


def _call(function, *arguments):
    """Call a C function with tensors as pointers and with numbers."""
    converted = []
    for value in arguments:
        if value is None:
            converted.append(ctypes.c_void_p(None))
        elif isinstance(value, torch.Tensor):
            assert value.is_contiguous()
            converted.append(ctypes.c_void_p(value.data_ptr()))
        elif isinstance(value, bool):
            converted.append(ctypes.c_bool(value))
        elif isinstance(value, float):
            converted.append(ctypes.c_double(value))
        else:
            converted.append(ctypes.c_int64(value))
    function(*converted)


def _poison(*shape, dtype=torch.float32):
    """Return a tensor full of NaN, which shows what a kernel leaves unwritten."""
    return torch.full(shape, torch.nan, dtype=dtype)


def test_a_grid_that_is_too_large_is_refused_by_the_launch(kernels):
    """The largest grid has 2^31 - 1 blocks; a size cut to 32 bits would leave work undone."""
    kernels.grid_size.restype = ctypes.c_int64
    for work, each, blocks in (
        (0, 8, 0),
        (9, 8, 2),
        (2**31 - 1, 1, 2**31 - 1),
        (2**31, 1, 2**31),
        (2**32 + 5, 1, 2**31),
        (2**33, 8, 2**30),
    ):
        assert kernels.grid_size(ctypes.c_int64(work), ctypes.c_int64(each)) == blocks


@pytest.mark.parametrize("n, k", [(1, 1), (2, 1), (63, 7), (300, 299), (576, 64), (2500, 40)])
@pytest.mark.parametrize("kind", ["normal", "ties", "huge", "outlier"])
def test_soft_top_k(kernels, n, k, kind):
    torch.manual_seed(n)
    scores = torch.randn(2, n)
    scores = {"ties": scores.round(), "huge": scores * 1e4}.get(kind, scores)
    if kind == "outlier":
        scores[:, 0] = torch.inf
    upstream = torch.randn(2, n)
    for temperature, mask in ((0.3, None), (1e-3, torch.rand(2, n) > 0.3)):
        gates, logits, grad = (_poison(2, n) for _ in range(3))
        arguments = (scores, mask, None, k, temperature, 2, n)
        _call(kernels.soft_top_k_f32, *arguments, gates, logits)
        padding = torch.zeros(2, n, dtype=torch.bool) if mask is None else ~mask
        junk = upstream.masked_fill(padding, torch.nan)
        _call(kernels.score_gradient_f32, logits, junk, None, temperature, 2, n, grad)
        leaf = scores.double().requires_grad_()
        expected = soft_top_k_reference(leaf, k, temperature, mask)
        expected.backward(upstream.double())
        torch.testing.assert_close(gates.double(), expected.detach(), rtol=0, atol=2e-6)
        scaled = (grad.double() * temperature, leaf.grad * temperature)
        torch.testing.assert_close(*scaled, rtol=0, atol=2e-6)


def test_a_nan_score_shows_in_its_row_alone(kernels):
    scores = torch.randn(2, 40)
    scores[1, 3] = torch.nan
    gates, logits = _poison(2, 40), _poison(2, 40)
    _call(kernels.soft_top_k_f32, scores, None, torch.tensor([4, 9]), 0, 0.3, 2, 40, gates, logits)
    assert abs(float(gates[0].sum()) - 4) < 1e-4
    assert gates[1].isnan().all()
    grad = _poison(2, 40)
    _call(kernels.score_gradient_f32, logits, gates, None, 0.3, 2, 40, grad)
    assert grad[0].isfinite().all() and grad[1].isnan().all()


def test_selection_ranks_nan_as_the_reference_does(kernels, monkeypatch):
    monkeypatch.setattr(checks, "values_are_checkable", lambda tensor: False)  # as on a GPU
    torch.manual_seed(0)
    scores = torch.randn(2, 300).masked_fill(torch.rand(2, 300) > 0.5, torch.nan)
    scores[:, ::7] = -torch.inf
    for k, mask in ((12, None), (290, None), (290, torch.rand(2, 300) > 0.1)):
        positions = torch.full((2, k), -7)
        _call(kernels.hard_top_k_f32, scores, mask, None, k, 2, 300, positions)
        assert torch.equal(positions, hard_top_k_reference(scores, k, mask))


@pytest.mark.parametrize("n, k", [(1, 1), (63, 7), (300, 299), (576, 12)])
@pytest.mark.parametrize("row_bytes", [16, 20])
def test_selection(kernels, n, k, row_bytes):
    torch.manual_seed(n)
    scores = torch.randn(2, n).mul(3).round()
    tokens = torch.randn(2, n, row_bytes // 4)
    for mask in (None, torch.rand(2, n) > 0.6):
        positions = torch.full((2, k), -7)
        _call(kernels.hard_top_k_f32, scores, mask, None, k, 2, n, positions)
        assert torch.equal(positions, hard_top_k_reference(scores, k, mask))

        kept, again = _poison(2, k, row_bytes // 4), torch.full((2, k), -7)
        ranking = (scores, mask, None, k, 2, n)
        strides = (row_bytes, n * row_bytes, row_bytes)
        _call(kernels.select_tokens_f32, *ranking, tokens, *strides, kept, again)
        assert torch.equal(again, positions)
        assert torch.equal(kept, select_tokens_reference(tokens, scores, k, mask)[0])

        back = torch.zeros_like(tokens)
        _call(kernels.select_backward, kept, positions, back, row_bytes, 2, k, n)
        chosen = torch.zeros(2, n + 1).scatter(1, positions.where(positions >= 0, n), 1.0)[:, :n]
        assert torch.equal(back, tokens * chosen[..., None])


@pytest.mark.parametrize("extra", [3, 4])  # rows of the view with and without 16-byte steps
def test_selection_with_a_budget_per_row_from_a_strided_view(kernels, extra):
    torch.manual_seed(extra)
    scores, whole = torch.randn(3, 40), torch.randn(41, 3, 8 + extra)
    tokens, budgets = whole.transpose(0, 1)[:, 1:, :8], torch.tensor([2, 30, 1])
    kept, positions = _poison(3, 30, 8), torch.full((3, 30), -7)
    strides = [4 * tokens.stride(dim) for dim in (0, 1)]
    start = whole.flatten()[tokens.storage_offset() :]
    ranking = (scores, None, budgets, 30, 3, 40)
    _call(kernels.select_tokens_f32, *ranking, start, 32, *strides, kept, positions)
    expected = select_tokens_reference(tokens, scores, budgets, width=30)
    assert torch.equal(positions, expected[1]) and torch.equal(kept, expected[0])


def _cosines(tokens, mask):
    weight = mask[..., None].float()
    mean = (tokens.float() * weight).sum(1, keepdim=True) / weight.sum(1, keepdim=True)
    return torch.nn.functional.normalize(tokens.float() - mean, dim=-1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("n, width", [(5, 3), (40, 70)])
def test_directions(kernels, dtype, n, width):
    torch.manual_seed(n)
    tokens, mask = torch.randn(2, n, width).to(dtype), torch.rand(2, n) > 0.3
    mean, directions = _poison(2, width), _poison(2, n, width)
    name = NAMES[dtype][0]
    _call(getattr(kernels, f"directions_{name}"), tokens, mask, 2, n, width, mean, directions)
    torch.testing.assert_close(directions, _cosines(tokens, mask), rtol=0, atol=2e-6)


@pytest.mark.parametrize("n, k", [(1, 1), (63, 9), (530, 4)])
@pytest.mark.parametrize("by_row", [False, True])
def test_diverse_top_k(kernels, n, k, by_row):
    torch.manual_seed(n)
    scores, tokens = torch.randn(2, n), torch.randn(2, n, 12)
    scores[:, -1] = torch.tensor([-1e8, -torch.inf])  # scaling makes all other scores equal
    budgets = torch.tensor([1, k]) if by_row else None
    for mask in (None, torch.rand(2, n) > 0.6):
        valid = torch.ones(2, n, dtype=torch.bool) if mask is None else mask
        directions = _cosines(tokens, valid).nan_to_num(0.0)
        expected = diverse_top_k_reference(scores, tokens, budgets if by_row else k, 0.4, mask, k)
        for pairs in (directions @ directions.transpose(1, 2), None):
            order, positions = torch.full((2, k), -7), torch.full((2, k), -7)
            arguments = (scores, mask, budgets, k, 0.4, 2, n, directions, 12, pairs)
            _call(kernels.diverse_steps_f32, *arguments, _poison(3, 2, n), order, positions)
            assert torch.equal(positions, expected)


@pytest.mark.parametrize("n, k", [(1, 1), (63, 40), (800, 5), (2100, 3)])
def test_marginal_order(kernels, n, k):
    torch.manual_seed(n)
    scores, likeness = torch.randn(2, n), torch.rand(2, n, n)
    scores[0, -1] = -1e8
    mask = torch.rand(2, n) > 0.6
    likeness[1, :, ::3] = torch.inf
    for valid, weight in ((None, 0.7), (mask, 0.7), (mask, 0.0)):
        order = torch.full((2, k), -7)
        arguments = (scores, valid, k, weight, 2, n, likeness, _poison(2, n), order)
        _call(kernels.marginal_order_f32, *arguments)
        assert torch.equal(order, marginal_order_reference(scores, likeness, k, weight, valid))


NAMES = {
    torch.float32: ("f32", 2e-5),
    torch.float64: ("f64", 2e-5),
    torch.bfloat16: ("bf16", 8e-3),
    torch.float16: ("f16", 1e-3),
}


@pytest.mark.parametrize("dtype", NAMES)
@pytest.mark.parametrize("width", [1, 7, 64, 1030])
@pytest.mark.parametrize("rank", [0, 5])
@pytest.mark.parametrize("from_logits", [True, False])
def test_noise_gate(kernels, dtype, width, rank, from_logits):
    _check_noise_gate(kernels, dtype, 3, width, rank, from_logits)


@pytest.mark.parametrize("dtype", NAMES)
@pytest.mark.parametrize("width, rank", [(8, 0), (136, 5)])
def test_noise_gate_of_many_tokens(kernels, dtype, width, rank):
    """A block takes several tokens, and the last one fewer than the others."""
    _check_noise_gate(kernels, dtype, MANY // 2, width, rank, True, batch=3)
    _check_noise_gate(kernels, dtype, MANY + 1, width, rank, True, batch=1)


def _check_noise_gate(kernels, dtype, n, width, rank, from_logits, batch=2):
    torch.manual_seed(width)
    name, tolerance = NAMES[dtype]
    work = torch.float64 if dtype == torch.float64 else torch.float32
    tokens, upstream = (torch.randn(batch, n, width).to(dtype) for _ in range(2))
    mean, std = torch.randn(width, dtype=work), torch.rand(width, dtype=work)
    factor = torch.randn(rank, width, dtype=work)
    logits = torch.randn(batch, n, dtype=work) * 2
    gate = logits if from_logits else torch.sigmoid(logits)
    key, ids = torch.tensor([11, 2**35]), torch.tensor([3, 2**40, 5])[:batch]
    noise_key, common = NoiseKey(11, 2**35, ids), None
    if rank:  # as the glue makes it
        eta = _poison(batch, n, rank, dtype=dtype)
        _call(getattr(kernels, f"eta_{name}"), key, ids, rank, batch, n, width, eta)
        normals = standard_normals(*noise_key.tensors(tokens), n, width + rank)
        assert (eta.double() - normals[..., width:]).abs().max() <= tolerance * 4
        common = eta @ factor.to(dtype)
    arguments = (tokens, gate, from_logits, mean, std, common, key, ids, batch, n, width)
    gated, grad_tokens = (
        _poison(batch, n, width, dtype=dtype),
        _poison(batch, n, width, dtype=dtype),
    )
    grad_gate, alone = _poison(batch, n, dtype=work), _poison(batch, n, dtype=work)
    _call(getattr(kernels, f"gate_forward_{name}"), *arguments, gated)
    backward = getattr(kernels, f"gate_backward_{name}")
    _call(backward, *arguments, upstream, grad_tokens, grad_gate)
    _call(backward, *arguments, upstream, None, alone)
    assert torch.equal(alone, grad_gate)

    x, leaf = tokens.double().requires_grad_(), gate.double().requires_grad_()
    gates = torch.sigmoid(leaf) if from_logits else leaf
    statistics = NoiseStatistics(mean.double(), std.double())
    expected = noise_gate_reference(x, gates, statistics, noise_key)
    if rank:
        expected = expected + (1 - gates).sqrt()[..., None] * common.double()
    expected.backward(upstream.double())
    for actual, value in ((gated, expected), (grad_tokens, x.grad), (grad_gate, leaf.grad)):
        scale = value.detach().abs().max().clamp(min=1e-3)
        assert (actual.double() - value.detach()).abs().max() <= tolerance * scale


@pytest.mark.parametrize("dtype", NAMES)
@pytest.mark.parametrize("from_logits", [True, False])
def test_a_closed_gate_lets_nothing_through(kernels, dtype, from_logits):
    torch.manual_seed(0)
    work = torch.float64 if dtype == torch.float64 else torch.float32
    gate = torch.randn(2, 5, dtype=work) if from_logits else torch.rand(2, 5, dtype=work)
    gate[:, 1:3] = -torch.inf if from_logits else 0.0
    mean, std, key = torch.randn(24, dtype=work), torch.rand(24, dtype=work), torch.tensor([1, 2])
    tokens, upstream = (torch.randn(2, 5, 24).to(dtype) for _ in range(2))
    results = []
    for value in (0.0, torch.nan, torch.inf):
        tokens[:, 1:3] = upstream[:, 1:3] = value
        out = _poison(2, 5, 24, dtype=dtype), _poison(2, 5, 24, dtype=dtype)
        grad_gate = _poison(2, 5, dtype=work)
        arguments = (tokens, gate, from_logits, mean, std, None, key, torch.arange(2), 2, 5, 24)
        _call(getattr(kernels, f"gate_forward_{NAMES[dtype][0]}"), *arguments, out[0])
        backward = getattr(kernels, f"gate_backward_{NAMES[dtype][0]}")
        _call(backward, *arguments, upstream, out[1], grad_gate)
        results.append((*out, grad_gate))
    for found in results[1:]:
        assert all(map(torch.equal, found, results[0]))


def test_fused_backward_chain(kernels):
    """The three kernels of the fused backward, in the order the glue launches them."""
    torch.manual_seed(0)
    tokens, scores, upstream = torch.randn(2, 40, 32), torch.randn(2, 40), torch.randn(2, 40, 32)
    mean, std, ids = torch.randn(32), torch.rand(32), torch.arange(2)
    key, temperature = torch.tensor([1, 2]), 0.4
    gates, logits, grad_logits, grad_scores = (_poison(2, 40) for _ in range(4))
    grad_tokens = torch.empty_like(tokens)
    _call(kernels.soft_top_k_f32, scores, None, None, 6, temperature, 2, 40, gates, logits)
    arguments = (tokens, logits, True, mean, std, None, key, ids, 2, 40, 32)
    _call(kernels.gate_backward_f32, *arguments, upstream, grad_tokens, grad_logits)
    _call(kernels.score_gradient_f32, logits, None, grad_logits, temperature, 2, 40, grad_scores)
    x, r = tokens.double().requires_grad_(), scores.double().requires_grad_()
    statistics = NoiseStatistics(mean.double(), std.double())
    noise_key = NoiseKey(1, 2, ids)
    gated, _ = soft_top_k_noise_gate_reference(x, r, 6, temperature, statistics, noise_key)
    gated.backward(upstream.double())
    torch.testing.assert_close(grad_tokens.double(), x.grad, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(grad_scores.double(), r.grad, rtol=1e-4, atol=1e-4)
