"""The build says plainly what it misses, and the sdist carries every source."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


def _setup(**environment):
    return subprocess.run(
        [sys.executable, "setup.py", "--version"],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )


def test_a_missing_compiler_is_named():
    run = _setup(CXX="no-such-compiler")
    assert run.returncode != 0
    assert "no C++ compiler found (looked for 'no-such-compiler')" in run.stderr
    assert "Traceback" not in run.stderr


@pytest.mark.skipif(torch.version.cuda is not None, reason="this PyTorch can build CUDA")
def test_forced_cuda_without_a_cuda_torch_is_refused():
    run = _setup(FORCE_CUDA="1")
    assert run.returncode != 0
    assert "FORCE_CUDA=1, but torch" in run.stderr and "is built without CUDA" in run.stderr


def test_every_native_source_is_in_the_manifest():
    """`graft csrc` takes the whole folder; no source lies elsewhere."""
    assert "graft csrc" in (ROOT / "MANIFEST.in").read_text().splitlines()
    suffixes = {".cpp", ".cu", ".h", ".cuh", ".inl"}
    elsewhere = [
        path
        for path in (ROOT / "autoselect").rglob("*")
        if path.suffix in suffixes and path.is_file()
    ]
    assert elsewhere == []
