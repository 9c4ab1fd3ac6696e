"""Optional packages, by the extra of `pip install 'autoselect[EXTRA]'` that brings them."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Literal

from autoselect.config.errors import ConfigError

Extra = Literal["tracking", "data", "evaluation", "training", "bench", "serving"]


@contextmanager
def extra(name: Extra) -> Iterator[None]:
    """Import packages of an extra inside this context.

    Raises:
        ConfigError: a package is not installed; the message has the pip line.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "autoselect"):
            raise
        raise ConfigError(missing(package, name)) from error


def require_extra(name: Extra, package: str) -> None:
    """Check, without importing it, that a package of an extra is installed.

    Raises:
        ConfigError: it is not; the message has the pip line.
    """
    if find_spec(package) is None:
        raise ConfigError(missing(package, name))


def missing(package: str, name: Extra) -> str:
    return f"{package} is not installed; install it with: pip install 'autoselect[{name}]'"
