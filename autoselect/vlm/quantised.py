"""Quantised models: which of them `autoselect train` can use."""

from pathlib import Path
from typing import Any

import torch

from autoselect.vlm.model_files import ModelFilesError


def quantiser(config: Any) -> str:
    """Return the name of the library that quantised a model, or an empty string.

    Args:
        config: configuration of the model, as read from its folder or as held by the loaded model.
    """
    return str(_settings(config).get("quant_method", ""))


def check_trainable(path: str | Path, config: Any, device: torch.device | None = None) -> None:
    """Check that a quantised model can be trained behind.

    Args:
        path: folder or hub name, for the error.
        config: configuration of the model.
        device: device of the training, if it is known.

    Raises:
        ModelFilesError: its weights cannot be moved, or it gives wrong gradients.
    """
    if quantiser(config) == "torchao":
        raise ModelFilesError(
            path,
            "cannot be trained on: torchao quantised its weights, which DeepSpeed cannot move",
            "give the model without quantisation, or quantised by bitsandbytes",
        )
    on_cpu = device is not None and device.type == "cpu"
    if on_cpu and _settings(config).get("load_in_4bit"):
        raise ModelFilesError(
            path,
            "cannot be trained on with a CPU: the 4-bit layers of bitsandbytes give wrong "
            "gradients there once they were used without gradients",
            "give the model without quantisation or in 8 bits, or train with a GPU",
        )


def _settings(config: Any) -> dict[str, Any]:
    known = getattr(config, "quantization_config", None) or {}
    settings = known if isinstance(known, dict) else known.to_dict()
    method = settings.get("quant_method", "")
    return {**settings, "quant_method": getattr(method, "value", method)}
