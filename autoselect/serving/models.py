"""Pruned classes by the names of vLLM's own; each is made when vLLM loads its model.

vLLM registers `autoselect.serving.models:NAME` and imports it only for a model of that family.
"""

from importlib import import_module
from typing import Any

from autoselect.serving.families import FAMILIES


def __getattr__(name: str) -> Any:
    if name not in FAMILIES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from autoselect.serving.model import pruned_class

    module = import_module(f"vllm.model_executor.models.{FAMILIES[name]}")
    return globals().setdefault(name, pruned_class(getattr(module, name)))
