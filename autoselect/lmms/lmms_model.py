"""Plug-in for lmms-eval 0.7: `python -m lmms_eval --model autoselect --model_args ...`.

lmms-eval finds it through the entry point `lmms_eval.models`. The model arguments are those of
`PrunedVLM`, for example `pretrained=...,selector=...,budget=64,method=autoselect`.
"""

import json
import logging
from collections.abc import Iterator, Mapping
from typing import Any

from PIL import Image
from tqdm import tqdm

from autoselect.config import ConfigError
from autoselect.config.extras import extra
from autoselect.data.decode import ImageError, read_image
from autoselect.lmms.engine import PrunedVLM

with extra("bench"):
    from accelerate import Accelerator
    from lmms_eval.api.instance import Instance
    from lmms_eval.api.model import lmms
    from lmms_eval.models.registry_v2 import ModelManifest

logger = logging.getLogger(__name__)

MAX_NEW_TOKENS = 1024
SAMPLING = ("temperature", "top_p", "top_k")
PRUNING = ("selector", "budget", "method", "seed", "dtype")
"""Arguments of `PrunedVLM` except model and device."""


def manifest() -> ModelManifest:
    """Return the description of the model that the entry point gives to lmms-eval."""
    return ModelManifest(
        "autoselect", simple_class_path="autoselect.lmms.lmms_model.AutoSelectModel"
    )


class AutoSelectModel(lmms):
    """A supported VLM, pruned or unpruned, that answers in batches; arguments as in `PrunedVLM`.

    Under `accelerate launch` every process uses its own GPU. lmms-eval passes `max_batch_size`,
    which is not used.

    Raises:
        ConfigError: an unknown argument is given.
    """

    is_simple = True

    def __init__(
        self,
        pretrained: str,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        device: str | None = None,
        **pruning: Any,
    ) -> None:
        super().__init__()
        for name in pruning:
            if name not in PRUNING:
                raise ConfigError(
                    f"model_args: {name} is not an argument of this model; choose from pretrained, "
                    f"{', '.join(PRUNING)}"
                )
        if "seed" in pruning:
            pruning["seed"] = int(pruning["seed"])
        self.accelerator = Accelerator()
        self._rank = self.accelerator.process_index
        self._world_size = self.accelerator.num_processes
        if self._world_size > 1 and self.accelerator.device.type == "cuda":
            device = str(self.accelerator.device)
        self.batch_size = int(batch_size)
        self.engine = PrunedVLM(pretrained, **pruning, device=device)

    @property
    def device(self) -> Any:
        return self.engine.vlm.device

    @property
    def tokenizer(self) -> Any:
        return self.engine.vlm.processor.tokenizer

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Return the answers in the order of the requests.

        Questions in a batch share the task and the generation settings.
        """
        texts = [""] * len(requests)
        bar = tqdm(total=len(requests), desc="answering", disable=self.rank != 0 or None)
        for batch in self._batches(requests):
            arguments = [requests[i].args for i in batch]
            options, stops = generation_options(arguments[0][1])
            images = [self._images(*parts[2:6]) for parts in arguments]
            questions = [parts[0] for parts in arguments]
            answers = self.engine.answer(images, questions, options)
            for i, text in zip(batch, answers, strict=True):
                texts[i] = cut_at(text, stops)
                self.cache_hook.add_partial("generate_until", requests[i].args[:2], texts[i])
            bar.update(len(batch))
        bar.close()
        if self.engine.smaller_images:
            logger.warning(
                "%d images so far have fewer tokens than the budget and keep all of them",
                self.engine.smaller_images,
            )
        return texts

    def _batches(self, requests: list[Instance]) -> Iterator[list[int]]:
        """Yield the indices of requests to answer together, shortest questions first."""
        groups: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            _, options, _, _, task, split = request.args
            groups.setdefault(json.dumps([task, split, options], sort_keys=True), []).append(number)
        for numbers in groups.values():
            numbers.sort(key=lambda number: len(requests[number].args[0]))
            for start in range(0, len(numbers), self.batch_size):
                yield numbers[start : start + self.batch_size]

    def _images(self, visual: Any, document: int, task: str, split: str) -> list[Image.Image]:
        """Return the images of a request; raise ConfigError if it holds something else."""
        visuals = visual(self.task_dict[task][split][document]) or []
        for item in visuals:
            if not isinstance(item, Image.Image):
                raise ConfigError(
                    f"task={task} asks about a {type(item).__name__}; this model takes images only"
                )
        try:
            return [read_image(item) for item in visuals]
        except ImageError as error:
            raise ConfigError(
                f"task={task}: an image of document {document} of {split}: {error}"
            ) from error

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Return log-likelihood and greedy match of each continuation."""
        scores = []
        for request in tqdm(requests, desc="scoring", disable=self.rank != 0 or None):
            question, target, visual, document, task, split = request.args
            if callable(target):
                target = target(self.task_dict[task][split][document])
            images = self._images(visual, document, task, split)
            scores.append(self.engine.likelihood(images, question, target))
        return scores

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        raise ConfigError("tasks of several rounds are not supported; choose single-round tasks")


def generation_options(given: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Split the settings of a task into options of `generate` and texts that end an answer."""
    stops = given.get("until") or []
    options: dict[str, Any] = {
        "max_new_tokens": given.get("max_new_tokens", MAX_NEW_TOKENS),
        "num_beams": given.get("num_beams", 1),
        "do_sample": (given.get("temperature") or 0) > 0,
    }
    if options["do_sample"]:
        options |= {name: given[name] for name in SAMPLING if given.get(name) is not None}
    return options, [stops] if isinstance(stops, str) else list(stops)


def cut_at(text: str, stops: list[str]) -> str:
    for stop in filter(None, stops):
        text = text.split(stop)[0]
    return text.strip()
