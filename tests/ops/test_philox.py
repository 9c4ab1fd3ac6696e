"""The generator gives the published integers, in PyTorch and in C++, and standard normals."""

import math

import pytest
import torch

from autoselect.ops.philox import box_muller, philox4x32, standard_normals

FULL = 0xFFFFFFFF
# The known-answer file kat_vectors of Random123, Philox4x32 with 10 rounds: counter, key, words.
PUBLISHED = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((FULL,) * 4, (FULL,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def _words(counter, key):
    counter = tuple(torch.tensor(word) for word in counter)
    key = tuple(torch.tensor(word) for word in key)
    return tuple(int(word) for word in philox4x32(counter, key))


@pytest.mark.parametrize("counter, key, expected", PUBLISHED)
def test_reference_gives_the_published_words(counter, key, expected):
    assert _words(counter, key) == expected


@pytest.mark.parametrize("counter, key, expected", PUBLISHED)
def test_native_gives_the_published_words(native, counter, key, expected):
    assert native.philox4x32(*counter, *key) == expected


def test_box_muller_by_hand():
    """u = 1/2 gives radius sqrt(2 ln 2); a quarter turn puts it on the second axis."""
    half, quarter = torch.tensor([2**31]), torch.tensor([2**30])
    cosine, sine = box_muller(half, quarter)
    assert abs(float(cosine)) < 1e-6
    assert abs(float(sine) - math.sqrt(2 * math.log(2))) < 1e-6


def test_extreme_words_give_finite_normals():
    ends = torch.tensor([0, 1, FULL - 1, FULL])
    first, second = (grid.flatten() for grid in torch.meshgrid(ends, ends, indexing="ij"))
    for normals in box_muller(first, second):
        assert normals.isfinite().all() and normals.abs().max() < 7


def test_layout_is_the_documented_one():
    """The normal of (seed, step, sample, token, channel) is computed word by word."""
    seed, step, sample, token, channel = (1 << 40) + 5, 3, (1 << 33) + 2, 4, 9
    tag = 0x41535431
    key = _words((step, 0, 0, tag), (seed & FULL, seed >> 32))[:2]
    words = _words((channel // 4, token, sample & FULL, sample >> 32), key)
    expected = box_muller(torch.tensor(words[0]), torch.tensor(words[1]))[1]
    normals = standard_normals(
        torch.tensor(seed), torch.tensor(step), torch.tensor([0, sample]), token + 1, channel + 2
    )
    assert normals[1, token, channel] == expected
