"""Answers of a vLLM engine, for the full model and the selector; bounds are transformers' own."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from autoselect.config import ConfigError
from autoselect.evaluation.answers.answering import FULL, Column, Plan, answer_part
from autoselect.evaluation.asking.asked_vlm import AskedVLM
from autoselect.evaluation.asking.endings import up_to_end
from autoselect.evaluation.asking.replies import Replies, Reply
from autoselect.evaluation.samples import EvaluationSample
from autoselect.evaluation.scores.scoring import places_of
from autoselect.serving.command import check_installation
from autoselect.serving.families import check_site
from autoselect.serving.offline import EngineProcess, Prompt
from autoselect.vlm import FrozenVLM
from autoselect.vlm.text.tokens import adds_special_tokens, end_ids

MEMORY_FOR_ENGINE = 0.85
"""Of the memory that a GPU has free beside transformers' model."""

MOST_CACHE, CACHE_SHARE = 4 * 2**30, 4
"""Bytes of the KV cache in main memory at most, of which vLLM would take nearly all; and one in so
many of the free bytes."""


class ServedVLM(AskedVLM):
    """A model whose answers a vLLM engine gives."""

    def __init__(self, vlm: FrozenVLM, engine: EngineProcess) -> None:
        super().__init__(vlm)
        self.engine = engine

    def budget(self, column: Column, num_tokens: int) -> int | float:
        """Return the tokens of each image that stay in a column, or their share if sizes differ.

        `num_tokens` is N of the image that budgets refer to.
        """
        if column.method == FULL:
            return 1.0
        return column.budget if self.vlm.num_tokens else column.budget / num_tokens


def served_part(
    asked: ServedVLM,
    samples: Sequence[EvaluationSample],
    plan: Plan,
    others: Sequence[EvaluationSample] = (),
) -> dict[str, Replies]:
    """Return what `answer_part` does; the loss of references is known for bounds only."""
    replies = answer_part(asked, samples, replace(plan, methods=()), others)
    columns = [column for column in plan.columns() if column not in plan.bounds()[1:]]
    places = places_of(samples)
    texts = [asked.prompt(len(samples[i].images), samples[i].asked(r)) for i, r in places]
    prompts = [
        Prompt(text, samples[i].images, asked.budget(column, plan.num_tokens))
        for column in columns
        for (i, _), text in zip(places, texts, strict=True)
    ]
    tokenizer = asked.vlm.processor.tokenizer
    ends = end_ids(asked.vlm.model, tokenizer)
    adds = adds_special_tokens(tokenizer, texts[0])
    given = iter(asked.engine.generate(prompts, plan.max_new_tokens, ends, adds))
    for column in columns:
        replies[str(column)] = [
            [_reply(tokenizer, up_to_end(next(given), ends), ends) for _ in sample.questions]
            for sample in samples
        ]
    return replies


def _reply(tokenizer: Any, ids: list[int], ends: list[int]) -> Reply:
    text = tokenizer.decode(ids, skip_special_tokens=True).strip()
    return Reply(text, len(ids), any(token in ends for token in ids))


def check_served(
    selectors: dict[str, Any], asked: AskedVLM, sample: EvaluationSample, world_size: int
) -> None:
    """Refuse what the engine cannot evaluate, before it starts.

    Args:
        selectors: `Selector` by the name of its row.
        asked: the model in transformers.
        sample: one of the samples.
        world_size: number of processes.

    Raises:
        ConfigError: vLLM or its plug-in is missing, there are several selectors or processes, the
            selector has another site, or the evaluator selects within tiles.
    """
    check_installation()
    if world_size > 1:
        raise ConfigError(
            f"engine=vllm runs in one process, here are {world_size}; use `autoselect eval`"
        )
    if len(selectors) > 1:
        raise ConfigError(
            f"engine=vllm evaluates one selector with one diversity, here are "
            f"{', '.join(selectors)}; evaluate each on its own"
        )
    (selector,) = selectors.values()
    try:
        check_site(selector.site, type(asked.vlm.model).__name__)
    except ConfigError as error:
        raise ConfigError(f"engine=vllm: {error}; or use engine=transformers") from error
    blocks = len(asked.encode([sample]).images[0])
    if blocks != len(sample.images):
        raise ConfigError(
            f"engine=vllm counts a budget by image, and the evaluator by tile for {asked.vlm.name}"
            f" ({blocks} in an image); use engine=transformers"
        )


@contextmanager
def served(vlm: FrozenVLM, model: str, selector: Any) -> Iterator[ServedVLM]:
    """Return a context in which an engine answers; it takes the selector as it is now.

    Args:
        vlm: the model in transformers.
        model: its folder or hub name.
        selector: a `Selector`.
    """
    settings: dict[str, Any] = {
        "dtype": str(vlm.dtype).removeprefix("torch."),
        "distributed_executor_backend": "uni",
        "enforce_eager": vlm.device.type == "cpu",  # compiling takes longer there than it saves
    }
    if vlm.device.type == "cpu":
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        settings["kv_cache_memory_bytes"] = min(MOST_CACHE, free // CACHE_SHARE)
    if vlm.device.type == "cuda":
        free, total = torch.cuda.mem_get_info(vlm.device)
        settings["gpu_memory_utilization"] = MEMORY_FOR_ENGINE * free / total
    with TemporaryDirectory() as folder:
        selector.save_pretrained(Path(folder))
        block = {"selector": folder, "budget": 1.0}
        with EngineProcess(model, block, settings) as engine:
            yield ServedVLM(vlm, engine)
