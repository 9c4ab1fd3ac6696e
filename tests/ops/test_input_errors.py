"""Bad input is refused with the field, its value and the rule, from Python and from C++."""

from dataclasses import replace

import pytest
import torch

from autoselect.config import ConfigError
from autoselect.ops import checks
from autoselect.ops.diverse_top_k import diverse_top_k, diverse_top_k_reference
from autoselect.ops.hard_top_k import hard_top_k, hard_top_k_reference, select_tokens
from autoselect.ops.noise import NoiseKey, NoiseStatistics
from autoselect.ops.noise_gate import (
    noise_gate,
    noise_gate_reference,
    soft_top_k_noise_gate,
    soft_top_k_noise_gate_reference,
)
from autoselect.ops.soft_top_k import soft_top_k, soft_top_k_reference

B, N, D = 2, 5, 4
NAN_SCORES = torch.tensor([[0.0] * N, [0.0, float("nan"), 0, 0, 0]])


@pytest.mark.parametrize("op", [soft_top_k, soft_top_k_reference])
@pytest.mark.parametrize(
    "change, message",
    [
        ({"scores": NAN_SCORES}, "1 NaN, the first in row 1"),
        ({"scores": torch.zeros(N)}, "must be .batch, tokens."),
        ({"scores": torch.zeros(B, N, dtype=torch.int64)}, "torch.int64"),
        ({"scores": torch.zeros(B, 0)}, "k=2 exceeds the 0 tokens"),
        ({"k": 0}, "k=0 keeps no token; choose 1..5"),
        ({"k": -3}, "k=-3"),
        ({"k": 6}, "k=6 exceeds the 5 tokens of a row; choose 1..5"),
        ({"k": 2.5}, "k=2.5 must be an integer"),
        ({"k": [1, 2]}, r"k=\[1, 2\] must be an integer"),
        ({"k": True}, "k=True must be an integer"),
        ({"k": torch.tensor([1, 6])}, r"k=\[1, 6\]"),
        ({"k": torch.tensor([1.0, 2.0])}, "k has dtype torch.float32"),
        ({"k": torch.tensor([1, 2, 3])}, r"k has shape \(3,\)"),
        ({"temperature": 0.0}, "temperature=0.0 must lie in 1e-30..1e30; the usual range is 0.01"),
        ({"temperature": 1e39}, r"temperature=1e\+39 must lie in 1e-30..1e30"),
        ({"temperature": torch.tensor(1e-40)}, "temperature=.*e-41 must lie in 1e-30..1e30"),
        ({"temperature": 1e-46}, "temperature=1e-46"),
        ({"temperature": -1.0}, "temperature=-1.0"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"temperature": float("inf")}, "temperature=inf"),
        ({"temperature": torch.tensor(-0.5)}, "temperature=-0.5"),
        ({"temperature": torch.ones(B)}, r"temperature has shape \(2,\)"),
        ({"temperature": torch.tensor(0.5, device="meta")}, "temperature is on meta.* are on cpu"),
        ({"temperature": torch.tensor(0.5, requires_grad=True)}, "temperature requires a gradient"),
        ({"mask": torch.ones(B, N + 1, dtype=torch.bool)}, r"mask has shape \(2, 6\)"),
        ({"mask": torch.ones(B, N)}, "mask has dtype torch.float32"),
        ({"mask": torch.ones(B, N, dtype=torch.bool, device="meta")}, "mask is on meta"),
    ],
)
def test_soft_top_k(op, change, message):
    arguments = {"scores": torch.zeros(B, N), "k": 2, "temperature": 0.5, **change}
    with pytest.raises(ConfigError, match=message):
        op(**arguments)


@pytest.mark.parametrize("op", [hard_top_k, hard_top_k_reference])
@pytest.mark.parametrize(
    "scores, k",
    [
        (NAN_SCORES, 2),
        (torch.zeros(B, N), 6),
        (torch.zeros(N), 2),
        (torch.zeros(0, 0), torch.zeros(0).long()),
    ],
)
def test_hard_top_k(op, scores, k):
    with pytest.raises(ConfigError):
        op(scores, k)


