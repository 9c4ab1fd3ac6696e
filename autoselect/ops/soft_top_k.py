"""Soft top-K: scores to gates in (0, 1) that sum to the token budget.

    u_i = (r_i - theta) / tau,   s_i = sigmoid(u_i),   theta such that  sum_i s_i = K

Source: AutoSelect (arXiv 2603.07135), soft top-K. The solver, the mask and the log-space weights of
the gradient are ours:

    du_i / dr_j = (delta_ij - w_j) / tau,   w = softmax(logsigmoid(u) + logsigmoid(-u))
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from autoselect.ops._native import EXTENSION, differentiable_once, is_native
from autoselect.ops.checks import check_budget, check_scores, check_temperature

MAX_ITERATIONS = 600
LARGEST_SCORE = {torch.float64: 1e60, torch.float32: 8e37}
"""By the dtype of the gates."""


def _offset(logits: Tensor, budget: Tensor, valid: Tensor) -> Tensor:
    """Return the number to subtract from each row's logits so that its gates sum to the budget.

    Newton's method inside a bracket; a step that is not half of the step before last is replaced by
    bisection, so that every row ends. Each gate is within sigmoid(-|u|) of 0 or 1, so the excess is
    a whole number plus small terms, and stays precise if every gate is saturated.

    Args:
        logits: scores over temperature, [B, N], float64; rows that keep all tokens are ignored.
        budget: K, [B, 1], float64.
        valid: true at tokens that count, [B, N].
    """
    count = valid.sum(-1, keepdim=True)
    fraction = (budget / count.clamp(min=1)).clamp(1e-9, 1 - 1e-9)
    shift = torch.logit(fraction)
    low = logits.masked_fill(~valid, torch.inf).amin(-1, keepdim=True) - shift
    high = logits.masked_fill(~valid, -torch.inf).amax(-1, keepdim=True) - shift
    offset = (low + high) / 2
    step = before = high - low

    for _ in range(MAX_ITERATIONS):
        u = logits - offset
        small = torch.sigmoid(-u.abs()) * valid
        above = (u > 0) & valid
        signed = torch.where(above, -small, small)
        excess = above.sum(-1, keepdim=True) - budget + signed.sum(-1, keepdim=True)
        slope = (small * (1 - small)).sum(-1, keepdim=True)

        low = torch.where(excess > 0, offset, low)
        high = torch.where(excess > 0, high, offset)
        newton = offset + excess / slope
        middle = low + (high - low) / 2
        quick = (newton > low) & (newton < high) & (2 * (newton - offset).abs() < before.abs())
        before, step = step, torch.where(quick, newton, middle) - offset
        done = (excess.abs() <= 1e-14 * slope) | (step == 0) | (high <= low)
        if bool((done | (count <= budget)).all()):
            break
        offset = torch.where(done, offset, offset + step)
    return offset


def _solve_logits(scores: Tensor, budget: Tensor, temperature: Tensor, valid: Tensor) -> Tensor:
    """Return gate logits u, [B, N], float64, without gradient.

    Scores are measured from the K-th largest one: the threshold is within a few temperatures of it,
    unless every gate is saturated. So subtracting the offset loses no digits that matter.
    """
    limit = LARGEST_SCORE[gate_dtype(scores)]
    clamped = scores.detach().double().clamp(-limit, limit).masked_fill(~valid, -limit)
    base = clamped.sort(dim=-1, descending=True).values.gather(-1, budget.long() - 1)
    logits = (clamped - base) / temperature
    return logits - _offset(logits, budget, valid)


def _threshold_weights(logits: Tensor, counts: Tensor) -> Tensor:
    """Return w, [B, N]: the derivative of each row's threshold by its scores."""
    logits = logits.masked_fill(~counts, torch.inf)
    return torch.softmax(logsigmoid(logits) + logsigmoid(-logits), dim=-1).nan_to_num(0.0)


