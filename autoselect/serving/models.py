"""Pruned classes by architecture; each is made when vLLM loads a model of its family.

vLLM registers `autoselect.serving.models:ARCHITECTURE` and imports it only when it needs it.
"""

from typing import Any

STOCK: dict[str, Any] = {}
"""vLLM's own entries of the registry, which `plugin.register` replaces."""


def __getattr__(name: str) -> Any:
    if name not in STOCK:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from autoselect.serving.model import pruned_class

    return globals().setdefault(name, pruned_class(STOCK[name].load_model_cls()))
