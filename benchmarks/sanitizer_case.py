"""Run every kernel once at awkward sizes, under a sanitizer.

    compute-sanitizer --tool memcheck python benchmarks/sanitizer_case.py [--device cuda]

The sizes exceed the 2048 tokens that soft top-K keeps in registers, the 4096 that diverse top-K
compares all at once, the 4096 positions that selection keeps in shared memory, and the 8192 tokens
of a batch from which on a block of the noise gate takes several. Widths are with and without whole
16-byte accesses. Set PYTORCH_NO_CUDA_MEMORY_CACHING=1 for memcheck: PyTorch's allocator hands out
pieces of large blocks, and an access beyond a piece stays inside its block.
"""

from __future__ import annotations

import argparse

import torch

from autoselect.ops.diverse_top_k import diverse_top_k
from autoselect.ops.hard_top_k import hard_top_k, select_tokens
from autoselect.ops.marginal_order import MOST_TOKENS, marginal_order
from autoselect.ops.noise import NoiseKey, NoiseStatistics
from autoselect.ops.noise_gate import noise_gate, soft_top_k_noise_gate
from autoselect.ops.soft_top_k import soft_top_k

BATCH = 2
RANK = 3
TEMPERATURE = 0.3
DIVERSITY = 0.4
MOST_DIVERSE = 12
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
# (tokens, width, budget)
SIZES = ((5, 7, 3), (2500, 64, 40), (4500, 64, 4200), (4500, 67, 4200))


def exercise(device: torch.device, dtype: torch.dtype, tokens: int, width: int, k: int) -> None:
    """Run every operator forward and backward, without and with a mask and a factor."""
    x = torch.randn(BATCH, tokens, width, device=device).to(dtype).requires_grad_()
    work = torch.float64 if dtype == torch.float64 else torch.float32
    scores = torch.randn(BATCH, tokens, device=device, dtype=work, requires_grad=True)
    mask = torch.rand(BATCH, tokens, device=device) > 0.2
    mask[:, 0] = True  # no row is empty, whatever is drawn
    mean, std = torch.randn(width, device=device), torch.rand(width, device=device)
    own = NoiseStatistics(mean, std)
    shared = NoiseStatistics(mean, std, torch.randn(RANK, width, device=device))
    key = NoiseKey(1, 2, torch.arange(BATCH, device=device))
    budgets = torch.tensor([1, k], device=device)
    for valid, statistics in ((None, own), (mask, shared)):
        gates = soft_top_k(scores, budgets, TEMPERATURE, valid)
        gated = noise_gate(x, gates, statistics, key)
        fused, own_gates = soft_top_k_noise_gate(x, scores, k, TEMPERATURE, statistics, key, valid)
        kept, positions = select_tokens(fused, scores, k, valid)
        assert torch.equal(positions, hard_top_k(scores, k, valid))
        few = budgets.clamp(max=MOST_DIVERSE)
        diverse = diverse_top_k(scores, x, few, DIVERSITY, valid, width=min(k, MOST_DIVERSE))
        assert int(diverse[0, 0]) >= 0 and bool((diverse[0, 1:] == -1).all())
        if tokens <= MOST_TOKENS:
            likeness = torch.rand(BATCH, tokens, tokens, device=device)
            order = marginal_order(scores, likeness, min(k, MOST_DIVERSE), DIVERSITY, valid)
            chosen = (row[row >= 0] for row in order)  # a row may have fewer valid tokens than k
            assert all(len(row.unique()) == len(row) for row in chosen)
        (gated.float().mean() + kept.float().mean() + own_gates.mean()).backward()
    assert x.grad.isfinite().all() and scores.grad.isfinite().all()


def run(device: torch.device) -> None:
    for dtype in DTYPES:
        for size in SIZES:
            exercise(device, dtype, *size)
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda", help="device")
    options = parser.parse_args()
    torch.manual_seed(0)
    run(torch.device(options.device))


if __name__ == "__main__":
    main()
