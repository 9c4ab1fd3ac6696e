"""Fixtures of the operator tests: devices and noise keys."""

import pytest
import torch

from autoselect.ops._native import EXTENSION, HAS_CUDA
from autoselect.ops.noise import NoiseKey


@pytest.fixture(params=["cpu", "cuda"])
def device(request):
    """Return each device in turn; the CUDA case needs a GPU and a CUDA build."""
    if request.param == "cuda":
        if not torch.cuda.is_available():
            pytest.skip("no GPU on this machine")
        if not HAS_CUDA:
            pytest.skip("autoselect._C is built without CUDA")
    return torch.device(request.param)


@pytest.fixture
def native():
    """Return the extension; skip the test if it is not built."""
    if EXTENSION is None:
        pytest.skip("autoselect._C is not built")
    return EXTENSION


@pytest.fixture
def make_key():
    """Return a function that makes a noise key for a batch size and a device."""

    def make(batch, device="cpu", seed=1234, step=7, first=0):
        return NoiseKey(seed, step, torch.arange(first, first + batch, device=device))

    return make
