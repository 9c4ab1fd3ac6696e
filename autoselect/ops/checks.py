"""Checks of the operators' arguments, with the messages for users."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import SupportsIndex

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from autoselect.config import ConfigError, bounds

FLOAT_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def values_are_checkable(tensor: Tensor) -> bool:
    """Return True if reading values is free: on a CPU, outside of tracing.

    On a GPU it would wait for the device and break CUDA graphs; there the kernels stay in bounds
    and let NaN through to the loss.
    """
    if tensor.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    return not isinstance(tensor, FakeTensor)


def check_float(field: str, tensor: Tensor, dims: str, ndim: int) -> None:
    """Raise ConfigError unless a tensor has `ndim` dimensions and a floating-point dtype."""
    if tensor.ndim != ndim:
        raise ConfigError(
            f"{field} has shape {tuple(tensor.shape)}, but must be {dims} ({ndim} dimensions); "
            "reshape it"
        )
    if tensor.dtype not in FLOAT_DTYPES:
        raise ConfigError(
            f"{field} has dtype {tensor.dtype}, but must be float32, float64, bfloat16 or float16; "
            "convert it"
        )


def check_shape(field: str, tensor: Tensor, shape: Sequence[int], device: torch.device) -> None:
    """Raise ConfigError if a tensor has another shape or is on another device."""
    if tuple(tensor.shape) != tuple(shape):
        raise ConfigError(
            f"{field} has shape {tuple(tensor.shape)}, but must be {tuple(shape)} to fit the other "
            "arguments"
        )
    if tensor.device != device:
        raise ConfigError(
            f"{field} is on {tensor.device}, but the other arguments are on {device}; move it"
        )


def check_constant(field: str, tensor: Tensor) -> None:
    """Raise ConfigError if autograd expects a gradient that the operators do not compute."""
    if tensor.requires_grad and torch.is_grad_enabled():
        raise ConfigError(f"{field} requires a gradient, but gets none; detach it")


def check_mask(mask: Tensor, shape: Sequence[int], device: torch.device) -> None:
    """Raise ConfigError unless a mask is bool, [B, N], on the device of the other arguments."""
    check_shape("mask", mask, shape, device)
    if mask.dtype != torch.bool:
        raise ConfigError(
            f"mask has dtype {mask.dtype}, but must be torch.bool (true at valid tokens); "
            "convert it"
        )


def check_scores(scores: Tensor, mask: Tensor | None) -> None:
    """Raise ConfigError unless scores are [B, N] without NaN at valid tokens; mask bool, [B, N]."""
    check_float("scores", scores, "[batch, tokens]", 2)
    if mask is not None:
        check_mask(mask, scores.shape, scores.device)
    if values_are_checkable(scores):
        nan = torch.isnan(scores.detach())
        if mask is not None:
            nan = nan & mask
        if nan.any():
            row = int(nan.any(-1).nonzero()[0])
            raise ConfigError(
                f"scores contain {int(nan.sum())} NaN, the first in row {row}; scores of valid "
                "tokens must be numbers: look for a diverged Scorer or a NaN feature"
            )


def check_budget(k: int | Tensor, scores: Tensor) -> int | Tensor:
    """Return the budget as an integer or as int64 [B], after checking that it is in 1..N."""
    batch, num_tokens = scores.shape
    if isinstance(k, Tensor):
        check_shape("k", k, (batch,), scores.device)
        if k.is_floating_point() or k.is_complex() or k.dtype == torch.bool:
            raise ConfigError(f"k has dtype {k.dtype}, but must hold integers; convert it to int64")
        if values_are_checkable(k) and bool(((k < 1) | (k > num_tokens)).any()):
            raise ConfigError(
                f"k={k.tolist()} leaves the range of the {num_tokens} tokens of a row; "
                f"choose 1..{num_tokens}"
            )
        return k.to(torch.int64)
    return check_count(k, num_tokens)


def check_row_budgets(
    k: int | Tensor, scores: Tensor, width: int | None
) -> tuple[Tensor | None, int]:
    """Return the budgets (int64 [B], or None if all rows have one) and the number of columns.

    Args:
        k: one budget, or int64 [B].
        scores: importance logits, [B, N].
        width: columns of the result if `k` is a tensor, at least its largest value; None reads that
            value, on a CPU.
    """
    k = check_budget(k, scores)
    if not isinstance(k, Tensor):
        if width is not None and width != k:
            raise ConfigError(f"width={width} does not fit k={k}; give it with a tensor k alone")
        return None, k
    readable = values_are_checkable(k)
    largest = max(k.tolist(), default=1) if readable else None
    if width is None:
        if largest is None:
            raise ConfigError(
                "width is missing: the largest value of a tensor k cannot be read here without "
                "waiting for the device; give the number of columns"
            )
        return k, check_count(largest, scores.shape[1])
    width = check_count(width, scores.shape[1])
    if largest is not None and largest > width:
        raise ConfigError(f"width={width} is below the largest k={largest}; give at least that")
    return k, width


def check_count(k: int, num_tokens: int) -> int:
    """Return the budget as an integer, after checking that it is in 1..N."""
    known = isinstance(k, (int, torch.SymInt))  # first, as a protocol is slow to ask for
    if isinstance(k, bool) or not (known or isinstance(k, SupportsIndex)):
        raise ConfigError(f"k={k!r} must be an integer number of tokens; choose 1..{num_tokens}")
    if not known:  # an integer of NumPy would end as a number in a compiled graph
        k = operator.index(k)
    if k < 1:
        raise ConfigError(f"k={k} keeps no token; choose 1..{num_tokens}")
    if k > num_tokens:
        raise ConfigError(f"k={k} exceeds the {num_tokens} tokens of a row; choose 1..{num_tokens}")
    return k


def check_temperature(temperature: float | Tensor, device: torch.device) -> Tensor:
    """Return the temperature as a float64 tensor, 0-d, after checking it: 1e-30..1e30.

    A compiled graph takes a tensor as an input; it would be compiled again for every new number of
    an annealed temperature. A number becomes a CPU tensor, which kernels get as a launch argument.

    Args:
        temperature: a number or a tensor, 0-d, on the CPU or on `device`.
        device: where the other arguments are.
    """
    if isinstance(temperature, Tensor):
        if temperature.ndim != 0 or not temperature.is_floating_point():
            raise ConfigError(
                f"temperature has shape {tuple(temperature.shape)} and dtype {temperature.dtype}, "
                "but must be one floating-point number; use a float or a 0-d tensor"
            )
        if temperature.device.type != "cpu" and temperature.device != device:
            raise ConfigError(
                f"temperature is on {temperature.device}, but the other arguments are on {device}; "
                "move it, or use a float"
            )
        check_constant("temperature", temperature)
        value = temperature.detach().double()
    else:
        value = torch.full((), temperature, dtype=torch.float64, device="cpu")
    if values_are_checkable(value):
        bounds.temperature("temperature", value.item())
    return value
