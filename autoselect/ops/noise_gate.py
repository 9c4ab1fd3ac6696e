"""The variance-preserving noise gate: a gate decides how much of a token is replaced by noise.

    z_i = mu + a_i (x_i - mu) + b_i L eps_i,  a_i = sqrt(s_i),  b_i = sqrt(1 - s_i),  eps ~ N(0, I)

Source: AutoSelect (arXiv 2603.07135), VP noise gating. Ours: mu and L are statistics of the data
set; the noise is a pure function of (run seed, step, sample, token, channel); and the fused form
works on the gate logit u, with a = exp(logsigmoid(u) / 2) and b = exp(logsigmoid(-u) / 2). Then,
with G = dL/dz, the gradient

    dL/du_i = (a_i b_i / 2) (b_i <G_i, x_i - mu> - a_i <G_i, L eps_i>)

is bounded for every gate. L eps is `std * eps`, or `std * eps + factor^T eta` with covariance. On a
GPU `factor^T eta` is a matrix product in the dtype of the tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from autoselect.config import ConfigError
from autoselect.ops._native import EXTENSION, differentiable_once, is_native
from autoselect.ops.checks import (
    check_budget,
    check_float,
    check_scores,
    check_shape,
    check_temperature,
    values_are_checkable,
)
from autoselect.ops.noise import NoiseKey, NoiseStatistics, draw
from autoselect.ops.soft_top_k import budget_arguments, gate_dtype, soft_top_k_logits_reference


def _mix(tokens: Tensor, a: Tensor, b: Tensor, mean: Tensor, noise: Tensor) -> Tensor:
    """Return a x + (1 - a) mu + b noise; for a = 1 and b = 0 that is the token, bit for bit.

    For a = 0 the token does not count, even where it is infinite or NaN.
    """
    a, b, x, mean = (value.to(noise.dtype) for value in (a[..., None], b[..., None], tokens, mean))
    x = x.masked_fill(a == 0, 0.0)
    return (a * x + (1 - a) * mean + b * noise).to(tokens.dtype)


def work_dtype(tokens: Tensor) -> torch.dtype:
    """Return the dtype of the arithmetic: float64 for float64 tokens, else float32."""
    return torch.float64 if tokens.dtype == torch.float64 else torch.float32


def noise_gate_reference(
    tokens: Tensor, gates: Tensor, statistics: NoiseStatistics, noise_key: NoiseKey
) -> Tensor:
    """Compute `noise_gate` in plain PyTorch."""
    check_gates(tokens, gates, statistics)
    noise = draw(tokens, statistics, noise_key, work_dtype(tokens))
    gates = gates.to(noise.dtype)
    inside = (gates > 0) & (gates < 1)
    open_gates = torch.where(inside, gates, 0.5)
    constant = gates.detach()
    a = torch.where(inside, torch.sqrt(open_gates), constant)
    b = torch.where(inside, torch.sqrt(1 - open_gates), 1 - constant)
    return _mix(tokens, a, b, statistics.mean, noise)


def soft_top_k_noise_gate_reference(
    tokens: Tensor,
    scores: Tensor,
    k: int | Tensor,
    temperature: float | Tensor,
    statistics: NoiseStatistics,
    noise_key: NoiseKey,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute `soft_top_k_noise_gate` in plain PyTorch; the gates are solved in float64."""
    statistics.check(tokens)
    check_shape("scores", scores, tokens.shape[:2], tokens.device)
    logits = soft_top_k_logits_reference(scores, k, temperature, mask)
    noise = draw(tokens, statistics, noise_key, work_dtype(tokens))
    a = torch.exp(logsigmoid(logits) / 2)
    b = torch.exp(logsigmoid(-logits) / 2)
    gated = _mix(tokens, a, b, statistics.mean, noise)
    return gated, torch.sigmoid(logits).to(gate_dtype(scores))


def check_gates(tokens: Tensor, gates: Tensor, statistics: NoiseStatistics) -> None:
    """Raise ConfigError unless gates are [B, N] in 0..1, and tokens [B, N, D] fit both."""
    statistics.check(tokens)
    check_float("gates", gates, "[batch, tokens]", 2)
    check_shape("gates", gates, tokens.shape[:2], tokens.device)
    if values_are_checkable(gates):
        outside = ~((gates.detach() >= 0) & (gates.detach() <= 1))
        if outside.any():
            value = float(gates.detach()[outside][0])
            raise ConfigError(
                f"gates contain {value}, but must lie in 0..1; use the output of soft_top_k"
            )


