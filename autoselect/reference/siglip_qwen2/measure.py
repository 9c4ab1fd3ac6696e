"""Measure the accuracy of the second reference VLM per family, on both domains.

An answer is right if greedy decoding returns exactly its tokens and the end token. This holds if
and only if each of these tokens is the most likely one after the right tokens before it. One packed
forward pass therefore checks all questions about an image.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm
from transformers import AutoTokenizer, LlavaForConditionalGeneration

from autoselect.reference.corpus import encode_slots, pixels
from autoselect.reference.documents.pages import PAGE_FAMILIES, ask_page, make_page
from autoselect.reference.measure import IMAGES_PER_BATCH, SEED, Table, table
from autoselect.reference.questions import FAMILIES, QUESTIONS_PER_IMAGE, Question, ask
from autoselect.reference.scenes import make_scene, scene_rng
from autoselect.reference.shards import PAGE_ROUNDS
from autoselect.reference.siglip_qwen2.corpus import seen
from autoselect.reference.siglip_qwen2.vlm import NUM_VISUAL_TOKENS
from autoselect.reference.stage import autocast
from autoselect.reference.train_language import answer_logits
from autoselect.reference.train_tower import tower_features

KEPT = {"full": NUM_VISUAL_TOKENS, "random 49": 49, "random 25": 25, "blind": 0}
OTHER = "another image"
Sample = tuple[Image.Image, list[Question]]


@dataclass(frozen=True)
class Domain:
    """The question families of a domain, and a function that makes its test sample of an index."""

    families: tuple[str, ...]
    make: Callable[[int], Sample]


def _scene(index: int) -> Sample:
    scene = make_scene(SEED, "test", index)
    return scene.image, ask(scene_rng(SEED + 1, "test", index), scene, FAMILIES)


def _page(index: int) -> Sample:
    page = make_page(SEED, "test", index)
    return page.image, ask_page(page, PAGE_ROUNDS)


DOMAINS = {"scenes": Domain(FAMILIES, _scene), "pages": Domain(PAGE_FAMILIES, _page)}


class Tally:
    """A count of right answers by setting and family."""

    def __init__(self, families: tuple[str, ...]) -> None:
        self.families = families
        self.right = {setting: dict.fromkeys(families, 0) for setting in (*KEPT, OTHER)}
        self.asked = dict.fromkeys(families, 0)

    def add(self, setting: str, questions: list[list[Question]], right: np.ndarray) -> None:
        """Add the answers of one batch.

        Args:
            setting: a key of `KEPT`, or `OTHER`.
            questions: the questions about each of B images, at most Q per image.
            right: True for exactly right answers, [B, Q].
        """
        for row, asked in enumerate(questions):
            for slot, question in enumerate(asked):
                self.right[setting][question.family] += int(right[row, slot])
                self.asked[question.family] += setting == OTHER

    def shares(self) -> Table:
        """Return the share of right answers by setting and family."""
        return {
            setting: {name: counts[name] / max(1, self.asked[name]) for name in self.families}
            for setting, counts in self.right.items()
        }


def measure_mixed_vlm(path: str, images: int) -> dict[str, Table]:
    """Return the share of exactly right answers by domain, setting and family.

    Args:
        path: folder of the VLM.
        images: number of test images per domain.
    """
    model = LlavaForConditionalGeneration.from_pretrained(path, dtype=torch.float32).eval()
    model.set_attn_implementation("reference_matmul")
    tokenizer = AutoTokenizer.from_pretrained(Path(path))
    measured = {}
    for name, domain in DOMAINS.items():
        tally = Tally(domain.families)
        for start in tqdm(range(0, images, IMAGES_PER_BATCH), desc=name, disable=None):
            stop = min(start + IMAGES_PER_BATCH, images)
            samples = [domain.make(index) for index in range(start, stop)]
            _measure_batch(model, tokenizer, samples, tally, SEED + start)
        measured[name] = tally.shares()
    return measured


@torch.no_grad()
def _measure_batch(model, tokenizer, samples: list[Sample], tally: Tally, seed: int) -> None:
    """Answer the questions about some images in every setting and add them to the tally."""
    questions = [asked for _, asked in samples]
    slots = [encode_slots(asked, tokenizer, np.int64) for asked in questions]
    tokens = torch.from_numpy(np.stack([ids for ids, _ in slots]))
    starts = torch.from_numpy(np.stack([begins for _, begins in slots]).astype(np.int64))
    keys = torch.from_numpy(np.random.default_rng(seed).random((len(samples), NUM_VISUAL_TOKENS)))
    with autocast():
        images = np.stack([np.asarray(seen(image)) for image, _ in samples])
        features = tower_features(model, pixels(images)).float()
        for setting, count in {**KEPT, OTHER: NUM_VISUAL_TOKENS}.items():
            shown = features.roll(1, dims=0) if setting == OTHER else features
            kept = keys.argsort(dim=1)[:, :count].sort(dim=1).values
            tally.add(setting, questions, exactly_right(model, shown, kept, tokens, starts))


def exactly_right(
    model: LlavaForConditionalGeneration, features: Tensor, kept: Tensor, tokens: Tensor, starts
) -> np.ndarray:
    """Return True for each answer that greedy decoding returns exactly, [B, Q].

    Args:
        model: a reference VLM.
        features: tower features of all patches, [B, N, D].
        kept: positions of the kept visual tokens, ascending, [B, K].
        tokens: question slots, [B, Q, S].
        starts: start of each answer in its slot, [B, Q].
    """
    logits, targets, rows = answer_logits(model, features, kept, tokens, starts)
    wrong = torch.zeros(len(tokens) * QUESTIONS_PER_IMAGE, dtype=torch.long)
    wrong.index_add_(0, rows, (logits.argmax(-1) != targets).long())
    return (wrong == 0).view(len(tokens), -1).numpy()


def tables(measured: dict[str, Table]) -> str:
    """Return one Markdown table per domain."""
    return "\n".join(f"{table(own, f'{name}: visual tokens')}\n" for name, own in measured.items())
