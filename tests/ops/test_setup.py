"""The build says plainly what it misses, and the sdist carries every source."""

import os
import re
import runpy
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


COMPILER = """#!/bin/bash
for word; do
    text=
    if [[ "$word" == *.cpp ]]; then text="$(<"$word")"; fi
    if [[ "$word" == {refused} || "$text" == *{included}* ]]; then
        echo "probe.cpp:1:10: fatal error: {refused} {included}" >&2
        exit 1
    fi
done
exec c++ "$@"
"""
"""A compiler without one flag or one header."""


@pytest.mark.parametrize(
    ("refused", "included", "said"),
    [
        ("-std=c++20", "NOTHING", "with C++20 (probe.cpp:1:10: fatal error: -std=c++20"),
        ("-fopenmp", "NOTHING", "with OpenMP (probe.cpp:1:10: fatal error: -fopenmp"),
        ("nothing", "omp.h", "with OpenMP (probe.cpp:1:10: fatal error: nothing omp.h)"),
        ("nothing", "Python.h", "with Python.h (probe.cpp:1:10: fatal error: nothing Python.h)"),
    ],
)
def test_what_a_compiler_lacks_is_named_before_anything_is_compiled(
    build, monkeypatch, tmp_path, refused, included, said
):
    compiler = tmp_path / "a compiler"
    compiler.write_text(COMPILER.format(refused=refused, included=included))
    compiler.chmod(0o755)
    command = build(None, FORCE_CPU="1").get_command_obj("build_ext")
    command.build_temp, command.build_lib = str(tmp_path / "temp"), str(tmp_path / "lib")
    command.ensure_finalized()
    monkeypatch.setenv("CXX", f"'{compiler}' -Wall")
    with pytest.raises(SystemExit) as stopped:
        command.run()
    assert said in str(stopped.value) and "'-Wall" not in str(stopped.value)
    assert re.search("CXX|apt-get install python3", str(stopped.value))
    assert not (tmp_path / "temp").exists()


def test_a_missing_ninja_is_named(build, monkeypatch):
    monkeypatch.setattr(cpp_extension, "is_ninja_available", lambda: False)
    command = build(None, FORCE_CPU="1").get_command_obj("build_ext")
    with pytest.raises(SystemExit, match="needs ninja.*pip install ninja"):
        command.run()


@pytest.mark.skipif(torch.version.cuda is not None, reason="this PyTorch can build CUDA")
def test_forced_cuda_without_a_cuda_torch_is_refused():
    run = _setup(FORCE_CUDA="1")
    assert run.returncode != 0
    assert "FORCE_CUDA=1, but torch" in run.stderr and "is built without CUDA" in run.stderr


NVCC = """#!/bin/sh
case $1 in
  --version) echo "Cuda compilation tools, release {version}, V{version}.1" ;;
  --list-gpu-arch) printf "%s\\n" {known} ;;
esac
"""


@pytest.fixture
def build(monkeypatch, tmp_path):
    """Return the extension that setup.py builds for PyTorch with CUDA 13.0 and some toolkit."""
    from distutils.core import run_setup

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(cpp_extension, "CUDA_HOME", str(tmp_path))
    monkeypatch.delenv("FORCE_CPU", raising=False)
    monkeypatch.delenv("FORCE_CUDA", raising=False)
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    monkeypatch.chdir(ROOT)

    def run(
        version="13.0",
        known="compute_80 compute_86 compute_90 compute_100",
        headers=True,
        **variables,
    ):
        if version is not None:
            (tmp_path / "bin").mkdir(exist_ok=True)
            nvcc = tmp_path / "bin" / "nvcc"
            nvcc.write_text(NVCC.format(version=version, known=known))
            nvcc.chmod(0o755)
        if headers:
            (tmp_path / "include").mkdir(exist_ok=True)
            (tmp_path / "include" / "cuda_runtime.h").touch()
        # setup.py leaves TORCH_CUDA_ARCH_LIST behind, for torch to read.
        with monkeypatch.context() as patched:
            patched.setenv("TORCH_CUDA_ARCH_LIST", variables.pop("TORCH_CUDA_ARCH_LIST", ""))
            for name, value in variables.items():
                patched.setenv(name, value)
            return run_setup("setup.py", stop_after="init")

    return run


