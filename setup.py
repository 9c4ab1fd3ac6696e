"""Builds the native extension `autoselect._C`; everything else is in pyproject.toml.

Environment:
    FORCE_CPU=1: leave CUDA out. FORCE_CUDA=1: fail when CUDA cannot be built.
    TORCH_CUDA_ARCH_LIST: CUDA architectures, "8.0;9.0;10.0" by default.
    AUTOSELECT_SANITIZE=1: build the CPU kernels with AddressSanitizer and UBSan.
    MAX_JOBS: parallel compiler processes.
"""

import os
import re
import shutil
from pathlib import Path

import torch
from setuptools import setup
from torch.utils import cpp_extension

ROOT = Path(__file__).parent
CUDA_ARCHITECTURES = "8.0;9.0;10.0"


def flag(name: str) -> bool:
    """Whether an environment switch is on."""
    return os.environ.get(name, "0") not in ("", "0")


def package_version() -> str:
    """The version, read without importing the package."""
    text = (ROOT / "autoselect" / "__init__.py").read_text()
    found = re.search(r'^__version__ = "(.+)"$', text, re.MULTILINE)
    assert found, "autoselect/__init__.py states no __version__"
    return found.group(1)


def require_compiler() -> None:
    """Stop with a plain message when there is no C++ compiler."""
    compiler = os.environ.get("CXX", "c++").split()[0]
    if shutil.which(compiler) is None:
        raise SystemExit(
            f"autoselect: no C++ compiler found (looked for {compiler!r}). Install one, for "
            "example with `apt-get install g++`, or name it in CXX."
        )


def wants_cuda() -> bool:
    """CUDA needs nvcc and a CUDA build of torch; a visible GPU is not needed."""
    if flag("FORCE_CPU"):
        return False
    has_nvcc = cpp_extension.CUDA_HOME is not None and (
        Path(cpp_extension.CUDA_HOME, "bin", "nvcc").exists() or shutil.which("nvcc") is not None
    )
    missing = []
    if torch.version.cuda is None:
        missing.append(f"torch {torch.__version__} is built without CUDA")
    if not has_nvcc:
        missing.append("nvcc is not found (set CUDA_HOME)")
    if missing and flag("FORCE_CUDA"):
        raise SystemExit(f"autoselect: FORCE_CUDA=1, but {' and '.join(missing)}.")
    return not missing


def extension():
    """The extension with its sources and flags."""
    require_compiler()
    cuda = wants_cuda()
    sources = sorted(path for path in Path("csrc").glob("*.cpp"))
    define = [("AUTOSELECT_VERSION", f'"{package_version()}"')]
    # No contraction: every instruction set computes the same bits.
    cxx = ["-O3", "-g0", "-std=c++20", "-fopenmp", "-ffp-contract=off", "-fno-math-errno"]
    cxx += ["-fno-trapping-math", "-Wall"]
    link = ["-fopenmp"]
    if flag("AUTOSELECT_SANITIZE"):
        sanitize = ["-fsanitize=address,undefined", "-fno-sanitize=vptr"]
        cxx += [*sanitize, "-fno-sanitize-recover=undefined", "-O1", "-fno-omit-frame-pointer"]
        link += sanitize
    if not cuda:
        sources = [path for path in sources if not path.stem.endswith("_cuda")]
        names = [str(path) for path in sources]
        return cpp_extension.CppExtension(
            "autoselect._C",
            names,
            define_macros=define,
            extra_compile_args={"cxx": cxx},
            extra_link_args=link,
        )
    architectures = os.environ.setdefault("TORCH_CUDA_ARCH_LIST", CUDA_ARCHITECTURES)
    define.append(("AUTOSELECT_CUDA_ARCHITECTURES", f'"{architectures}"'))
    names = [str(path) for path in sources + sorted(Path("csrc").glob("*.cu"))]
    nvcc = ["-O3", "-std=c++17", "--expt-relaxed-constexpr", "-lineinfo"]
    return cpp_extension.CUDAExtension(
        "autoselect._C",
        names,
        define_macros=define,
        extra_compile_args={"cxx": cxx, "nvcc": nvcc},
        extra_link_args=link,
    )


setup(
    ext_modules=[extension()],
    cmdclass={"build_ext": cpp_extension.BuildExtension.with_options(use_ninja=True)},
)
