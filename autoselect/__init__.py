"""AutoSelect: learn which visual tokens matter to a frozen vision-language model."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autoselect.config import ConfigError
    from autoselect.data.decode import read_image
    from autoselect.pruning.attachment import attach, detach
    from autoselect.pruning.selector import Selector

__version__ = "0.1.0"
__all__ = ["ConfigError", "Selector", "__version__", "attach", "detach", "read_image"]

_HOMES = {
    "ConfigError": "autoselect.config",
    "Selector": "autoselect.pruning.selector",
    "attach": "autoselect.pruning.attachment",
    "detach": "autoselect.pruning.attachment",
    "read_image": "autoselect.data.decode",
}


def __getattr__(name: str) -> Any:
    """Public names load on first use, so that the command line starts without torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'autoselect' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
