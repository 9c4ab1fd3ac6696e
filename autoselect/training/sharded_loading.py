"""Loading of the frozen VLM at ZeRO-3, split over the ranks from the first byte.

Stages 0 to 2 keep the frozen weights on every rank. At stage 3 no rank ever holds the whole model:
inside `sharded_loading` transformers creates every module under `deepspeed.zero.Init` and
distributes each weight in slices. Modules gather their weights by themselves only after
`deepspeed.initialize`; enclose earlier computations in `gathered` (`autoselect/vlm/sharded.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from autoselect.config import ConfigError
from autoselect.config.deepspeed import DeepSpeedConfig


@contextmanager
def sharded_loading(config: DeepSpeedConfig, dtype: torch.dtype) -> Iterator[None]:
    """Make `from_pretrained` split a model over the ranks, which have met, at ZeRO stage 3.

    Args:
        config: decides by its ZeRO stage.
        dtype: dtype of the frozen weights, bfloat16 or float32.

    Raises:
        ConfigError: the dtype is another one.
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
    """What `from_pretrained` reads: whether to shard, and the configuration of `zero.Init`.

    It replaces transformers' `HfDeepSpeedConfig`, which needs the package accelerate.
    """

    def __init__(self, config: DeepSpeedConfig, dtype: torch.dtype) -> None:
        # The engine's own file has no bf16 block, which would convert the trained part; here it
        # says in which dtype the frozen weights are stored.
        self.config = config.to_dict() | {"bf16": {"enabled": dtype == torch.bfloat16}}

    def is_zero3(self) -> bool:
        return True
