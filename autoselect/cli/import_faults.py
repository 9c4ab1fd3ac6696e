"""Explain why transformers or the native extension cannot be imported in the user's environment."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec

from autoselect.config import ConfigError

EXTENSION = "autoselect._C"


@contextmanager
def explained_imports() -> Iterator[None]:
    """Raise ConfigError for an import error that another torch than before causes.

    The native extension no longer loads, or transformers, which imports torchvision if that is
    installed, fails at the first class that is requested.
    """
    try:
        yield
    except ImportError as error:
        if error.name == EXTENSION:
            raise ConfigError(str(error)) from error
        if find_spec("torchvision") is None:
            raise
        try:
            import_module("torchvision")
        except Exception as reason:
            raise ConfigError(
                f"torchvision does not fit torch ({str(reason).splitlines()[0]}), and transformers "
                "imports it if it is installed: install the build that belongs to this torch "
                "(see docs/backbones.md), or `pip uninstall torchvision`"
            ) from error
        raise
