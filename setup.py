"""Builds the native extension `autoselect._C`; everything else is in pyproject.toml.

Environment:
    FORCE_CPU=1: leave CUDA out. FORCE_CUDA=1: fail when CUDA cannot be built.
    TORCH_CUDA_ARCH_LIST: CUDA architectures; by default USUAL_ARCHITECTURES and those of visible
        GPUs, as far as nvcc knows them, and PTX of the last for later ones.
    AUTOSELECT_SANITIZE=1: build the CPU kernels with AddressSanitizer and UBSan.
    MAX_JOBS: parallel compiler processes.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import torch
from setuptools import setup
from torch.utils import cpp_extension

ROOT = Path(__file__).parent
USUAL_ARCHITECTURES = {(7, 5), (8, 0), (9, 0), (10, 0), (12, 0)}


def flag(name: str) -> bool:
    """Return True if an environment switch is on."""
    return os.environ.get(name, "0") not in ("", "0")


def package_version() -> str:
    """Return the version, read without importing the package."""
    text = (ROOT / "autoselect" / "__init__.py").read_text()
    found = re.search(r'^__version__ = "(.+)"$', text, re.MULTILINE)
    assert found, "autoselect/__init__.py states no __version__"
    return found.group(1)


PROBES = {
    "C++20": (
        ["-std=c++20"],
        "#include <version>\n#if __cplusplus <= 201703L\n#error no C++20\n#endif\n",
        "use a newer one, such as g++ 11 or clang 14, and name it in CXX",
    ),
    "OpenMP": (
        ["-std=c++20", "-fopenmp"],
        "#include <omp.h>\nint threads() { return omp_get_max_threads(); }\n",
        "install it (g++ brings it, clang needs `apt-get install libomp-dev`), or name another "
        "compiler in CXX",
    ),
    "Python.h": (
        ["-std=c++20", f"-I{sysconfig.get_path('include')}"],
        "#include <Python.h>\n",
        f"install the headers of Python {sysconfig.get_python_version()}, for example with "
        f"`apt-get install python{sysconfig.get_python_version()}-dev`",
    ),
}
"""What the build needs of the compiler: flags and code that use it, and what to do without."""


def cxx_command() -> list[str]:
    """Return the C++ compiler that torch would use, with its own flags."""
    return shlex.split(os.environ.get("CXX") or "c++")


def require_compiler() -> None:
    """Stop with a plain message when there is no C++ compiler."""
    compiler = cxx_command()[0]
    if shutil.which(compiler) is None:
        raise SystemExit(
            f"autoselect: no C++ compiler found (looked for {compiler!r}). Install one, for "
            "example with `apt-get install g++`, or name it in CXX."
        )


def require_tools() -> None:
    """Stop with a plain message, before anything is compiled, when a tool or header is missing."""
    require_compiler()
    if not cpp_extension.is_ninja_available():
        raise SystemExit(
            "autoselect: the build needs ninja, which is not installed or not on PATH: "
            "`pip install ninja`."
        )
    if set("$:\n") & set(str(ROOT.resolve())):
        raise SystemExit(
            f"autoselect: ninja cannot build in the folder {str(ROOT.resolve())!r}, because its "
            "path has a dollar sign, a colon or a line break; move the project."
        )
    compiler = cxx_command()
    for need, (flags, code, fix) in PROBES.items():
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder, "probe.cpp")
            source.write_text(f"{code}int main() {{ return 0; }}\n")
            command = [*compiler, *flags, str(source), "-o", f"{folder}/probe"]
            done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            said = re.search(r"^.*(error|cannot find).*$", done.stderr, re.MULTILINE)
            reason = said[0].strip() if said else f"exit code {done.returncode}"
            raise SystemExit(
                f"autoselect: the C++ compiler {shlex.join(compiler)} does not build a program "
                f"with {need} ({reason}); {fix}."
            )


class BuildExtension(cpp_extension.BuildExtension):
    """Build as torch does, with ninja, after a look at the tools it needs."""

    def run(self):
        require_tools()
        super().run()


def ask_nvcc(question: str) -> str:
    """Return what the nvcc that torch would use answers; empty if there is none."""
    if cpp_extension.CUDA_HOME is None:
        return ""
    nvcc = Path(cpp_extension.CUDA_HOME, "bin", "nvcc")
    try:
        return subprocess.run([nvcc, question], capture_output=True, text=True).stdout
    except OSError:
        return ""


def why_no_cuda() -> str:
    """Return why CUDA code cannot be built; empty if it can."""
    home, wanted = cpp_extension.CUDA_HOME, torch.version.cuda
    if wanted is None:
        return f"torch {torch.__version__} is built without CUDA"
    if home is None:
        return "nvcc is not found (set CUDA_HOME)"
    toolkit = re.search(r"release (\d+)\.(\d+)", ask_nvcc("--version"))
    if toolkit is None:
        return f"CUDA_HOME={home} has no bin/nvcc that runs"
    if toolkit[1] != wanted.partition(".")[0]:
        return (
            f"CUDA_HOME={home} is CUDA {toolkit[1]}.{toolkit[2]}, but torch {torch.__version__} is "
            f"built with CUDA {wanted} (set CUDA_HOME to a toolkit of the same major version)"
        )
    if not finds_header("cuda_runtime.h"):
        return f"CUDA_HOME={home} has no include/cuda_runtime.h (set CUDA_HOME to a whole toolkit)"
    return ""


def finds_header(name: str) -> bool:
    """Return True if the C++ compiler finds a header of CUDA; a wrapper of nvcc may be alone."""
    command = [*cxx_command(), "-fsyntax-only", "-x", "c++"]
    command += [f"-I{folder}" for folder in cpp_extension.include_paths("cuda")] + ["-"]
    program = f"#include <{name}>\n"
    return subprocess.run(command, input=program, capture_output=True, text=True).returncode == 0


def wants_cuda() -> bool:
    """Return True if CUDA is built: nvcc and torch have the same CUDA; no GPU is needed."""
    if flag("FORCE_CPU"):
        return False
    reason = why_no_cuda()
    if reason and flag("FORCE_CUDA"):
        raise SystemExit(f"autoselect: FORCE_CUDA=1, but {reason}.")
    if reason and torch.version.cuda is not None:
        print(f"autoselect: the extension is built for the CPU alone: {reason}.", file=sys.stderr)
    return not reason


def cuda_architectures() -> str:
    """Return what TORCH_CUDA_ARCH_LIST says, or the usual ones and GPUs here that nvcc knows."""
    named = os.environ.get("TORCH_CUDA_ARCH_LIST")
    if named:
        return named
    known = re.findall(r"compute_(\d+)(\d)\b", ask_nvcc("--list-gpu-arch"))
    visible = {torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())}
    chosen = {(int(major), int(minor)) for major, minor in known} & (USUAL_ARCHITECTURES | visible)
    if not chosen:
        raise SystemExit(
            f"autoselect: nvcc of CUDA_HOME={cpp_extension.CUDA_HOME} knows no architecture of "
            "these GPUs; name some in TORCH_CUDA_ARCH_LIST, or set FORCE_CPU=1."
        )
    return ";".join(f"{major}.{minor}" for major, minor in sorted(chosen)) + "+PTX"


def extension():
    """Return the extension with its sources and flags."""
    require_compiler()
    cuda = wants_cuda()
    sources = [*sorted(Path("csrc").glob("*.cpp")), *sorted(Path("csrc/cpu").glob("*.cpp"))]
    headers = [str(ROOT / "csrc")]
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
        names = [str(path) for path in sources]
        return cpp_extension.CppExtension(
            "autoselect._C",
            names,
            include_dirs=headers,
            define_macros=define,
            extra_compile_args={"cxx": cxx},
            extra_link_args=link,
        )
    architectures = os.environ["TORCH_CUDA_ARCH_LIST"] = cuda_architectures()
    define.append(("AUTOSELECT_CUDA_ARCHITECTURES", f'"{architectures}"'))
    sources += [*sorted(Path("csrc/cuda").glob("*.cpp")), *sorted(Path("csrc/cuda").glob("*.cu"))]
    names = [str(path) for path in sources]
    nvcc = ["-O3", "-std=c++17", "--expt-relaxed-constexpr", "-lineinfo"]
    return cpp_extension.CUDAExtension(
        "autoselect._C",
        names,
        include_dirs=headers,
        define_macros=define,
        extra_compile_args={"cxx": cxx, "nvcc": nvcc},
        extra_link_args=link,
    )


setup(
    ext_modules=[extension()],
    cmdclass={"build_ext": BuildExtension},
)