def soft_top_k_logits_reference(
    scores: Tensor, k: int | Tensor, temperature: float | Tensor, mask: Tensor | None = None
) -> Tensor:
    """Compute gate logits u, [B, N], float64, differentiable twice in the scores.

    Padded tokens have logit -inf; rows with `k` or fewer valid tokens have logit +inf.
    """
    check_scores(scores, mask)
    k = check_budget(k, scores)
    temperature = check_temperature(temperature, scores.device)
    valid = torch.ones_like(scores, dtype=torch.bool) if mask is None else mask
    if scores.numel() == 0:
        return scores.double()
    budget = torch.as_tensor(k, dtype=torch.float64, device=scores.device)
    budget = budget.clamp(1, scores.shape[1]).expand(scores.shape[0])[:, None]

    u = _solve_logits(scores, budget, temperature, valid)
    broken = (valid & scores.isnan()).any(-1, keepdim=True)
    all_kept = (valid.sum(-1, keepdim=True) <= budget) & ~broken

    # The implicit gradient: a threshold of unchanged value whose derivative by score j is w_j. The
    # mean of w before and after the change makes its second derivatives right, too.
    change = (scores - scores.detach()).double().nan_to_num(0.0) / temperature
    counts = valid & ~all_kept
    before = _threshold_weights(u, counts)
    after = _threshold_weights(u + change - (before * change).sum(-1, keepdim=True), counts)
    logits = u + change - ((before + after) / 2 * change).sum(-1, keepdim=True)
    return logits.masked_fill(all_kept, torch.inf).masked_fill(~valid, -torch.inf)


def soft_top_k_reference(
    scores: Tensor, k: int | Tensor, temperature: float | Tensor, mask: Tensor | None = None
) -> Tensor:
    """Compute `soft_top_k` in plain PyTorch, solved in float64."""
    logits = soft_top_k_logits_reference(scores, k, temperature, mask)
    return torch.sigmoid(logits).to(gate_dtype(scores))


def gate_dtype(scores: Tensor) -> torch.dtype:
    """Return float64 for float64 scores, else float32, because a bfloat16 sum is too coarse."""
    return torch.float64 if scores.dtype == torch.float64 else torch.float32


def budget_arguments(k: int | Tensor) -> tuple[Tensor | None, int]:
    """Return the budget as the kernels take it: (one per row, 0) or (None, one for all)."""
    return (k, 0) if isinstance(k, Tensor) else (None, k)


if EXTENSION is not None:

    @torch.library.register_fake("autoselect::soft_top_k")
    def _fake(scores, k_rows, k, temperature, mask):
        gates = torch.empty_like(scores, dtype=gate_dtype(scores)).contiguous()
        return gates, torch.empty_like(gates)

    @torch.library.register_fake("autoselect::soft_top_k_backward")
    def _fake_backward(grad_gates, logits, temperature):
        return torch.empty_like(logits, memory_format=torch.contiguous_format)

    def _setup_context(ctx, inputs, output):
        scores, _, _, temperature, _ = inputs
        _, logits = output
        ctx.mark_non_differentiable(logits)
        ctx.save_for_backward(logits, temperature)
        ctx.dtype = scores.dtype

    def _backward(ctx, grad_gates, _grad_logits):
        grad = torch.ops.autoselect.soft_top_k_backward(grad_gates, *ctx.saved_tensors)
        return grad.to(ctx.dtype), None, None, None, None

    torch.library.register_autograd(
        "autoselect::soft_top_k", _backward, setup_context=_setup_context
    )
    differentiable_once("soft_top_k_backward")


def soft_top_k(
    scores: Tensor, k: int | Tensor, temperature: float | Tensor, mask: Tensor | None = None
) -> Tensor:
    """Return the gates of a soft top-K, [B, N], float32 (float64 for float64 scores).

    The gates of each row sum to its `k`. Padded tokens get gate 0 and no gradient; a row with `k`
    or fewer valid tokens gets gates of exactly 1 and no gradient. Larger scores count as
    `LARGEST_SCORE`.

    Args:
        scores: importance logits, [B, N]; standardised by the caller.
        k: token budget in 1..N, one for all rows or int64 [B].
        temperature: width of the transition between 0 and 1, in units of the scores; a number or
            a tensor, 0-d (on the GPU for a captured graph whose temperature changes).
        mask: true at valid tokens, bool, [B, N]; all valid when None.

    Raises:
        ConfigError: shape, dtype or device do not fit, `k` is outside 1..N, the temperature is
            outside 1e-30..1e30, or (on a CPU) a score is NaN. On a GPU values are not checked:
            budgets outside 1..N count as the nearest of them, and a NaN score makes the gates of
            its row NaN.
    """
    if not is_native(scores.device):
        return soft_top_k_reference(scores, k, temperature, mask)
    check_scores(scores, mask)
    temperature = check_temperature(temperature, scores.device)
    budget = budget_arguments(check_budget(k, scores))
    return torch.ops.autoselect.soft_top_k(scores, *budget, temperature, mask)[0]
