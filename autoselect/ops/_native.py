"""Loading of the native extension `autoselect._C`; a warning says once if it is missing.

What is wrong with it, and how to build it again, is one sentence everywhere.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import logging
import os
import re
import sysconfig
from pathlib import Path
from types import ModuleType

import torch
from packaging.version import Version
from torch.autograd import forward_ad

from autoselect import __version__

log = logging.getLogger(__name__)

OPERATORS = (
    "soft_top_k",
    "soft_top_k_backward",
    "noise_gate",
    "noise_gate_backward",
    "soft_top_k_noise_gate",
    "soft_top_k_noise_gate_backward",
    "hard_top_k",
    "diverse_top_k",
    "marginal_order",
    "select_tokens",
    "select_tokens_backward",
)


NAME = "autoselect._C"
REQUIRED = os.environ.get("AUTOSELECT_REQUIRE_NATIVE", "0") not in ("", "0")
BUILD = "build it with `pip install --no-build-isolation -e .` in the project folder"


def _missing() -> str:
    """Return why the extension is missing and how to build it; an empty text if it is there."""
    if importlib.util.find_spec(NAME) is not None:
        return ""
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    found = (path.name for path in Path(__file__).parents[1].glob("_C.*.so"))
    others = sorted(name for name in found if name != f"_C{suffix}")
    if others:
        return (
            f"the native operators ({NAME}) are built for another Python or machine "
            f"({', '.join(others)}; this Python loads _C{suffix}); {BUILD}"
        )
    return f"the native operators are not built (no {NAME}); {BUILD}"


def _load() -> ModuleType | None:
    """Return the extension, or None if it was never built for this Python.

    Raises:
        ImportError: the extension exists but does not fit this installation, or it is missing
            although `AUTOSELECT_REQUIRE_NATIVE=1`.
    """
    message = _missing()
    if message:
        if REQUIRED:
            raise ImportError(f"AUTOSELECT_REQUIRE_NATIVE=1, but {message}", name=NAME)
        log.warning("%s; the slower PyTorch references run instead", message)
        return None
    try:
        extension = importlib.import_module(NAME)
        built = extension.build_info()["torch"]
    except Exception as error:  # the dynamic linker, a cut file, an older source: all kinds
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise _misfit(f"does not load ({reason[0]})") from error
    if Version(built).release != Version(torch.__version__).release:
        raise _misfit(f"was built for torch {built}")
    lacking = [name for name in OPERATORS if not hasattr(torch.ops.autoselect, name)]
    if lacking:
        raise _misfit(f"was built from other sources: it lacks {', '.join(lacking)}")
    return extension


def _misfit(what: str) -> ImportError:
    here = f"this is torch {torch.__version__} with Python {sysconfig.get_python_version()}"
    return ImportError(f"the native extension {NAME} {what}; {here}; {BUILD}", name=NAME)


EXTENSION = _load()
# Asked once: torch.compile cannot trace the call.
HAS_CUDA = EXTENSION is not None and bool(EXTENSION.build_info()["cuda_architectures"])


def is_native(device: torch.device) -> bool:
    """Return True if the operators run native kernels for tensors on this device.

    Inside transforms of `torch.func` and in forward-mode AD the references run, because
    `torch.library` does not differentiate registered operators there. The references read values:
    `torch.vmap` over a call fails (put all rows into one batch), and torch.compile of a transform
    ends its graph there or fails.

    Raises:
        ImportError: the extension is built without CUDA, a GPU is there and is asked for, and
            `AUTOSELECT_REQUIRE_NATIVE=1`.
    """
    if EXTENSION is None:
        return False
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return False
    if device.type == "cuda":
        if not HAS_CUDA and torch.cuda.is_available():
            _say_cuda_is_missing()
        return HAS_CUDA
    return device.type in ("cpu", "meta")


def _say_cuda_is_missing() -> None:
    """Warn once that a GPU runs the references; raise ImportError if native operators are required.

    A warning is not traced: torch.compile would end its graph there.
    """
    message = (
        f"the native operators ({NAME}) are built for the CPU alone, but tensors are on a GPU; "
        f"set FORCE_CUDA=1 and CUDA_HOME, and {BUILD}"
    )
    if REQUIRED:
        raise ImportError(f"AUTOSELECT_REQUIRE_NATIVE=1, but {message}", name=NAME)
    if not torch.compiler.is_compiling():
        _warn_once(f"{message}; the slower PyTorch references run there instead")


@functools.cache
def _warn_once(message: str) -> None:
    log.warning("%s", message)


def differentiable_once(operator: str) -> None:
    """Turn the derivative of a backward operator, a wrong zero by default, into an error."""

    def refuse(ctx, *grads):
        name = operator.removesuffix("_backward")
        raise NotImplementedError(
            f"autoselect::{name} is differentiable once: its gradient has no gradient; take it "
            f"without create_graph=True; or use {name}_reference, which is differentiable twice"
        )

    torch.library.register_autograd(f"autoselect::{operator}", refuse)


def build_info() -> dict[str, object]:
    """Return versions, compiler and architectures of the extension, and each operator's path.

    Returns:
        `{"native": bool, "version": str, "torch": str, "paths": {operator: {device: path}}}` with
        paths "native" or "reference"; a native build adds `compiler`, `cuda_architectures` and
        `cpu_instruction_set`, any other one `missing`, the reason and how to build.
    """
    info: dict[str, object] = {"version": __version__, "torch": torch.__version__}
    info.update(EXTENSION.build_info() if EXTENSION is not None else {"missing": _missing()})
    paths = {
        device: "native" if native else "reference"
        for device, native in (("cpu", EXTENSION is not None), ("cuda", HAS_CUDA))
    }
    return {"native": EXTENSION is not None, **info, "paths": {op: paths for op in OPERATORS}}


def runs_on(architectures: str, capability: tuple[int, int]) -> bool:
    """Return True if kernels built for some CUDA architectures run on a GPU.

    Machine code for 8.0 runs on 8.0 and later 8.x, 8.0+PTX on all later GPUs, 9.0a on 9.0 alone.

    Args:
        architectures: list in the format of TORCH_CUDA_ARCH_LIST; a name such as `native` counts
            as running.
        capability: compute capability of the GPU, major and minor.
    """
    for name in re.split(r"[;\s]+", architectures.strip()):
        found = re.fullmatch(r"(\d+)\.(\d)(a?)(\+PTX)?", name)
        if found is None:
            return True
        built = (int(found[1]), int(found[2]))
        if found[3]:
            later = built == capability
        else:
            later = built <= capability and bool(found[4] or built[0] == capability[0])
        if later:
            return True
    return False
