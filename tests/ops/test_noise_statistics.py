"""The noise is standard normal, uncorrelated, reproducible, and independent of the image."""

import math
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from autoselect.ops.noise import NoiseKey, NoiseStatistics
from autoselect.ops.noise_gate import noise_gate, soft_top_k_noise_gate
from tests.forking import Program, run_after


def _normals(batch, n, width, device="cpu", seed=0, step=0, first=0):
    """Return pure noise: gates 0, mean 0, std 1."""
    key = NoiseKey(seed, step, torch.arange(first, first + batch, device=device))
    zeros = torch.zeros(batch, n, width, device=device)
    gates = torch.zeros(batch, n, device=device)
    statistics = NoiseStatistics(
        torch.zeros(width, device=device), torch.ones(width, device=device)
    )
    return noise_gate(zeros, gates, statistics, key).cpu().double()


def _correlation(one, two):
    return float((one * two).mean() / (one.square().mean() * two.square().mean()).sqrt())


def test_moments_are_those_of_a_standard_normal(device):
    """Bounds are five standard errors of each moment."""
    normals = _normals(4, 256, 512, device)
    count = normals.numel()
    assert abs(normals.mean()) < 5 / math.sqrt(count)
    assert abs(normals.square().mean() - 1) < 5 * math.sqrt(2 / count)
    assert abs(normals.pow(3).mean()) < 5 * math.sqrt(15 / count)
    assert abs(normals.pow(4).mean() - 3) < 5 * math.sqrt(96 / count)
    assert 4.3 < normals.abs().max() < 6.8
    within = (normals.abs() < 1).double().mean()
    assert abs(within - 0.682689) < 5 * math.sqrt(0.2166 / count)


def test_no_correlation_along_any_axis(device):
    base = _normals(4, 128, 256, device)
    bound = 5 / math.sqrt(base.numel() / 4)
    for lag in (1, 2, 3, 4):
        assert abs(_correlation(base[..., :-lag], base[..., lag:])) < bound
    assert abs(_correlation(base[:, :-1], base[:, 1:])) < bound
    assert abs(_correlation(base[:-1], base[1:])) < bound
    assert abs(_correlation(base[..., :-1].square() - 1, base[..., 1:].square() - 1)) < bound
    assert abs(_correlation(base, _normals(4, 128, 256, device, step=1))) < bound
    assert abs(_correlation(base, _normals(4, 128, 256, device, seed=1))) < bound
    assert abs(_correlation(base, _normals(4, 128, 256, device, first=2**32))) < bound


def test_noise_depends_on_the_sample_and_not_on_its_batch(device):
    whole = _normals(6, 10, 33, device)
    for size in (1, 2, 3):
        parts = [_normals(size, 10, 33, device, first=start) for start in range(0, 6, size)]
        assert torch.equal(torch.cat(parts), whole)
    assert torch.equal(_normals(6, 4, 16, device), whole[:, :4, :16])


