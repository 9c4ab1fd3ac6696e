"""A vLLM engine in a process of its own, for answers to many prompts.

A running engine changes transformers' models in its process, so no model may share it.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

from PIL import Image

from autoselect.config import ConfigError
from autoselect.config.extras import extra
from autoselect.serving.settings import BLOCK, BUDGET_ARGUMENT

STARTED: list[Any] = []
"""The engine of this process, which is a child."""


@dataclass(frozen=True)
class Prompt:
    """A question about images.

    Attributes:
        text: the prompt in the model's chat template, with a mark for each image.
        images: RGB.
        budget: tokens of each image that stay, or their share.
    """

    text: str
    images: tuple[Image.Image, ...]
    budget: int | float


class EngineProcess:
    """An engine that prunes images; it starts with its first prompts. A context manager.

    Args:
        model: folder or hub name.
        block: the block `autoselect` of the model's configuration.
        settings: further arguments of vLLM's `LLM`.
    """

    def __init__(self, model: str, block: dict[str, Any], settings: dict[str, Any]) -> None:
        self.arguments = {"model": model, "hf_overrides": {BLOCK: block}, **settings}
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> "EngineProcess":
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown()

    def generate(
        self,
        prompts: Sequence[Prompt],
        max_new_tokens: int,
        ends: Sequence[int],
        add_special_tokens: bool,
    ) -> list[list[int]]:
        """Return the token ids of greedy answers, the end token included.

        Args:
            prompts: what is asked.
            max_new_tokens: longest answer in tokens.
            ends: ids that end an answer.
            add_special_tokens: whether the texts lack what the tokenizer adds, such as BOS.

        Raises:
            ConfigError: the engine does not start.
        """
        if self._pool is None:
            self._pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"))
            self._pool.submit(_start, self.arguments).result()
        work = (list(prompts), max_new_tokens, list(ends), add_special_tokens)
        return self._pool.submit(_generate, *work).result()


def _start(arguments: dict[str, Any]) -> None:
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    with extra("serving"):
        from vllm import LLM
    try:
        STARTED.append(LLM(**arguments))
    except Exception as error:  # errors of vLLM may not survive the way to another process
        raise ConfigError(
            f"vLLM does not start with {arguments['model']}: {type(error).__name__}: {error}"
        ) from None


def _generate(
    prompts: list[Prompt], max_new_tokens: int, ends: list[int], add_special_tokens: bool
) -> list[list[int]]:
    from vllm import SamplingParams

    (engine,) = STARTED
    outputs = engine.generate(
        [
            {
                "prompt": prompt.text,
                "multi_modal_data": {"image": list(prompt.images)},
                "mm_processor_kwargs": {BUDGET_ARGUMENT: prompt.budget},
            }
            for prompt in prompts
        ],
        SamplingParams(
            max_tokens=max_new_tokens, temperature=0.0, stop_token_ids=ends, detokenize=False
        ),
        use_tqdm=False,
        tokenization_kwargs={"add_special_tokens": add_special_tokens},
    )
    return [list(output.outputs[0].token_ids) for output in outputs]
