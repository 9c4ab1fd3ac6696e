"""Philox4x32-10 and Box-Muller: normals that are a pure function of seed, step and position.

Source: Salmon, Moraes, Dror, Shaw, *Parallel Random Numbers: As Easy as 1, 2, 3* (SC 2011).
`csrc/philox.h` computes the same integers on CPU and GPU.

Layout, for the normal of (run seed, step, sample, token, channel):

    stream key = first two words of philox(counter=(step low, step high, 0, STREAM_TAG),
                                           key=(seed low, seed high))
    words      = philox(counter=(channel // 4, token, sample low, sample high), key=stream key)
    normals of channels 4c .. 4c+3 = box_muller(words 0, 1) and box_muller(words 2, 3)
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_INCREMENTS = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10
STREAM_TAG = 0x41535431
WORD = 0xFFFFFFFF

Words4 = tuple[Tensor, Tensor, Tensor, Tensor]
Words2 = tuple[Tensor, Tensor]


def _multiply(multiplier: int, word: Tensor) -> Words2:
    """Return the high and low 32 bits of a 32 x 32 bit product; int64 wraps and keeps all bits."""
    product = word * multiplier
    return (product >> 32) & WORD, product & WORD


def philox4x32(counter: Words4, key: Words2) -> Words4:
    """Compute Philox4x32 with ten rounds.

    Args:
        counter: four int64 tensors that broadcast together, each value in [0, 2**32).
        key: two int64 tensors that broadcast with them, each value in [0, 2**32).
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        high0, low0 = _multiply(MULTIPLIERS[0], c0)
        high1, low1 = _multiply(MULTIPLIERS[1], c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + KEY_INCREMENTS[0]) & WORD, (k1 + KEY_INCREMENTS[1]) & WORD
    return c0, c1, c2, c3


def split_words(value: Tensor) -> Words2:
    """Return the low and high 32 bits of int64 values."""
    return value & WORD, (value >> 32) & WORD


def stream_key(seed: Tensor, step: Tensor, tag: int) -> Words2:
    """Return the key of the draws of one run seed and step; each use has a tag of its own."""
    zero = torch.zeros_like(step)
    return philox4x32((*split_words(step), zero, torch.full_like(step, tag)), split_words(seed))[:2]


def box_muller(first: Tensor, second: Tensor) -> Words2:
    """Compute two float32 standard normals from two 32-bit words.

    `radius = sqrt(-2 ln((first + 1/2) / 2**32))`, `angle = 2 pi second / 2**32`.
    """
    uniform = first.float() * 2.0**-32 + 2.0**-33
    radius = torch.sqrt(-2.0 * torch.log(uniform))
    angle = (second.double() * (2.0 * math.pi * 2.0**-32)).float()
    return radius * torch.cos(angle), radius * torch.sin(angle)


def standard_normals(
    seed: Tensor, step: Tensor, sample_ids: Tensor, num_tokens: int, num_channels: int
) -> Tensor:
    """Draw the standard normals of a batch, float32, [B, N, C].

    Args:
        seed: run seed, int64, 0-d.
        step: training step, int64, 0-d.
        sample_ids: id of each row's sample in the data set, int64, [B].
        num_tokens: N.
        num_channels: C.
    """
    device = sample_ids.device
    stream = stream_key(seed, step, STREAM_TAG)
    blocks = torch.arange((num_channels + 3) // 4, device=device)
    tokens = torch.arange(num_tokens, device=device)[:, None]
    words = philox4x32((blocks, tokens, *split_words(sample_ids[:, None, None])), stream)
    normals = (*box_muller(words[0], words[1]), *box_muller(words[2], words[3]))
    return torch.stack(normals, dim=-1).flatten(-2)[..., :num_channels]
