"""ZeRO-3 from the first byte: the frozen VLM is split over the ranks while it is loaded.

Stages 0 to 2 keep the frozen weights on every rank. At stage 3 they are partitioned, and with
`sharded_loading` no rank ever holds the whole model: transformers creates every module inside
`deepspeed.zero.Init` and hands each weight out in slices. Until `deepspeed.initialize` has hooked
the modules, nothing gathers them by itself: use `gathered` around what is computed before.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch

from autoselect.config import ConfigError
from autoselect.config.deepspeed import DeepSpeedConfig


@contextmanager
def sharded_loading(config: DeepSpeedConfig, dtype: torch.dtype) -> Iterator[None]:
    """Inside, `from_pretrained` splits a model over the ranks when `config` says stage 3.

    The ranks must have met. At lower stages it does nothing.

    Args:
        config: decides by its ZeRO stage.
        dtype: dtype of the frozen weights, bfloat16 or float32.

    Raises:
        ConfigError: another dtype.
    """
    if config.zero_stage < 3:
        yield
        return
    if dtype not in (torch.bfloat16, torch.float32):
        raise ConfigError(f"dtype={dtype} cannot be loaded at ZeRO-3; use bfloat16 or float32")
    from transformers.integrations import deepspeed as transformers_deepspeed

    request = _LoadingRequest(config, dtype)  # transformers keeps a weak reference only
    transformers_deepspeed.set_hf_deepspeed_config(request)
    try:
        yield
    finally:
        transformers_deepspeed.unset_hf_deepspeed_config()


class _LoadingRequest:
    """What `from_pretrained` asks for: whether to shard, and the configuration of `zero.Init`.

    transformers' own `HfDeepSpeedConfig` does the same but needs the package accelerate.
    """

    def __init__(self, config: DeepSpeedConfig, dtype: torch.dtype) -> None:
        # The engine's own file has no bf16 block, which would convert the trained part; here it
        # says in which dtype the frozen weights are stored.
        self.config = config.to_dict() | {"bf16": {"enabled": dtype == torch.bfloat16}}

    def is_zero3(self) -> bool:
        return True


@contextmanager
def gathered(parameters: Iterable[torch.nn.Parameter]) -> Iterator[None]:
    """Inside, the sharded ones among `parameters` are whole on every rank (a collective).

    Meant for reading: what is written to them is lost.
    """
    sharded = [parameter for parameter in parameters if hasattr(parameter, "ds_id")]
    if not sharded:
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(sharded):
        yield
