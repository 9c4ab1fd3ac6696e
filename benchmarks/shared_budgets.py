"""Does it help if images share a budget, so that one keeps more tokens than another?

    python benchmarks/shared_budgets.py --model FOLDER --selector FOLDER --budgets 8,16 --json FILE

All rules keep K tokens of an image on average, between K / 2 and 2 K of each, on the same test
images of the reference data:

    uniform         K of each image
    score           the tokens with the best scores of all images
    standardised    the same after standardising the scores within each image
    mass            as many as hold the same share of the softmax of these scores
    boxes           in proportion to the tokens under the boxes of the image's questions, which no
                    selector knows

Differences to `uniform` are means over images in points of the full model's accuracy, with the 95 %
interval of their mean.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from autoselect import Selector, attach
from autoselect.evaluation.latency.environment import environment
from autoselect.evaluation.samples import EvaluationSample, EvaluationSet
from autoselect.evaluation.scores.metrics import exact_match
from autoselect.files.atomic import write_text
from autoselect.reference.resources import resolve_shards
from autoselect.vlm.text.placeholders import question_content

ROWS = 96
NEW_TOKENS = 8
STEPS = 60
"""Halvings of the interval in which a rule's parameter is searched."""


@dataclass(frozen=True)
class Asked:
    """A question of an image, by the image's number, with its accepted answers."""

    image: int
    text: str
    answers: tuple[str, ...]


class Subject:
    """A VLM with a selector, and test images with their questions."""

    def __init__(self, model: str, selector: str, images: int) -> None:
        import transformers as hf

        self.processor = hf.AutoProcessor.from_pretrained(model, backend="pil")
        self.processor.tokenizer.padding_side = "left"
        self.model = hf.AutoModelForImageTextToText.from_pretrained(model).eval()
        self.selector = Selector.from_pretrained(selector)
        attach(self.model, self.selector, 1.0)
        self.samples: list[EvaluationSample] = list(
            EvaluationSet.open(resolve_shards("reference", "test"), images)
        )
        self.asked = [
            Asked(number, question, accepted)
            for number, sample in enumerate(self.samples)
            for question, accepted in zip(sample.questions, sample.answers, strict=True)
        ]

    def inputs(self, asked: list[Asked]) -> Any:
        chats = [[{"role": "user", "content": question_content(own.text, 1)}] for own in asked]
        return self.processor(
            images=[self.samples[own.image].image for own in asked],
            text=[
                self.processor.apply_chat_template(chat, add_generation_prompt=True)
                for chat in chats
            ],
            padding=True,
            return_tensors="pt",
        )

    @torch.no_grad()
    def scores(self) -> Tensor:
        """Return the scores of all images, [B, N]."""
        found = []
        for start in range(0, len(self.samples), ROWS):
            some = range(start, min(start + ROWS, len(self.samples)))
            pixels = self.inputs([Asked(number, "", ()) for number in some])["pixel_values"]
            features = self.model.get_image_features(pixel_values=pixels).pooler_output
            found.append(self.selector.score(torch.stack(list(features))))
        return torch.cat(found).float()

    @torch.no_grad()
    def right(self, budgets: Tensor) -> Tensor:
        """Return which questions are answered rightly with a budget per image, bool, [Q]."""
        found = torch.zeros(len(self.asked), dtype=torch.bool)
        order = sorted(range(len(self.asked)), key=lambda q: int(budgets[self.asked[q].image]))
        for start in range(0, len(order), ROWS):
            part = order[start : start + ROWS]
            inputs = self.inputs([self.asked[q] for q in part])
            keep = [int(budgets[self.asked[q].image]) for q in part]
            output = self.model.generate(
                **inputs, max_new_tokens=NEW_TOKENS, do_sample=False, visual_token_budget=keep
            )
            ids = output[:, inputs["input_ids"].shape[1] :]
            replies = self.processor.batch_decode(ids, skip_special_tokens=True)
            for q, reply in zip(part, replies, strict=True):
                found[q] = any(exact_match(reply, own) for own in self.asked[q].answers)
        return found


