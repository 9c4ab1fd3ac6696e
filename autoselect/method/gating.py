"""Gates that scores control in training: the paper's noise gate and its alternatives.

Each formula takes the gates `s` of soft top-K, [I, N], which sum to K, and tokens `x`, [I, N, D]:

    noise             mu + sqrt(s) (x - mu) + sqrt(1 - s) L eps     the paper's form
    zero_fill         sqrt(s) x                                     the same amplitude, no noise
    multiplicative    s x
    straight_through  h x + (1 - h) (mu + L eps), h = hard top-K    gradient of s in place of h's
    gumbel            the same, s and h of scores + tau g, g standard Gumbel noise
    none              x                                             for soft removal alone

Source of the first: AutoSelect (arXiv 2603.07135), with N(0, I) on normalised tokens
(`gate.noise=isotropic`); mu and L of the data set are ours. The others are common alternatives. Any
of them can be combined with coverage (`coverage.py`).

Dimension letters: I images, N visual tokens, D width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from autoselect.config import GateConfig, GateKind
from autoselect.method.coverage import covered_scores
from autoselect.method.scorer import standardise
from autoselect.method.statistics import TokenStatistics
from autoselect.ops.hard_top_k import hard_top_k
from autoselect.ops.noise import NoiseKey
from autoselect.ops.noise_gate import noise_gate, soft_top_k_noise_gate
from autoselect.ops.philox import philox4x32, split_words, stream_key
from autoselect.ops.soft_top_k import soft_top_k

GUMBEL_TAG = 0x41535433
"""Separates these draws from those of the gate's noise, see `autoselect.ops.philox`."""
HARD: tuple[GateKind, ...] = ("straight_through", "gumbel")
"""Kinds whose gates are 0 or 1 in the forward pass."""


@dataclass(frozen=True)
class GateSetting:
    """What the gates of one optimiser step are made with.

    Attributes:
        token_budget: K.
        temperature: tau of soft top-K, in units of the scores.
        seed: run seed; it and the step key the noise.
        step: number of the optimiser step.
    """

    token_budget: int
    temperature: float
    seed: int
    step: int


@dataclass(frozen=True)
class Gated:
    """Tokens after the gates, [I, N, D], and the gates, [I, N]."""

    tokens: Tensor
    gates: Tensor


def gate_scores(
    config: GateConfig,
    scores: Tensor,
    tokens: Tensor,
    token_budget: int,
    mask: Tensor | None,
) -> Tensor:
    """Return what soft top-K takes, [I, N], float32: scores standardised, and less what is covered.

    Args:
        scores: importance logits, [I, N].
        tokens: visual tokens that were scored, [I, N, D].
        token_budget: K; images with fewer tokens keep all.
        mask: true at real tokens, [I, N].
    """
    if config.standardise:
        scores = standardise(scores, mask)
    if config.coverage:
        budget = min(token_budget, scores.shape[1])
        scores = covered_scores(scores, tokens, budget, config.coverage, mask)
    return scores.float()


def gate_tokens(
    kind: GateKind,
    tokens: Tensor,
    scores: Tensor,
    setting: GateSetting,
    statistics: TokenStatistics,
    image_ids: Tensor,
    mask: Tensor | None = None,
) -> Gated:
    """Compute the gates of scores and apply them to tokens.

    Args:
        kind: name of the formula.
        tokens: x, [I, N, D].
        scores: importance logits, [I, N].
        setting: budget, temperature, seed and step; images with fewer tokens than K keep all.
        statistics: mean and covariance of the data set's tokens, and whether each token is
            normalised.
        image_ids: ids of the images in the data set, which key the noise, int64, [I].
        mask: true at real tokens, [I, N].
    """
    key = NoiseKey(setting.seed, setting.step, image_ids)
    tokens = statistics.fitted(tokens)
    temperature, token_budget = setting.temperature, min(setting.token_budget, tokens.shape[1])
    if kind == "noise":
        gated, gates = soft_top_k_noise_gate(
            tokens, scores, token_budget, temperature, statistics, key, mask
        )
        return Gated(gated, gates)
    if kind == "gumbel":
        scores = scores + temperature * gumbel_noise(scores, key)
    gates = soft_top_k(scores, token_budget, temperature, mask)
    share = gates[..., None].to(tokens.dtype)
    if kind == "multiplicative":
        return Gated(share * tokens, gates)
    if kind == "zero_fill":
        return Gated(amplitude(gates)[..., None].to(tokens.dtype) * tokens, gates)
    if kind in HARD:
        filler = noise_gate(tokens, torch.zeros_like(gates), statistics, key)
        kept = straight_through(scores, gates, token_budget, mask)[..., None].to(tokens.dtype)
        return Gated(kept * tokens + (1 - kept) * filler, gates)
    assert kind == "none"
    return Gated(tokens, gates)


def gumbel_noise(scores: Tensor, key: NoiseKey) -> Tensor:
    """Return standard Gumbel noise [I, N] that depends on seed, step, image and token alone."""
    return -(-uniforms(scores, key).log()).log().to(scores.dtype)


def uniforms(scores: Tensor, key: NoiseKey) -> Tensor:
    """Draw a uniform number in (0, 1) for each token, [I, N], float64.

    Counters are those of the noise with another tag, at channel 0 of each token.
    """
    seed, step, sample_ids = key.tensors(scores)
    stream = stream_key(seed, step, GUMBEL_TAG)
    channel = torch.zeros_like(step)
    places = torch.arange(scores.shape[1], device=scores.device)[None]
    drawn = philox4x32((channel, places, *split_words(sample_ids[:, None])), stream)[0]
    return (drawn.double() + 0.5) * 2.0**-32


def amplitude(gates: Tensor) -> Tensor:
    """Return sqrt(s), with gradient 0 for gates of exactly 0."""
    open_gates = gates > 0
    return torch.where(open_gates, gates, 1.0).sqrt() * open_gates


def straight_through(
    scores: Tensor, gates: Tensor, token_budget: int, mask: Tensor | None
) -> Tensor:
    """Return 1 at the K best tokens and 0 elsewhere, [I, N], with the gradient of soft gates."""
    hard = open_at(hard_top_k(scores.detach(), token_budget, mask), gates.shape[-1])
    return hard.to(gates.dtype) + gates - gates.detach()


def open_at(positions: Tensor, count: int) -> Tensor:
    """Return gates of 1 at `positions` [I, K] and 0 elsewhere, [I, N]; -1 stands for nothing."""
    places = positions.where(positions >= 0, count)
    gates = torch.zeros(len(positions), count + 1, device=positions.device)
    return gates.scatter(1, places, 1.0)[:, :count]
