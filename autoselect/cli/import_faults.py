"""What is wrong when transformers cannot be imported, in words of the user's environment."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec

from autoselect.config import ConfigError


@contextmanager
def explained_imports() -> Iterator[None]:
    """Around imports of transformers: names a torchvision of another build than torch.

    transformers imports torchvision wherever it is installed, and then fails at whatever class was
    asked for first.

    Raises:
        ConfigError: an import failed, and torchvision is the reason.
    """
    try:
        yield
    except ImportError as error:
        if find_spec("torchvision") is None:
            raise
        try:
            import_module("torchvision")
        except Exception as reason:
            raise ConfigError(
                f"torchvision does not fit torch ({str(reason).splitlines()[0]}), and transformers "
                "imports it wherever it is installed: install the build that belongs to this torch "
                "(see docs/backbones.md), or `pip uninstall torchvision`"
            ) from error
        raise