@pytest.fixture
def gpu_build(build, monkeypatch):
    """Return the distribution that setup.py builds with nvcc and a CUDA build of PyTorch."""
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "9.0")
    return build(TORCH_CUDA_ARCH_LIST="9.0")


def architectures(distribution):
    """Return the architectures that an extension was built for; None without CUDA code."""
    (extension,) = distribution.ext_modules
    named = dict(extension.define_macros).get("AUTOSELECT_CUDA_ARCHITECTURES")
    assert (named is not None) == any(name.endswith(".cu") for name in extension.sources)
    return None if named is None else named.strip('"')


def test_the_usual_architectures_that_nvcc_knows_are_built_and_later_gpus_get_ptx(build):
    assert architectures(build()) == "8.0;9.0;10.0+PTX"
    new = " ".join(f"compute_{number}" for number in (75, 80, 86, 90, 100, 110, 103, 120, 121))
    assert architectures(build(known=new)) == "7.5;8.0;9.0;10.0;12.0+PTX"
    assert architectures(build(TORCH_CUDA_ARCH_LIST="8.6")) == "8.6"


def test_visible_gpus_are_built_for(build, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda i: ((8, 6), (12, 0))[i])
    assert architectures(build()) == "8.0;8.6;9.0;10.0+PTX"


@pytest.mark.parametrize(
    ("version", "said"),
    [("12.4", "is CUDA 12.4, but torch .* is built with CUDA 13.0"), (None, "has no bin/nvcc")],
    ids=["another version", "no nvcc"],
)
def test_a_toolkit_that_does_not_fit_is_named_and_the_cpu_is_built_for(
    build, capfd, monkeypatch, tmp_path, version, said
):
    assert architectures(build(version)) is None
    (line,) = [line for line in capfd.readouterr().err.splitlines() if "autoselect:" in line]
    assert re.search(f"for the CPU alone: CUDA_HOME={tmp_path} {said}", line)
    monkeypatch.setenv("FORCE_CUDA", "1")
    monkeypatch.setattr(sys, "argv", ["setup.py", "--version"])
    with pytest.raises(SystemExit, match=f"FORCE_CUDA=1, but CUDA_HOME=.* {said}"):
        runpy.run_path("setup.py", run_name="__main__")


def test_an_nvcc_without_the_headers_of_its_toolkit_is_named_and_the_cpu_is_built_for(
    build, capfd, tmp_path
):
    assert architectures(build(headers=False)) is None
    (line,) = [line for line in capfd.readouterr().err.splitlines() if "autoselect:" in line]
    assert f"CUDA_HOME={tmp_path} has no include/cuda_runtime.h (set CUDA_HOME" in line


def test_no_two_sources_share_an_object(gpu_build):
    """setuptools drops the extension of a source: a.cpp and a.cu would both become a.o."""
    from distutils.ccompiler import new_compiler

    (extension,) = gpu_build.ext_modules
    kernels = {Path(name).stem for name in extension.sources if name.endswith(".cu")}
    operators = ("soft_top_k", "noise_gate", "hard_top_k", "diverse_top_k")
    assert kernels == {f"{name}_kernels" for name in operators}
    compiler = new_compiler()
    compiler.src_extensions += [".cu"]
    objects = compiler.object_filenames(extension.sources)
    assert len(set(objects)) == len(extension.sources)


def test_ninja_accepts_the_plan_of_all_sources(gpu_build, monkeypatch, tmp_path):
    """The file that torch writes for ninja, read by ninja without running anything."""
    if shutil.which("ninja") is None:
        pytest.skip("ninja is not installed")

    class Planned(Exception):
        """Raised after the file is written, because nothing is to be compiled."""

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
