"""A reference to a module that does not keep it alive."""

import weakref
from typing import Any

from autoselect.config import ConfigError


class Held:
    """Refers to a module as long as somebody else holds it.

    A copy made together with its module (`copy.deepcopy`, `pickle`) refers to the module's copy.
    """

    def __init__(self, module: Any) -> None:
        self._reference = weakref.ref(module)

    def __reduce__(self) -> tuple[type, tuple]:
        return Held, (self.module,)

    @property
    def module(self) -> Any:
        """Return the module.

        Raises:
            ConfigError: it was freed.
        """
        module = self._reference()
        if module is None:
            raise ConfigError(
                "model was freed before its call began; keep it in a variable: "
                "model = attach(...), then model.generate(...)"
            )
        return module

    def check(self, module: Any) -> None:
        """Check that a module is the one referred to.

        Raises:
            ConfigError: it is a replica on another device.
        """
        if module is not self._reference():
            raise ConfigError(
                "torch.nn.DataParallel copies an attached model to other devices, but its selector "
                "is on one; start one process for each device"
            )
