"""Render the training corpus of the reference VLM: scenes, patch labels and tokenised questions.

The corpus is rendered once, in parallel, into memory-mapped arrays in a work folder. An interrupted
run resumes with the next chunk of scenes.
"""

import json
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from autoselect.files.atomic import write_text
from autoselect.reference.jpeg import through_jpeg
from autoselect.reference.questions import FAMILY_MIX, QUESTIONS_PER_IMAGE, Question, ask
from autoselect.reference.scenes import (
    COLOURS,
    PLATE_CHARACTERS,
    SHAPES,
    Scene,
    make_scene,
    scene_rng,
)
from autoselect.reference.vlm import GRID, PATCH_SIZE, build_tokenizer

SLOT_TOKENS = 16
IGNORED = 255
CHUNK = 1000
Rows = tuple[int, dict[str, np.ndarray]]
RenderChunk = Callable[[tuple[int, int, int]], Rows]


def pixels(images: np.ndarray) -> Tensor:
    """Return uint8 images [B, H, W, 3] normalised like the processor does, [B, 3, H, W]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1.0


def patch_labels(scene: Scene) -> np.ndarray:
    """Return the labels of all patches, [4, GRID * GRID].

    The rows are shape, colour and character (0 = none) and centre of an object (0 or 1). Patches at
    the rim of an object are `IGNORED`.
    """
    labels = np.zeros((4, GRID, GRID), dtype=np.uint8)
    middles = (np.arange(GRID) + 0.5) * PATCH_SIZE
    for item in scene.objects:
        cx, cy = item.centre
        radius = (item.box[2] - item.box[0]) / 2
        distance = np.hypot(middles[None, :] - cx, middles[:, None] - cy)
        labels[:2, distance < 1.35 * radius] = IGNORED
        inside = distance < 0.75 * radius
        labels[0, inside] = 1 + SHAPES.index(item.shape)
        labels[1, inside] = 1 + list(COLOURS).index(item.colour)
        row, column = int(cy // PATCH_SIZE), int(cx // PATCH_SIZE)
        labels[0, row, column] = 1 + SHAPES.index(item.shape)
        labels[1, row, column] = 1 + list(COLOURS).index(item.colour)
        labels[3, row, column] = 1
    for character, box in zip(scene.plate.text, scene.plate.character_boxes, strict=True):
        cx, cy = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
        near = np.maximum(np.abs(middles[None, :] - cx) / 6, np.abs(middles[:, None] - cy) / 8)
        labels[2, (near < 1.3) & (labels[2] == 0)] = IGNORED
        row, column = int(cy // PATCH_SIZE), int(cx // PATCH_SIZE)
        labels[2, row, column] = 1 + PLATE_CHARACTERS.index(character)
        labels[3, row, column] = 1
    return labels.reshape(4, GRID * GRID)


def encode_slots(
    questions: list, tokenizer: Any, dtype: Any = np.uint8
) -> tuple[np.ndarray, np.ndarray]:
    """Return zero-padded question slots [Q, SLOT_TOKENS] and the start of each answer [Q].

    Questions beyond Q are left out. The slots have the given dtype, the starts are uint8.
    """
    tokens = np.zeros((QUESTIONS_PER_IMAGE, SLOT_TOKENS), dtype=dtype)
    starts = np.full(QUESTIONS_PER_IMAGE, SLOT_TOKENS, dtype=np.uint8)
    for row, question in enumerate(questions[:QUESTIONS_PER_IMAGE]):
        prompt = tokenizer(f"{question.question}<assistant>")["input_ids"]
        answer = tokenizer(f"{question.answer}</s>")["input_ids"]
        ids = prompt + answer
        assert len(ids) <= SLOT_TOKENS, f"question too long for a slot: {question.question}"
        tokens[row, : len(ids)] = ids
        starts[row] = len(prompt)
    return tokens, starts


def training_scene(seed: int, index: int) -> tuple[Scene, list[Question]]:
    scene = make_scene(seed, "train", index)
    rng = scene_rng(seed + 1, "train", index)
    mix = tuple(str(name) for name in rng.permutation(np.array(FAMILY_MIX)))
    return scene, ask(rng, scene, mix)


def as_columns(
    rows: Iterable[tuple[Image.Image, np.ndarray, list[Question]]],
    tokenizer: Any,
    dtype: Any = np.uint8,
) -> dict[str, np.ndarray]:
    """Return the arrays of a `Corpus` for some images with their labels and questions."""
    columns = [
        (np.asarray(image), labels, *encode_slots(questions, tokenizer, dtype))
        for image, labels, questions in rows
    ]
    names = [field.name for field in fields(Corpus)]
    return dict(zip(names, map(np.stack, zip(*columns, strict=True)), strict=True))


def _render_chunk(task: tuple[int, int, int]) -> Rows:
    seed, start, stop = task
    scenes = (training_scene(seed, index) for index in range(start, stop))
    rows = ((through_jpeg(scene.image), patch_labels(scene), asked) for scene, asked in scenes)
    return start, as_columns(rows, build_tokenizer())


@dataclass(frozen=True)
class Corpus:
    """Memory-mapped arrays of M images.

    Attributes:
        images: RGB pixels, [M, height, width, 3].
        labels: labels of each patch by channel, such as the output of `patch_labels`, [M, C, N].
        tokens: question slots, [M, Q, 16].
        starts: start of each answer in its slot, [M, Q].
    """

    images: np.ndarray
    labels: np.ndarray
    tokens: np.ndarray
    starts: np.ndarray

    def __len__(self) -> int:
        return len(self.images)


def build_corpus(folder: Path, size: int, seed: int, workers: int | None = None) -> Corpus:
    """Render `size` training scenes into `folder`, or resume it, and open the corpus."""
    shapes = {
        "images": (GRID * PATCH_SIZE, GRID * PATCH_SIZE, 3),
        "labels": (4, GRID * GRID),
        "tokens": (QUESTIONS_PER_IMAGE, SLOT_TOKENS),
        "starts": (QUESTIONS_PER_IMAGE,),
    }
    kinds = {name: (shape, np.uint8) for name, shape in shapes.items()}
    return Corpus(**build_columns(folder, size, seed, kinds, _render_chunk, workers))


def build_columns(
    folder: Path,
    size: int,
    seed: int,
    kinds: dict[str, tuple[tuple[int, ...], Any]],
    render_chunk: RenderChunk,
    workers: int | None = None,
) -> dict[str, np.ndarray]:
    """Render memory-mapped arrays of `size` rows into `folder`, or resume it, and open them.

    Args:
        folder: work folder; created if it is missing.
        size: number of rows of every array.
        seed: seed of the rendered data; part of the file names.
        kinds: shape of one row and dtype, by name of the array.
        render_chunk: returns the first row number and the rows of a task (seed, start, stop).
        workers: number of processes; one per core by default.
    """
    folder.mkdir(parents=True, exist_ok=True)
    ledger = folder / f"done-{seed}-{size}.json"
    done = set(json.loads(ledger.read_text())) if ledger.exists() else set()
    columns: dict[str, Any] = {}
    for name, (shape, dtype) in kinds.items():
        path = folder / f"{name}-{seed}-{size}.npy"
        mode: Any = "r+" if path.exists() and done else "w+"
        columns[name] = np.lib.format.open_memmap(
            path, mode=mode, dtype=dtype, shape=(size, *shape)
        )
    tasks = [
        (seed, start, min(start + CHUNK, size))
        for start in range(0, size, CHUNK)
        if start not in done
    ]
    with ProcessPoolExecutor(workers or os.cpu_count()) as pool:
        for start, chunk in tqdm(
            pool.map(render_chunk, tasks), total=len(tasks), desc="rendering", disable=None
        ):
            for name, values in chunk.items():
                columns[name][start : start + len(values)] = values
                columns[name].flush()
            done.add(start)
            write_text(ledger, json.dumps(sorted(done)))
    return columns
