"""What is wrong when transformers cannot be imported, in words of the user's environment."""

from importlib import import_module
from importlib.util import find_spec


def import_fault() -> str | None:
    """The message about a torchvision of another build than torch; None when it is sound or absent.

    transformers imports torchvision wherever it is installed, and then fails at whatever class was
    asked for first. Call it after an ImportError.
    """
    if find_spec("torchvision") is None:
        return None
    try:
        import_module("torchvision")
    except Exception as error:
        return (
            f"torchvision does not fit torch ({str(error).splitlines()[0]}), and transformers "
            "imports it wherever it is installed: install the build that belongs to this torch "
            "(see docs/backbones.md), or `pip uninstall torchvision`"
        )
    return None
