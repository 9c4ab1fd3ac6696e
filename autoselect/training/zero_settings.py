"""DeepSpeed's own check of the block `zero_optimization`, long before it builds an engine."""

import contextlib
import sys
from typing import Any, cast

from autoselect.config import ConfigError
from autoselect.config.deepspeed import DeepSpeedConfig
from autoselect.config.extras import extra
from autoselect.ranks.processes import set_accelerator_default


def check_zero(config: DeepSpeedConfig) -> None:
    """Check the names and types of the settings of ZeRO.

    Raises:
        ConfigError: DeepSpeed does not know a setting, or its value has a wrong type.
    """
    set_accelerator_default()
    with extra("training"), contextlib.redirect_stdout(sys.stderr):  # it logs while it is imported
        from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    try:
        DeepSpeedZeroConfig(**config.to_dict().get("zero_optimization", {}))
    except ValueError as error:  # pydantic's ValidationError
        first = cast(Any, error).errors()[0]
        name = ".".join(map(str, ("zero_optimization", *first["loc"])))
        raise ConfigError(
            f"{name}={first['input']!r} is refused by DeepSpeed: {first['msg']}; correct or remove "
            "it in the DeepSpeed file"
        ) from error
