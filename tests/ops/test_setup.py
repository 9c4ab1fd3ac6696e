"""The build says plainly what it misses, and the sdist carries every source."""

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch
from torch.utils import cpp_extension

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


@pytest.fixture
def gpu_build(monkeypatch, tmp_path):
    """What setup.py builds where there are nvcc and a CUDA build of PyTorch: a distribution."""
    from distutils.core import run_setup

    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "nvcc").touch()
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(cpp_extension, "CUDA_HOME", str(tmp_path))
    monkeypatch.setenv("FORCE_CPU", "0")
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "9.0")
    monkeypatch.chdir(ROOT)
    return run_setup("setup.py", stop_after="init")


def test_no_two_sources_share_an_object(gpu_build):
    """setuptools drops the extension of a source: a.cpp and a.cu would both become a.o."""
    from distutils.ccompiler import new_compiler

    (extension,) = gpu_build.ext_modules
    kernels = {Path(name).stem for name in extension.sources if name.endswith(".cu")}
    assert kernels == {"soft_top_k_kernels", "noise_gate_kernels", "hard_top_k_kernels"}
    compiler = new_compiler()
    compiler.src_extensions += [".cu"]
    objects = compiler.object_filenames(extension.sources)
    assert len(set(objects)) == len(extension.sources)


def test_ninja_accepts_the_plan_of_all_sources(gpu_build, monkeypatch, tmp_path):
    """The file that torch writes for ninja, read by ninja without running anything."""
    if shutil.which("ninja") is None:
        pytest.skip("ninja is not installed")

    class Planned(Exception):
        """The file is written; nothing is to be compiled."""

    def stop(*_arguments, **_options):
        raise Planned

    monkeypatch.setattr(cpp_extension, "_check_cuda_version", lambda *_arguments: None)
    monkeypatch.setattr(cpp_extension, "_run_ninja_build", stop)
    command = gpu_build.get_command_obj("build_ext")
    command.build_temp, command.build_lib = str(tmp_path / "temp"), str(tmp_path / "lib")
    command.ensure_finalized()
    with pytest.raises(Planned):
        command.run()
    plan = subprocess.run(
        ["ninja", "-n", "-v", "-C", command.build_temp], capture_output=True, text=True
    )
    assert plan.returncode == 0, plan.stderr
    compiled = [line for line in plan.stdout.splitlines() if " -c " in line]
    assert len(compiled) == len(gpu_build.ext_modules[0].sources)


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
