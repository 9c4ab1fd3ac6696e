"""Loads the native extension `autoselect._C`, or says once that it is missing."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import re
from types import ModuleType

import torch

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
    "select_tokens",
    "select_tokens_backward",
)


def _load() -> ModuleType | None:
    """The extension; None when it was never built.

    Raises:
        ImportError: the extension is there but does not load, or it is missing although
            `AUTOSELECT_REQUIRE_NATIVE=1`.
    """
    if importlib.util.find_spec("autoselect._C") is None:
        message = (
            "the native operators are not built (no autoselect._C); build them with "
            "`pip install --no-build-isolation -e .`"
        )
        if os.environ.get("AUTOSELECT_REQUIRE_NATIVE", "0") not in ("", "0"):
            raise ImportError(f"AUTOSELECT_REQUIRE_NATIVE=1, but {message}")
        log.warning("%s; the slower PyTorch references run instead", message)
        return None
    return importlib.import_module("autoselect._C")


EXTENSION = _load()
# Asked once: torch.compile cannot trace the call.
HAS_CUDA = EXTENSION is not None and bool(EXTENSION.build_info()["cuda_architectures"])


def is_native(device: torch.device) -> bool:
    """Whether the operators run their kernels for tensors on this device.

    Inside `torch.func.grad` and the transforms made of it the references run: `torch.library` does
    not differentiate registered operators there. They read values, so `torch.vmap` over a call is
    no way to more rows: put all rows into one batch.
    """
    if EXTENSION is None:
        return False
    if not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active():
        return False
    if device.type == "cuda":
        return HAS_CUDA
    return device.type in ("cpu", "meta")


def differentiable_once(operator: str) -> None:
    """Makes a derivative of a backward operator an error, which would be a wrong zero.

    Args:
        operator: whose name ends in `_backward`.
    """

    def refuse(ctx, *grads):
        raise NotImplementedError(
            f"autoselect::{operator.removesuffix('_backward')} is differentiable once: its "
            "gradient has no gradient; take it without create_graph=True"
        )

    torch.library.register_autograd(f"autoselect::{operator}", refuse)


def build_info() -> dict[str, object]:
    """Versions, compiler and architectures of the extension, and the path each operator takes.

    Returns:
        `{"native": bool, "version": str, "torch": str, "paths": {operator: {device: path}}}`, and
        for a native build `compiler`, `cuda_architectures` and `cpu_instruction_set`. A path is
        "native" or "reference".
    """
    info: dict[str, object] = {"version": __version__, "torch": torch.__version__}
    if EXTENSION is not None:
        info.update(EXTENSION.build_info())
    paths = {
        device: "native" if is_native(torch.device(device)) else "reference"
        for device in ("cpu", "cuda")
    }
    return {"native": EXTENSION is not None, **info, "paths": {op: paths for op in OPERATORS}}


def runs_on(architectures: str, capability: tuple[int, int]) -> bool:
    """Whether kernels built for some CUDA architectures run on a GPU.

    Machine code runs on GPUs of the same major version from its own on, `+PTX` on all later ones,
    and `a` behind the number on that one alone.

    Args:
        architectures: as in TORCH_CUDA_ARCH_LIST; names such as `native` count as running.
        capability: of the GPU.
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
