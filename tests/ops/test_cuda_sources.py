"""Every CUDA file compiles for the usual architectures, without spills, and so does the glue."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

CSRC = Path(__file__).parents[2] / "csrc"
ARCHITECTURES = (75, 80, 90, 100, 120)
KERNELS = sorted(path.name for path in (CSRC / "cuda").glob("*.cu"))
GLUE = sorted(path.name for path in (CSRC / "cuda").glob("*.cpp"))


def _nvcc() -> str:
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("nvcc is not installed: CUDA sources are not compiled here")
    return nvcc


def _compile(command):
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout + run.stderr


@pytest.mark.parametrize("source", KERNELS)
def test_kernels_compile_without_spills(source, tmp_path):
    targets = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in ARCHITECTURES]
    flags = [
        "-std=c++17",
        "-O3",
        "--expt-relaxed-constexpr",
        "-Xptxas",
        "-v",
        "-Werror=all-warnings",
    ]
    output = tmp_path / "kernel.o"
    log = _compile(
        [
            _nvcc(),
            *flags,
            *targets,
            f"-I{CSRC}",
            "-c",
            str(CSRC / "cuda" / source),
            "-o",
            str(output),
        ]
    )
    for arch in ARCHITECTURES:
        assert f"'sm_{arch}'" in log
    spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", log)
    assert len(spills) >= len(ARCHITECTURES)
    assert all(pair == ("0", "0") for pair in spills), log


@pytest.mark.slow
def test_glue_compiles(tmp_path):
    """All files are one source here, because the headers of PyTorch cost seconds each time.

    A CPU build of PyTorch lacks one generated CUDA header, which is an empty file here.
    """
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++ on this machine")
    toolkit = Path(_nvcc()).resolve().parents[1] / "include"
    if not (toolkit / "cuda_runtime.h").exists():
        toolkit = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "include"
    generated = tmp_path / "c10" / "cuda" / "impl"
    generated.mkdir(parents=True)
    (generated / "cuda_cmake_macros.h").write_text("#pragma once\n")
    torch_headers = Path(torch.__file__).parent / "include"
    if not (torch_headers / "c10" / "cuda" / "CUDAGuard.h").exists():
        pytest.skip("this PyTorch ships no CUDA headers")
    folders = [torch_headers, torch_headers / "torch/csrc/api/include", toolkit]
    if not (torch_headers / "c10/cuda/impl/cuda_cmake_macros.h").exists():
        folders.insert(0, tmp_path)
    includes = [f"-I{folder}" for folder in folders]
    flags = ["-std=c++20", "-fsyntax-only", "-Wall", "-Werror"]
    source = tmp_path / "glue.cpp"
    source.write_text("".join(f'#include "cuda/{name}"\n' for name in GLUE))
    _compile([compiler, *flags, *includes, f"-I{CSRC}", str(source)])


NAMES = re.compile(r"\b(?:struct|class|using|enum)\s+(\w+)|\b(\w+)\s*\(|\bconstexpr\s+\w+\s+(\w+)")
"""What a header may declare: a type, a function or a constant."""


def _code(file):
    return re.sub(r"//.*", "", (CSRC / file).read_text())


def _headers(file):
    """Return the headers of this project that a file includes, directly or not."""
    direct = re.findall(r'^#include "(.+)"$', _code(file), re.MULTILINE)
    return set(direct).union(*map(_headers, direct))


def _declared(headers):
    found = (names for header in headers for names in NAMES.findall(_code(header)))
    return {name for names in found for name in names if name}


@pytest.mark.parametrize("source", GLUE)
def test_glue_includes_what_it_uses(source):
    """In one source with the others, a file sees their headers as well."""
    file = f"cuda/{source}"
    own = _headers(file)
    lent = set().union(*(_headers(f"cuda/{name}") for name in GLUE)) - own
    missing = set(re.findall(r"\w+", _code(file))) & (_declared(lent) - _declared(own))
    assert not missing
    assert "checks.h" in own, "which brings all of ATen"
    assert "#include <torch/library.h>\n" in _code(file)
