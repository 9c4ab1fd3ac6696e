"""The build says plainly what it misses, and the sdist carries every source."""

import os
import shutil
import subprocess
import sys
import tarfile
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


def test_the_sdist_carries_everything_that_an_installation_needs(tmp_path):
    """Every source, template and weight that the repository tracks under the package and csrc."""
    tree = tmp_path / "tree"
    tracked = subprocess.run(
        ["git", "ls-files", "autoselect", "csrc", "configs", "*.toml", "setup.py", "*.in"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    ).stdout.split()
    if not tracked:
        pytest.skip("not a git checkout")
    for name in [*tracked, "README.md", "LICENSE", "requirements.lock", "Makefile"]:
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, tree / name)
    environment = {**os.environ, "FORCE_CPU": "1"}
    command = [sys.executable, "setup.py", "-q", "sdist", "--dist-dir", str(tmp_path)]
    subprocess.run(command, cwd=tree, env=environment, check=True, capture_output=True)
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    assert set(tracked) <= packed
