"""Answer questions with a public model, pruned by a selector or a baseline, or unpruned."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from autoselect.config import ConfigError
from autoselect.config.row_names import SELECTOR
from autoselect.data.decode import read_image
from autoselect.evaluation.asking.asked_vlm import AskedVLM
from autoselect.evaluation.asking.likelihood import continuation_log_likelihood
from autoselect.evaluation.loading import checked_device
from autoselect.evaluation.methods.choice import choose, pruned_call
from autoselect.evaluation.methods.registry import METHODS, Method
from autoselect.evaluation.samples import EvaluationSample
from autoselect.lmms.settings import BASELINES
from autoselect.pruning.attachment import attach
from autoselect.pruning.budget import is_smaller, kept_tokens, written_budget
from autoselect.pruning.selector import Selector
from autoselect.vlm import FrozenVLM
from autoselect.vlm.loading import named_dtype

FULL = "full"
DTYPES = ("auto", "float32", "bfloat16")


def parse_budget(value: object) -> int | float | None:
    """Return a token count (64), a share (0.11 or `11%`), or None for `full`."""
    text = str(value).strip()
    if text == FULL:
        return None
    try:
        return written_budget(text)
    except ConfigError:
        raise ConfigError(
            f"budget={value!r} must be full, a number of tokens, a share (0.11) or a percentage"
        ) from None


class PrunedVLM:
    """A model that answers questions, with all or with K visual tokens per image.

    A selector is attached to the model, as users do it. A baseline chooses from the encoded images
    of each batch. Images with fewer tokens than the budget keep all; `smaller_images` counts them.

    Args:
        pretrained: folder or hub name of the model.
        selector: folder or hub name of the selector; needed by the method `autoselect`.
        budget: `full`, a token count, a share or a percentage.
        method: `autoselect` or a baseline.
        seed: seed of the random baseline.
        dtype: `auto`, `float32` or `bfloat16`.
        device: torch device; None takes a GPU if there is one.

    Raises:
        ConfigError: model or selector cannot be loaded, or the settings do not fit together.
    """

    def __init__(
        self,
        pretrained: str,
        selector: str | None = None,
        budget: object = FULL,
        method: str = SELECTOR,
        seed: int = 0,
        dtype: str = "auto",
        device: str | None = None,
    ) -> None:
        if dtype not in DTYPES:
            raise ConfigError(f"dtype={dtype!r} must be one of {', '.join(DTYPES)}")
        where = checked_device(device)
        self.budget = parse_budget(budget)
        self.seed = seed
        self.baseline: Method | None = None
        if self.budget is not None and method == SELECTOR and selector is None:
            raise ConfigError(
                f"budget={budget} needs a selector; give selector=FOLDER, choose a baseline with "
                "method=NAME, or set budget=full"
            )
        if method not in (SELECTOR, *BASELINES):
            raise ConfigError(
                f"method={method!r} is unknown here; choose {SELECTOR}, {', '.join(BASELINES)}"
            )
        self.vlm = FrozenVLM.from_pretrained(pretrained, named_dtype(dtype), where)
        self.asked = AskedVLM(self.vlm)
        self.smaller_images = 0
        if self.budget is None:
            return
        if method == SELECTOR:
            assert selector is not None
            attach(self.vlm.model, Selector.from_pretrained(selector, device=where), self.budget)
        else:
            self.baseline = METHODS[method]

    def answer(
        self,
        images: Sequence[Sequence[Image.Image]],
        questions: Sequence[str],
        options: Mapping[str, Any],
    ) -> list[str]:
        """Return the generated texts, one per row; rows without images may stand among the others.

        Args:
            images: images of each row.
            questions: plain text.
            options: arguments of `generate`, such as `max_new_tokens`.
        """
        texts = [""] * len(questions)
        for wanted in (True, False):
            rows = [i for i, own in enumerate(images) if bool(own) == wanted]
            if not rows:
                continue
            samples = [_sample(images[i], questions[i]) for i in rows]
            call, kept = self._call(samples)
            for i, text in zip(rows, self.asked.generate(call, kept, options), strict=True):
                texts[i] = text
            if wanted:
                self._count_smaller()
        return texts

    def _count_smaller(self) -> None:
        attachment = getattr(self.vlm.model, "autoselect", None)
        if attachment is not None and attachment.last is not None:
            self.smaller_images += attachment.last.smaller_images

    @torch.inference_mode()
    def likelihood(
        self, images: Sequence[Image.Image], question: str, continuation: str
    ) -> tuple[float, bool]:
        """Return a continuation's log-likelihood, and whether greedy decoding would give it."""
        sample = _sample(images, question)
        call, kept = self._call([sample])
        tokenizer = self.vlm.processor.tokenizer
        start = self.asked.prompt(len(images), question)
        whole = tokenizer(start + continuation, add_special_tokens=False)["input_ids"]
        count = len(whole) - len(tokenizer(start, add_special_tokens=False)["input_ids"])
        assert count > 0, "the continuation is empty"
        scored = continuation_log_likelihood(self.vlm.model, call, kept, [whole[-count:]])
        return float(scored.sums[0]), bool(scored.greedy[0])

    def _call(
        self, samples: Sequence[EvaluationSample]
    ) -> tuple[dict[str, Any], list[Tensor] | None]:
        """Return the arguments of `generate` for some questions, and what a baseline keeps."""
        texts = [self.asked.prompt(len(s.images), s.questions[0]) for s in samples]
        if self.baseline is None or not samples[0].images:
            return dict(self.vlm.inputs([sample.images for sample in samples], texts)), None
        needs = self.baseline.needs
        earlier = {self.baseline.site} - {"after_projector"}
        encoded = self.asked.encode(samples, "class_attention" in needs, sorted(earlier))
        self.smaller_images += sum(
            is_smaller(self.budget, len(image)) for images in encoded.images for image in images
        )
        prompts = self.asked.prompts(samples, encoded, [(i, 0) for i in range(len(samples))])
        chosen = choose(
            self.baseline,
            prompts.images,
            self._tokens,
            self.seed,
            self.asked.question_embeddings(prompts) if "question" in needs else None,
            self.asked.llm_attention(prompts, encoded) if "llm_attention" in needs else None,
        )
        return pruned_call(self.asked, prompts, encoded, chosen)

    def _tokens(self, count: int) -> int:
        """Return K of an image with `count` visual tokens."""
        assert self.budget is not None
        return kept_tokens(self.budget, count)


def _sample(images: Sequence[Image.Image], question: str) -> EvaluationSample:
    """Return a question as a sample, named by the pixels of its images; they are read as seen."""
    images = [read_image(image) for image in images]
    key = hashlib.sha256(b"".join(image.tobytes() for image in images)).hexdigest()
    return EvaluationSample(key, tuple(images), (question,), (("",),), ("",), ((),), (question,))