@pytest.mark.parametrize("gate", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_the_gate_preserves_mean_and_variance(gate, device):
    generator = torch.Generator().manual_seed(1)
    mean, std = torch.tensor([3.0, -1.0, 0.0]), torch.tensor([0.5, 2.0, 1.0])
    tokens = mean + std * torch.randn(1, 60000, 3, generator=generator)
    key = NoiseKey(5, 0, torch.zeros(1, dtype=torch.int64, device=device))
    gates = torch.full((1, 60000), gate, device=device)
    statistics = NoiseStatistics(mean.to(device), std.to(device))
    out = noise_gate(tokens.to(device), gates, statistics, key)[0].cpu()
    assert ((out.mean(0) - mean).abs() < 5 * std / math.sqrt(60000)).all()
    assert ((out.var(0) / std.square() - 1).abs() < 5 * math.sqrt(2 / 60000)).all()


def test_a_factor_gives_the_calibrated_covariance(device):
    generator = torch.Generator().manual_seed(1)
    std = torch.tensor([0.5, 0.3, 0.7, 0.2, 1.0])
    factor = torch.randn(2, 5, generator=generator)
    key = NoiseKey(5, 0, torch.zeros(1, dtype=torch.int64, device=device))
    n = 100000
    noise = noise_gate(
        torch.zeros(1, n, 5, device=device),
        torch.zeros(1, n, device=device),
        NoiseStatistics(torch.zeros(5, device=device), std.to(device), factor.to(device)),
        key,
    )[0].cpu()
    expected = torch.diag(std.square()) + factor.t() @ factor
    scale = torch.outer(expected.diag(), expected.diag()).sqrt()
    error = (noise.t() @ noise / n - expected).abs() / scale
    assert error.max() < 5 * math.sqrt(2 / n)


def test_a_gate_of_one_returns_the_token_bit_for_bit(device):
    tokens = torch.randn(2, 9, 130, device=device) * 100
    statistics = NoiseStatistics(torch.randn(130, device=device), torch.rand(130, device=device))
    key = NoiseKey(0, 0, torch.arange(2, device=device))
    assert torch.equal(noise_gate(tokens, torch.ones(2, 9, device=device), statistics, key), tokens)
    scores = torch.randn(2, 9, device=device)
    assert torch.equal(soft_top_k_noise_gate(tokens, scores, 9, 0.1, statistics, key)[0], tokens)


def test_a_gate_of_zero_carries_nothing_of_the_token(device):
    statistics = NoiseStatistics(torch.randn(40, device=device), torch.rand(40, device=device))
    key = NoiseKey(0, 0, torch.arange(2, device=device))
    shut = torch.zeros(2, 5, device=device)
    first, second = (
        noise_gate(torch.randn(2, 5, 40, device=device), shut, statistics, key) for _ in range(2)
    )
    assert torch.equal(first, second)


def test_seed_and_step_may_be_tensors(device):
    ids = torch.arange(3, device=device)
    tokens, gates = torch.zeros(3, 4, 8, device=device), torch.zeros(3, 4, device=device)
    statistics = NoiseStatistics(torch.zeros(8, device=device), torch.ones(8, device=device))
    numbers = noise_gate(tokens, gates, statistics, NoiseKey(9, 2**40, ids))
    seed, step = (torch.tensor(value, device=device) for value in (9, 2**40))
    assert torch.equal(noise_gate(tokens, gates, statistics, NoiseKey(seed, step, ids)), numbers)


DIGEST = """
import hashlib, torch
from autoselect.ops.diverse_top_k import diverse_top_k
from autoselect.ops.noise import NoiseKey, NoiseStatistics
from autoselect.ops.noise_gate import soft_top_k_noise_gate
torch.manual_seed(0)
digest = hashlib.sha256()
for dtype in (torch.float32, torch.bfloat16, torch.float16):
    x = torch.randn(2, 63, 137).to(dtype).requires_grad_()
    r = torch.randn(2, 63).requires_grad_()
    factor = torch.randn(5, 137)
    key = NoiseKey(1, 2, torch.arange(2))
    gated, gates = soft_top_k_noise_gate(
        x, r, 9, 0.2, NoiseStatistics(torch.randn(137), torch.rand(137), factor), key
    )
    gated.backward(torch.randn(2, 63, 137).to(dtype))
    diverse = diverse_top_k(r, x, 20, 0.5)
    for tensor in (gated, gates, x.grad, r.grad, diverse):
        digest.update(tensor.detach().float().numpy().tobytes())
print(digest.hexdigest())
"""


def test_instruction_sets_and_thread_counts_give_the_same_bits(native):
    levels = ["baseline", "avx2", "avx512"]
    best = levels.index(native.build_info()["cpu_instruction_set"])
    programs = [Program(DIGEST, {"AUTOSELECT_CPU_ISA": level}) for level in levels[: best + 1]]
    one, two = ({**os.environ, "OMP_NUM_THREADS": threads} for threads in ("1", "2"))
    runs = run_after("import torch", programs, Path.cwd(), one)
    runs += run_after("import torch", [Program(DIGEST)], Path.cwd(), two)
    assert all(run.returncode == 0 for run in runs), runs
    assert len(runs) >= 2 and len({run.stdout for run in runs}) == 1


AMPLITUDES = """
#include <cstdio>
#include "threshold.h"
int main() {
  for (float u = -9.0f; u < 9.0f; u += 0.01f) {
    const auto found = autoselect::amplitudes(u);
    autoselect::ThresholdSearch<float> search;
    search.begin({u, 1.3f, u - 3.0f, u + 3.0f}, 3.0f, 9.0f, 0.3f);
    std::printf("%a %a %a\\n", found.a, found.b, search.current.base);
  }
}
"""


def test_the_headers_of_a_file_do_not_change_its_numbers(tmp_path):
    """With math.h the name `sqrt` finds a function of floats; without it, that of doubles."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++ on this machine")
    folder = Path(__file__).parents[2] / "csrc"
    printed = set()
    for header in ("cmath", "math.h"):
        source, program = tmp_path / "amplitudes.cpp", tmp_path / "amplitudes"
        source.write_text(f"#include <{header}>\n{AMPLITUDES}")
        flags = ["-std=c++20", "-O2", "-ffp-contract=off", f"-I{folder}", "-o", str(program)]
        subprocess.run([compiler, *flags, str(source)], check=True)
        printed.add(subprocess.run([program], capture_output=True, check=True).stdout)
    assert len(printed) == 1