X3 = torch.randn(3, N, D, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "op, options",
    [
        (soft_top_k, {"temperature": 0.5}),
        (soft_top_k_reference, {"temperature": 0.5}),
        (hard_top_k, {"width": N}),
        (hard_top_k_reference, {"width": N}),
        (diverse_top_k, {"tokens": X3, "diversity": 0.5, "width": N}),
        (diverse_top_k_reference, {"tokens": X3, "diversity": 0.5, "width": N}),
    ],
)
def test_budgets_count_as_the_nearest_where_they_are_not_refused(op, options, device, monkeypatch):
    if device.type == "cpu":
        if not op.__name__.endswith("reference"):
            pytest.skip("the CPU kernels refuse them")
        monkeypatch.setattr(checks, "values_are_checkable", lambda tensor: False)  # as on a GPU
    if "tokens" in options:
        options = {**options, "tokens": X3.to(device)}
    scores = torch.randn(3, N, device=device)
    found, expected = (
        op(scores=scores, k=torch.tensor(k, device=device), **options)
        for k in ([0, -7, N + 4], [1, 1, N])
    )
    assert torch.equal(found, expected)


def test_select_tokens_refuses_scores_of_other_tokens():
    with pytest.raises(ConfigError, match=r"scores has shape \(2, 6\)"):
        select_tokens(torch.zeros(B, N, D), torch.zeros(B, N + 1), 2)


KEY = NoiseKey(0, 0, torch.arange(B))


def _statistics(**changes):
    return replace(NoiseStatistics(torch.zeros(D), torch.ones(D)), **changes)


GATE_ERRORS = [
    ({"tokens": torch.zeros(B, D)}, "tokens has shape"),
    ({"tokens": torch.zeros(B, N, D, dtype=torch.int32)}, "torch.int32"),
    (
        {"statistics": _statistics(mean=torch.zeros(D + 1))},
        r"mean has shape \(5,\), but must be \(4,\)",
    ),
    ({"statistics": _statistics(std=torch.zeros(1, D))}, "std has shape"),
    ({"statistics": _statistics(std=-torch.ones(D))}, "std must be non-negative"),
    ({"statistics": _statistics(std=torch.zeros(D, device="meta"))}, "std is on meta"),
    ({"statistics": _statistics(std=torch.ones(D, requires_grad=True))}, "std requires a gradient"),
    (
        {"statistics": _statistics(factor=torch.ones(2, D, requires_grad=True))},
        "factor requires a gradient, but gets none; detach it",
    ),
    ({"statistics": _statistics(factor=torch.zeros(65, D))}, "rank 65, but must have 1..64"),
    ({"statistics": _statistics(factor=torch.zeros(3, D + 1))}, "factor has shape"),
    ({"noise_key": NoiseKey(-1, 0, torch.arange(B))}, "seed=-1"),
    ({"noise_key": NoiseKey(0, torch.tensor(-2), torch.arange(B))}, "step=-2 is negative"),
    ({"noise_key": NoiseKey(0, 0.5, torch.arange(B))}, "step=0.5"),
    ({"noise_key": NoiseKey(2**63, 0, torch.arange(B))}, f"seed={2**63} must be an integer in 0.."),
    ({"noise_key": NoiseKey(0, "7", torch.arange(B))}, "step=7 must be an integer"),
    ({"noise_key": NoiseKey(0, 0, torch.tensor([0, -7]))}, r"sample_ids=\[0, -7\] is negative"),
    ({"noise_key": NoiseKey(0, 0, torch.arange(3))}, "sample_ids has shape"),
    ({"noise_key": NoiseKey(0, 0, torch.zeros(B))}, "sample_ids has dtype torch.float32"),
    ({"noise_key": NoiseKey(torch.zeros(1).long(), 0, torch.arange(B))}, "seed has shape"),
]


@pytest.mark.parametrize("op", [soft_top_k_noise_gate, soft_top_k_noise_gate_reference])
@pytest.mark.parametrize(
    "change, message",
    [
        *GATE_ERRORS,
        ({"scores": NAN_SCORES}, "NaN"),
        ({"scores": torch.zeros(B, N + 1)}, r"scores has shape \(2, 6\)"),
        ({"k": 6}, "k=6"),
        ({"temperature": 0}, "temperature=0"),
    ],
)
def test_fused_gate(op, change, message):
    arguments = {"tokens": torch.zeros(B, N, D), "scores": torch.zeros(B, N), "k": 2}
    arguments |= {"temperature": 0.5, "statistics": _statistics()}
    with pytest.raises(ConfigError, match=message):
        op(**{**arguments, "noise_key": KEY, **change})


@pytest.mark.parametrize("op", [noise_gate, noise_gate_reference])
@pytest.mark.parametrize(
    "change, message",
    [
        *GATE_ERRORS,
        ({"gates": torch.full((B, N), 1.5)}, "gates contain 1.5, but must lie in 0..1"),
        ({"gates": torch.full((B, N), float("nan"))}, "gates contain nan"),
        ({"gates": torch.zeros(B, N + 1)}, "gates has shape"),
    ],
)
def test_separate_gate(op, change, message):
    arguments = {"tokens": torch.zeros(B, N, D), "gates": torch.zeros(B, N)}
    arguments |= {"statistics": _statistics(), "noise_key": KEY}
    with pytest.raises(ConfigError, match=message):
        op(**{**arguments, **change})


