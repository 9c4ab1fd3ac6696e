"""Render the training corpus of the second reference VLM: scenes and pages in turn.

The images are resized like the processor of the VLM does, and are stored with dense labels and
tokenised questions.
"""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from autoselect.reference.corpus import (
    FAMILY_MIX,
    QUESTIONS_PER_IMAGE,
    SLOT_TOKENS,
    build_columns,
    encode_slots,
    to_jpeg,
)
from autoselect.reference.documents.canvas import PAGE_SIZE
from autoselect.reference.documents.pages import ask_page, make_page
from autoselect.reference.questions import Question, ask
from autoselect.reference.scenes import make_scene, scene_rng
from autoselect.reference.siglip_qwen2.labels import CHANNELS, page_labels, scene_labels
from autoselect.reference.siglip_qwen2.vlm import NUM_VISUAL_TOKENS, build_tokenizer

KINDS: dict[str, tuple[tuple[int, ...], Any]] = {
    "images": ((PAGE_SIZE, PAGE_SIZE, 3), np.uint8),
    "labels": ((len(CHANNELS), NUM_VISUAL_TOKENS), np.uint8),
    "tokens": ((QUESTIONS_PER_IMAGE, SLOT_TOKENS), np.uint16),
    "starts": ((QUESTIONS_PER_IMAGE,), np.uint8),
}


@dataclass(frozen=True)
class MixedCorpus:
    """Memory-mapped arrays of M images as in `KINDS`; even rows are scenes, odd rows are pages."""

    images: np.ndarray
    labels: np.ndarray
    tokens: np.ndarray
    starts: np.ndarray

    def __len__(self) -> int:
        return len(self.images)


def _row(seed: int, index: int) -> tuple[Image.Image, np.ndarray, list[Question]]:
    number = index // 2
    if index % 2:
        page = make_page(seed, "train", number)
        return page.image, page_labels(page), ask_page(page, QUESTIONS_PER_IMAGE)
    scene = make_scene(seed, "train", number)
    rng = scene_rng(seed + 1, "train", number)
    mix = tuple(str(name) for name in rng.permutation(np.array(FAMILY_MIX)))
    return scene.image, scene_labels(scene), ask(rng, scene, mix)


def _render_chunk(task: tuple[int, int, int]) -> tuple[int, dict[str, np.ndarray]]:
    seed, start, stop = task
    tokenizer = build_tokenizer()
    columns: dict[str, list] = {name: [] for name in KINDS}
    for index in range(start, stop):
        image, labels, questions = _row(seed, index)
        tokens, starts = encode_slots(questions, tokenizer, np.uint16)
        decoded = Image.open(io.BytesIO(to_jpeg(image)))
        resized = decoded.resize((PAGE_SIZE, PAGE_SIZE), Image.Resampling.BICUBIC)
        columns["images"].append(np.asarray(resized))
        columns["labels"].append(labels)
        columns["tokens"].append(tokens)
        columns["starts"].append(starts)
    return start, {name: np.stack(values) for name, values in columns.items()}


def build_mixed_corpus(
    folder: Path, size: int, seed: int, workers: int | None = None
) -> MixedCorpus:
    """Render `size` images into `folder`, or resume it, and open the corpus."""
    return MixedCorpus(**build_columns(folder, size, seed, KINDS, _render_chunk, workers))
