"""Files of tensors: what is written comes back, and others may read it as the umask says."""

import os
import stat

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from autoselect.files.tensors import read_tensors, write_tensors

TENSORS = {"a": torch.arange(6.0).view(2, 3).t(), "b": torch.ones(2, dtype=torch.bfloat16)}


def test_tensors_come_back(tmp_path):
    write_tensors(tmp_path / "x.safetensors", TENSORS)
    for found in (read_tensors(tmp_path / "x.safetensors"), load_file(tmp_path / "x.safetensors")):
        assert found.keys() == TENSORS.keys()
        assert all(torch.equal(found[name], own) for name, own in TENSORS.items())
        assert found["b"].dtype == torch.bfloat16


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o027, 0o640)])
def test_permissions_follow_the_umask(tmp_path, mask, mode):
    before = os.umask(mask)
    try:
        write_tensors(tmp_path / "x.safetensors", TENSORS)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "x.safetensors").stat().st_mode) == mode


def test_a_read_file_is_not_mapped_and_may_be_changed(tmp_path):
    write_tensors(tmp_path / "x.safetensors", TENSORS)
    found = read_tensors(tmp_path / "x.safetensors")
    assert str(tmp_path) not in open("/proc/self/maps").read()
    found["a"].zero_()
    assert torch.equal(read_tensors(tmp_path / "x.safetensors")["a"], TENSORS["a"])


def test_a_damaged_file_is_refused(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(b"not tensors")
    with pytest.raises(SafetensorError):
        read_tensors(tmp_path / "x.safetensors")
