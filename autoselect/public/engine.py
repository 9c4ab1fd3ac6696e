"""A public model with a selector, a baseline or nothing attached: images and questions to texts."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from PIL import Image
from torch import Tensor

from autoselect.attachment import attach
from autoselect.config import ConfigError
from autoselect.public.baselines import BaselineSelector
from autoselect.selector import Selector
from autoselect.vlm import FrozenVLM
from autoselect.vlm.backbone import chat

FULL = "full"
SELECTOR = "autoselect"
IMAGE_MARK = "<image>"
DTYPES = {"auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16}


def parse_budget(value: object) -> int | float | None:
    """K (64), a share (0.11 or `11%`), or None for `full`.

    Raises:
        ConfigError: anything else.
    """
    text = str(value).strip()
    if text == FULL:
        return None
    try:
        if text.endswith("%"):
            return float(text[:-1]) / 100
        return int(text) if text.isdigit() else float(text)
    except ValueError:
        raise ConfigError(
            f"budget={value!r} must be full, a number of tokens, a share (0.11) or a percentage"
        ) from None


class PrunedVLM:
    """A model that answers questions, with all or with K visual tokens per image.

    Args:
        pretrained: folder or hub name of the model.
        selector: folder or hub name of the selector; needed for the method `autoselect`.
        budget: see `parse_budget`.
        method: `autoselect`, or a baseline.
        seed: of the random baseline.
        dtype: `auto`, `float32` or `bfloat16`.
        device: a GPU where there is one by default.

    Raises:
        ConfigError: one of them cannot be loaded, or they do not fit each other.
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
        where = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.budget = parse_budget(budget)
        if self.budget is not None and method == SELECTOR and selector is None:
            raise ConfigError(
                f"budget={budget} needs a selector: give selector=FOLDER, choose a baseline with "
                "method=, or take budget=full"
            )
        self.vlm = FrozenVLM.from_pretrained(pretrained, DTYPES[dtype], where)
        self.baseline: BaselineSelector | None = None
        if self.budget is None:
            return
        if method == SELECTOR:
            assert selector is not None
            chosen = Selector.from_pretrained(selector, device=where)
        else:
            self.baseline = BaselineSelector(method, self.budget, self.vlm.width, seed)
            chosen = cast(Selector, self.baseline)
        attach(self.vlm.model, chosen, self.budget)

    def inputs(
        self, images: Sequence[Sequence[Image.Image]], texts: Sequence[str]
    ) -> dict[str, Tensor]:
        """Everything `model.generate` needs, padded on the left.

        Args:
            images: of each row; all rows have some, or none has.
            texts: of the chat template.
        """
        tokenizer = self.vlm.processor.tokenizer
        pictures = {"images": [list(row) for row in images]} if images[0] else {}
        encoded = self.vlm.processor(
            text=list(texts),
            **pictures,
            padding=True,
            padding_side="left",
            return_tensors="pt",
            add_special_tokens=not texts[0].startswith(tokenizer.bos_token or "\0"),
        )
        if self.baseline is not None:
            self.baseline.keys = [image_key(image) for row in images for image in row]
        return dict(encoded.to(self.vlm.device, self.vlm.dtype))

    def prompt(self, image_count: int, question: str, answer: str | None = None) -> str:
        """A conversation of one question, and perhaps its answer, in the model's chat template."""
        content: list[dict[str, Any]] = [{"type": "image"}] * image_count
        content.append({"type": "text", "text": question.replace(IMAGE_MARK, "").strip()})
        messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
        text = chat(self.vlm.processor, messages, generation=True)
        return text if answer is None else text + answer

    @torch.inference_mode()
    def answer(
        self,
        images: Sequence[Sequence[Image.Image]],
        questions: Sequence[str],
        options: Mapping[str, Any],
    ) -> list[str]:
        """Generated texts, one per row; rows with and without images may stand beside each other.

        Args:
            images: of each row.
            questions: plain text.
            options: of `generate`, such as `max_new_tokens`.
        """
        texts = [""] * len(questions)
        for wanted in (True, False):
            rows = [i for i, own in enumerate(images) if bool(own) == wanted]
            if not rows:
                continue
            prompts = [self.prompt(len(images[i]), questions[i]) for i in rows]
            inputs = self.inputs([images[i] for i in rows], prompts)
            tokenizer = self.vlm.processor.tokenizer
            pad = tokenizer.pad_token_id
            produced = self.vlm.model.generate(
                **inputs, **options, pad_token_id=tokenizer.eos_token_id if pad is None else pad
            )
            new = produced[:, inputs["input_ids"].shape[1] :]
            decoded = tokenizer.batch_decode(new, skip_special_tokens=True)
            for i, text in zip(rows, decoded, strict=True):
                texts[i] = text.strip()
        return texts

    @torch.inference_mode()
    def likelihood(
        self, images: Sequence[Image.Image], question: str, continuation: str
    ) -> tuple[float, bool]:
        """Log-likelihood of a continuation, and whether greedy decoding would give it."""
        start = self.inputs([images], [self.prompt(len(images), question)])
        whole = self.inputs([images], [self.prompt(len(images), question, continuation)])
        count = whole["input_ids"].shape[1] - start["input_ids"].shape[1]
        assert count > 0, "the continuation is empty"
        wanted = whole["input_ids"][0, -count:]
        logits = self.vlm.model(**whole).logits[0, -count - 1 : -1].float()
        given = logits.log_softmax(-1).gather(1, wanted[:, None]).sum()
        return float(given), bool((logits.argmax(-1) == wanted).all())


def image_key(image: Image.Image) -> str:
    """A name that follows from the pixels alone."""
    return hashlib.sha256(image.tobytes()).hexdigest()
