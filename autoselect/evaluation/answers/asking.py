"""Images and questions to texts, by the model's own processor and its own `generate`.

Works for every family: whatever is attached to the model takes part.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from autoselect.evaluation.methods.attachable import BaselineSelector
from autoselect.vlm import FrozenVLM
from autoselect.vlm.backbone import chat
from autoselect.vlm.text.placeholders import question_content
from autoselect.vlm.text.tokens import adds_special_tokens


class AskedVLM:
    """A model that answers questions.

    Args:
        vlm: the model, with a selector or baseline attached or not.
        baseline: what is attached, where it draws choices from the names of the images.
    """

    def __init__(self, vlm: FrozenVLM, baseline: BaselineSelector | None = None) -> None:
        self.vlm = vlm
        self.baseline = baseline

    def inputs(
        self, images: Sequence[Sequence[Image.Image]], texts: Sequence[str]
    ) -> dict[str, Tensor]:
        """Everything `model.generate` needs, padded on the left.

        Args:
            images: of each row; all rows have some, or none has.
            texts: of the chat template.
        """
        pictures = {"images": [list(row) for row in images]} if images[0] else {}
        encoded = self.vlm.processor(
            text=list(texts),
            **pictures,
            padding=True,
            padding_side="left",
            return_tensors="pt",
            add_special_tokens=adds_special_tokens(self.vlm.processor.tokenizer, texts[0]),
        )
        if self.baseline is not None:
            self.baseline.keys = [image_key(image) for row in images for image in row]
            self.baseline.sizes = [image.size for row in images for image in row]
        return dict(encoded.to(self.vlm.device, self.vlm.dtype))

    def prompt(self, image_count: int, question: str, answer: str | None = None) -> str:
        """A conversation of one question, and perhaps its answer, in the model's chat template.

        Args:
            image_count: images that it is about; they stand where the question marks them, or
                first where its marks are not as many.
            question: text.
            answer: its beginning is enough.
        """
        messages = [{"role": "user", "content": question_content(question, image_count)}]
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