def _noise(seed=0, ids=(0, 1)):
    channels = (torch.zeros(D), torch.ones(D), None)
    return *channels, torch.tensor(seed), torch.tensor(0), torch.tensor(ids)


X, R, G = torch.zeros(B, N, D), torch.zeros(B, N), torch.full((B, N), 0.5)
TAU = torch.tensor(0.5, dtype=torch.float64)
NATIVE_ERRORS = [
    ("soft_top_k", (NAN_SCORES, None, 2, TAU, None), "row 1 contains NaN"),
    ("soft_top_k", (R, None, 6, TAU, None), "k must be in 1..5, but is 6"),
    ("soft_top_k", (R, torch.tensor([1, 0]), 0, TAU, None), "1..5, but row 1 has 0"),
    ("soft_top_k", (R, torch.tensor([1, 2], dtype=torch.int32), 0, TAU, None), "int64"),
    (
        "soft_top_k",
        (R, None, 2, TAU - 0.5, None),
        "temperature=0 must lie in 1e-30..1e30; the usual",
    ),
    ("soft_top_k", (R, None, 2, TAU * 1e39, None), r"temperature=5e\+38 must lie in 1e-30..1e30"),
    ("soft_top_k", (R, None, 2, TAU * 1e-39, None), "temperature=5e-40 must lie in 1e-30..1e30"),
    ("soft_top_k", (R, None, 2, TAU * torch.nan, None), "temperature=nan must lie in 1e-30..1e30"),
    ("soft_top_k_backward", (R, R, TAU * 1e-46), "temperature=5e-47 must lie in 1e-30..1e30"),
    ("soft_top_k", (R, None, 2, TAU.float(), None), "temperature must be float64"),
    ("soft_top_k", (R, None, 2, TAU, R), "mask must be bool"),
    ("soft_top_k", (R[0], None, 2, TAU, None), "scores must have 2 dimensions"),
    ("soft_top_k_backward", (R, R[:, :2], TAU), "grad_gates must have shape"),
    ("soft_top_k_backward", (R, R.half(), TAU), "logits must be float32 or float64, but are Half"),
    ("noise_gate", (X, G + 1, *_noise()), "gates must lie in 0..1"),
    ("noise_gate", (X, G, *_noise(seed=-1)), "must not be negative, but are -1 and 0"),
    ("noise_gate", (X, G, *_noise(ids=(0, -4))), "row 1 has -4"),
    (
        "noise_gate",
        (X, G, *(noise := _noise())[:1], -noise[1], *noise[2:]),
        "std must not be negative, but channel 0 has -1",
    ),
    ("noise_gate", (X, G[:, :2], *_noise()), "gates must have shape"),
    ("noise_gate_backward", (X[:1], X, G, *_noise()), "grad must have shape"),
    ("noise_gate_backward", (X.double(), X, G, *_noise()), "grad must be Float"),
    ("soft_top_k_noise_gate", (X, R[:1], None, 2, TAU, *_noise(), None), "scores must have shape"),
    ("soft_top_k_noise_gate", (X[..., :2], R, None, 2, TAU, *_noise(), None), "mean must have"),
    ("soft_top_k_noise_gate_backward", (X, None, X, R[:1], TAU, *_noise()), "logits must have"),
    ("soft_top_k_noise_gate_backward", (X, None, X, R.half(), TAU, *_noise()), "but are Half"),
    ("hard_top_k", (NAN_SCORES, 2, None), "row 1 contains NaN"),
    ("hard_top_k", (R, 0, None), "k must be in 1..5, but is 0"),
    ("marginal_order", (NAN_SCORES, torch.zeros(B, N, N), 2, 0.5, None), "contain NaN"),
    ("marginal_order", (R, torch.zeros(B, N, N), 2, 1e39, None), "weight must be in 0..8e"),
    ("select_tokens", (X, R[:, :3], 2, None), "scores must have shape"),
    ("select_tokens_backward", (X, torch.full((B, N), N), N), "one is 5"),
    ("select_tokens_backward", (X, torch.full((B, N), -2), N), "one is -2"),
    ("select_tokens_backward", (X, torch.zeros(B, N), N), "indices must be int64"),
]


@pytest.mark.parametrize("operator, arguments, message", NATIVE_ERRORS)
def test_native_operators_check_for_themselves(native, operator, arguments, message):
    with pytest.raises((ValueError, TypeError, IndexError), match=message):
        getattr(torch.ops.autoselect, operator)(*arguments)