if EXTENSION is not None:

    def _fake_token_gradient(tokens, token_gradient):
        """Return the shape of dL/dx, or an empty tensor if nobody needs it."""
        if not token_gradient:
            return tokens.new_empty(0)
        return torch.empty_like(tokens, memory_format=torch.contiguous_format)

    @torch.library.register_fake("autoselect::noise_gate")
    def _fake_gate(tokens, gates, mean, std, factor, seed, step, sample_ids):
        return torch.empty_like(tokens, memory_format=torch.contiguous_format)

    @torch.library.register_fake("autoselect::noise_gate_backward")
    def _fake_gate_backward(
        grad, tokens, gates, mean, std, factor, seed, step, sample_ids, token_gradient=True
    ):
        grad_gates = torch.empty_like(gates, memory_format=torch.contiguous_format)
        return _fake_token_gradient(tokens, token_gradient), grad_gates

    def _setup_gate(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    def _gate_backward(ctx, grad):
        needed = ctx.needs_input_grad[0]
        grad_tokens, grad_gates = torch.ops.autoselect.noise_gate_backward(
            grad, *ctx.saved_tensors, needed
        )
        return grad_tokens if needed else None, grad_gates, *(None,) * 6

    torch.library.register_autograd(
        "autoselect::noise_gate", _gate_backward, setup_context=_setup_gate
    )
    differentiable_once("noise_gate_backward")

    @torch.library.register_fake("autoselect::soft_top_k_noise_gate")
    def _fake_fused(
        tokens, scores, k_rows, k, temperature, mean, std, factor, seed, step, sample_ids, mask
    ):
        gates = torch.empty_like(
            scores, dtype=gate_dtype(scores), memory_format=torch.contiguous_format
        )
        gated = torch.empty_like(tokens, memory_format=torch.contiguous_format)
        return gated, gates, torch.empty_like(gates)

    @torch.library.register_fake("autoselect::soft_top_k_noise_gate_backward")
    def _fake_fused_backward(
        grad,
        grad_gates,
        tokens,
        logits,
        temperature,
        mean,
        std,
        factor,
        seed,
        step,
        sample_ids,
        token_gradient=True,
    ):
        grad_scores = torch.empty_like(logits, memory_format=torch.contiguous_format)
        return _fake_token_gradient(tokens, token_gradient), grad_scores

    def _setup_fused(ctx, inputs, output):
        tokens, scores, _, _, temperature, *noise, _ = inputs
        logits = output[2]
        ctx.mark_non_differentiable(logits)
        ctx.save_for_backward(tokens, logits, temperature, *noise)
        ctx.dtype = scores.dtype

    def _fused_backward(ctx, grad, grad_gates, _grad_logits):
        needed = ctx.needs_input_grad[0]
        grad_tokens, grad_scores = torch.ops.autoselect.soft_top_k_noise_gate_backward(
            grad, grad_gates, *ctx.saved_tensors, needed
        )
        grad_tokens = grad_tokens if needed else None
        return grad_tokens, grad_scores.to(ctx.dtype), *(None,) * 10

    torch.library.register_autograd(
        "autoselect::soft_top_k_noise_gate", _fused_backward, setup_context=_setup_fused
    )
    differentiable_once("soft_top_k_noise_gate_backward")


def noise_gate(
    tokens: Tensor, gates: Tensor, statistics: NoiseStatistics, noise_key: NoiseKey
) -> Tensor:
    """Return gated tokens, [B, N, D], in the dtype of the tokens.

    Differentiable in tokens and gates. The gradient of a gate grows like 1/sqrt(s) near 0 and
    1/sqrt(1-s) near 1, and is 0 at exactly 0 or 1; train with `soft_top_k_noise_gate`, whose
    gradient is bounded.

    Args:
        tokens: x, [B, N, D]; float32, float64, bfloat16 or float16.
        gates: s in [0, 1], [B, N].
        statistics: mean and covariance of the data set's tokens.
        noise_key: seed, step and samples that the noise depends on.

    Raises:
        ConfigError: shape, dtype or device do not fit, or (on a CPU) a gate is outside 0..1, or std
            or the key are negative.
    """
    if not is_native(tokens.device):
        return noise_gate_reference(tokens, gates, statistics, noise_key)
    check_gates(tokens, gates, statistics)
    return torch.ops.autoselect.noise_gate(
        tokens,
        gates,
        statistics.mean,
        statistics.std,
        statistics.factor,
        *noise_key.tensors(tokens),
    )


def soft_top_k_noise_gate(
    tokens: Tensor,
    scores: Tensor,
    k: int | Tensor,
    temperature: float | Tensor,
    statistics: NoiseStatistics,
    noise_key: NoiseKey,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Apply soft top-K and noise gate at once: (gated tokens [B, N, D], gates [B, N]).

    The backward pass never divides by a gate, and draws the noise again instead of storing it.
    Padded tokens have gate 0: they become noise and get no gradient. Both results are
    differentiable in tokens and scores.

    Args:
        tokens: x, [B, N, D]; float32, float64, bfloat16 or float16.
        scores: importance logits, [B, N].
        k: token budget in 1..N, one for all rows or int64 [B].
        temperature: width of the transition between 0 and 1, in units of the scores; a number or
            a tensor, 0-d.
        statistics: mean and covariance of the data set's tokens.
        noise_key: seed, step and samples that the noise depends on.
        mask: true at valid tokens, bool, [B, N]; all valid when None.

    Raises:
        ConfigError: under the conditions of `soft_top_k` and `noise_gate`.
    """
    if not is_native(tokens.device):
        return soft_top_k_noise_gate_reference(
            tokens, scores, k, temperature, statistics, noise_key, mask
        )
    statistics.check(tokens)
    check_shape("scores", scores, tokens.shape[:2], tokens.device)
    check_scores(scores, mask)
    temperature = check_temperature(temperature, scores.device)
    budget = budget_arguments(check_budget(k, scores))
    gated, gates, _ = torch.ops.autoselect.soft_top_k_noise_gate(
        tokens,
        scores,
        *budget,
        temperature,
        statistics.mean,
        statistics.std,
        statistics.factor,
        *noise_key.tensors(tokens),
        mask,
    )
    return gated, gates
