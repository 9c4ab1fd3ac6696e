"""Render the training corpus of the second reference VLM: scenes and pages in turn.

The images are resized like the processor of the VLM does, and are stored with dense labels and
tokenised questions.
"""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from autoselect.reference.corpus import (
    SLOT_TOKENS,
    Corpus,
    Rows,
    as_columns,
    build_columns,
    training_scene,
)
from autoselect.reference.documents.canvas import PAGE_SIZE
from autoselect.reference.documents.pages import ask_page, make_page
from autoselect.reference.jpeg import through_jpeg
from autoselect.reference.questions import QUESTIONS_PER_IMAGE, Question
from autoselect.reference.siglip_qwen2.labels import CHANNELS, page_labels, scene_labels
from autoselect.reference.siglip_qwen2.vlm import NUM_VISUAL_TOKENS, build_tokenizer

KINDS: dict[str, tuple[tuple[int, ...], Any]] = {
    "images": ((PAGE_SIZE, PAGE_SIZE, 3), np.uint8),
    "labels": ((len(CHANNELS), NUM_VISUAL_TOKENS), np.uint8),
    "tokens": ((QUESTIONS_PER_IMAGE, SLOT_TOKENS), np.uint16),
    "starts": ((QUESTIONS_PER_IMAGE,), np.uint8),
}


def seen(image: Image.Image) -> Image.Image:
    """Return an image as the VLM sees it: compressed like the shards, then resized."""
    return through_jpeg(image).resize((PAGE_SIZE, PAGE_SIZE), Image.Resampling.BICUBIC)


def _row(seed: int, index: int) -> tuple[Image.Image, np.ndarray, list[Question]]:
    number = index // 2
    if index % 2:
        page = make_page(seed, "train", number)
        return seen(page.image), page_labels(page), ask_page(page, QUESTIONS_PER_IMAGE)
    scene, questions = training_scene(seed, number)
    return seen(scene.image), scene_labels(scene), questions


def _render_chunk(task: tuple[int, int, int]) -> Rows:
    seed, start, stop = task
    rows = (_row(seed, index) for index in range(start, stop))
    return start, as_columns(rows, build_tokenizer(), np.uint16)


def build_mixed_corpus(folder: Path, size: int, seed: int, workers: int | None = None) -> Corpus:
    """Render `size` images into `folder`, or resume it, and open the corpus.

    Even rows are scenes, odd rows are pages.
    """
    return Corpus(**build_columns(folder, size, seed, KINDS, _render_chunk, workers))
