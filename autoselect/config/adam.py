"""The optimiser block of the DeepSpeed JSON: only torch's Adam, whose state checkpoints hold."""

from collections.abc import Mapping
from typing import Any

from autoselect.config.errors import require
from autoselect.config.json_values import check_object, is_number

OWN_SETTINGS = {"lr": "optimizer.learning_rate", "weight_decay": "optimizer.weight_decay"}
"""Parameters that the training sets, by the names of its settings."""
PARAMETERS = ("torch_adam", "betas", "eps", "adam_w_mode")
EXAMPLE = '"optimizer": {"type": "AdamW", "params": {"torch_adam": true}}'


def check_adam(block: Any) -> None:
    """Check the value of `optimizer`.

    Raises:
        ConfigError: it is not torch's Adam or AdamW, or a parameter is unknown, out of range, or
            has no effect.
    """
    check_object("optimizer", block)
    _check_known("optimizer.", block, ("type", "params"))
    kind, parameters = block.get("type"), block.get("params", {})
    require(
        isinstance(kind, str) and kind.lower() in ("adam", "adamw"),
        f"optimizer.type={kind!r} is not supported: checkpoints hold the state of Adam; "
        f"write {EXAMPLE}",
    )
    check_object("optimizer.params", parameters)
    for name, own in OWN_SETTINGS.items():
        require(
            name not in parameters,
            f"optimizer.params.{name}={parameters.get(name)!r} would have no effect, because it is "
            f"a setting of the training; remove it here and give --{own}",
        )
    _check_known("optimizer.params.", parameters, PARAMETERS)
    require(
        parameters.get("torch_adam") is True,
        f"optimizer.params.torch_adam={parameters.get('torch_adam')!r} is not supported: "
        f"checkpoints hold the state of torch's Adam; write {EXAMPLE}",
    )
    betas, eps = parameters.get("betas", [0.9, 0.999]), parameters.get("eps", 1e-8)
    require(
        isinstance(betas, list) and len(betas) == 2 and all(is_number(b, 1) for b in betas),
        f"optimizer.params.betas={betas!r} must be two numbers of 0..1, below 1; [0.9, 0.999] "
        "is usual",
    )
    require(
        is_number(eps) and eps > 0,
        f"optimizer.params.eps={eps!r} must be a number above 0; 1e-8 is usual",
    )
    mode = parameters.get("adam_w_mode", True)
    require(
        isinstance(mode, bool) and (mode or kind.lower() == "adam"),
        f"optimizer.params.adam_w_mode={mode!r} must be true, or false with the type Adam",
    )


def _check_known(prefix: str, values: Mapping[str, Any], known: tuple[str, ...]) -> None:
    unknown = next((name for name in values if name not in known), None)
    require(unknown is None, f"unknown key {prefix}{unknown}; known keys: {', '.join(known)}")