def tokens_under_boxes(samples: list[EvaluationSample], side: int) -> Tensor:
    """Return how many of an image's side x side tokens its boxes touch, [B]."""
    counts = []
    for sample in samples:
        width, height = sample.image.size
        touched = torch.zeros(side, side, dtype=torch.bool)
        for left, top, right, bottom in (box for boxes in sample.boxes for box in boxes):
            rows = slice(int(top / height * side), int(bottom / height * side) + 1)
            touched[rows, int(left / width * side) : int(right / width * side) + 1] = True
        counts.append(int(touched.sum()))
    return torch.tensor(counts, dtype=torch.float)


def shared(count: Callable[[float], Tensor], k: int) -> Tensor:
    """Return the counts of tokens whose mean is nearest to `k`, by the rule's parameter.

    `count` falls with its parameter; the counts are limited to k / 2 and 2 k.
    """
    low, high = -30.0, 30.0
    for _ in range(STEPS):
        middle = (low + high) / 2
        enough = count(middle).clamp(max(1, k // 2), 2 * k).float().mean() > k
        low, high = (middle, high) if enough else (low, middle)
    return count(high).clamp(max(1, k // 2), 2 * k).long()


def rules(scores: Tensor, boxed: Tensor) -> dict[str, Callable[[int], Tensor]]:
    """Return the budgets [B] that each rule gives for a mean budget."""
    within = (scores - scores.mean(1, keepdim=True)) / scores.std(1, keepdim=True)
    held = within.softmax(1).sort(1, descending=True).values.cumsum(1)
    return {
        "uniform": lambda k: torch.full((len(scores),), k),
        "score": lambda k: shared(lambda limit: (scores > limit).sum(1), k),
        "standardised": lambda k: shared(lambda limit: (within > limit).sum(1), k),
        "mass": lambda k: shared(
            lambda limit: (held < torch.sigmoid(torch.tensor(-limit))).sum(1) + 1, k
        ),
        "boxes": lambda k: shared(lambda limit: (boxed * torch.tensor(-limit).exp()).round(), k),
    }


def by_image(right: Tensor, asked: list[Asked], images: int) -> Tensor:
    """Return the share of right answers of each image, [B]."""
    number = torch.tensor([own.image for own in asked])
    total = torch.zeros(images).index_add(0, number, right.float())
    return total / torch.bincount(number, minlength=images)


def measure(subject: Subject, budgets: list[int]) -> dict[str, Any]:
    scores = subject.scores()
    images, tokens = scores.shape
    boxed = tokens_under_boxes(subject.samples, round(tokens**0.5))
    full = subject.right(torch.full((images,), tokens)).float().mean().item()
    rows = []
    for k in budgets:
        uniform = None
        for name, rule in rules(scores, boxed).items():
            keep = rule(k)
            right = subject.right(keep)
            own = by_image(right, subject.asked, images)
            uniform = own if uniform is None else uniform
            difference = 100 * (own - uniform) / full
            rows.append(
                {
                    "budget": k,
                    "rule": name,
                    "retention": round(100 * right.float().mean().item() / full, 2),
                    "difference": round(difference.mean().item(), 2),
                    "interval": round(1.96 * difference.std().item() / images**0.5, 2),
                    "kept": {"mean": round(keep.float().mean().item(), 2)}
                    | {"least": int(keep.min()), "most": int(keep.max())},
                    "right_by_image": [round(value, 3) for value in own.tolist()],
                }
            )
            print({key: rows[-1][key] for key in list(rows[-1])[:-1]}, flush=True)
    return {"tokens": tokens, "images": images, "full_accuracy": round(full, 4), "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--model", required=True, help="folder of a VLM with one encoded image size"
    )
    parser.add_argument("--selector", required=True, help="folder of its selector")
    parser.add_argument("--budgets", required=True, help="mean budgets, with commas")
    parser.add_argument("--images", type=int, default=300, help="test images")
    parser.add_argument("--json", type=Path, required=True, help="JSON file for the result")
    options = parser.parse_args()
    subject = Subject(options.model, options.selector, options.images)
    found = measure(subject, [int(k) for k in options.budgets.split(",")])
    write_text(options.json, json.dumps({"environment": environment(), **found}) + "\n")


if __name__ == "__main__":
    main()
