"""Training corpus of the reference VLM: scenes, dense patch labels and tokenised questions.

Rendered once into memory-mapped arrays in a work folder, in parallel, restartable chunk by chunk.
"""

import io
import json
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from autoselect.reference.questions import ask
from autoselect.reference.scenes import (
    COLOURS,
    PLATE_CHARACTERS,
    SHAPES,
    Scene,
    make_scene,
    scene_rng,
)
from autoselect.reference.vlm import GRID, PATCH_SIZE, build_tokenizer

QUESTIONS_PER_IMAGE = 8
SLOT_TOKENS = 16
IGNORED = 255
JPEG_QUALITY = 92
CHUNK = 1000
RenderChunk = Callable[[tuple[int, int, int]], tuple[int, dict[str, np.ndarray]]]
FAMILY_MIX = (
    "existence",
    "relation",
    "counting",
    "attribute",
    "text",
    "relation",
    "counting",
    "existence",
    "attribute",
    "attribute",
    "relation",
)


def to_jpeg(image: Image.Image) -> bytes:
    """Encode as the shards do, so that training and evaluation see the same artefacts."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()


def patch_labels(scene: Scene) -> np.ndarray:
    """Dense targets `[4, GRID * GRID]`: shape, colour, character (0 = none), centre (0 or 1).

    Patches at the rim of an object are `IGNORED`.
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
    """Question slots `[Q, SLOT_TOKENS]`, zero-padded, and where each answer begins `[Q]`.

    Args:
        questions: of one image; those beyond Q are left out.
        tokenizer: of the VLM.
        dtype: of the token ids.
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


def _render_chunk(task: tuple[int, int, int]) -> tuple[int, dict[str, np.ndarray]]:
    seed, start, stop = task
    tokenizer = build_tokenizer()
    columns: dict[str, list] = {"images": [], "labels": [], "tokens": [], "starts": []}
    for index in range(start, stop):
        scene = make_scene(seed, "train", index)
        rng = scene_rng(seed + 1, "train", index)
        mix = tuple(rng.permutation(np.array(FAMILY_MIX)))
        tokens, starts = encode_slots(ask(rng, scene, mix), tokenizer)
        pixels = np.asarray(Image.open(io.BytesIO(to_jpeg(scene.image))))
        columns["images"].append(pixels)
        columns["labels"].append(patch_labels(scene))
        columns["tokens"].append(tokens)
        columns["starts"].append(starts)
    return start, {name: np.stack(values) for name, values in columns.items()}


@dataclass(frozen=True)
class Corpus:
    """Memory-mapped columns.

    `images` [M, 96, 96, 3], `labels` [M, 4, 144], `tokens` [M, Q, 16], `starts` [M, Q], all uint8.
    """

    images: np.ndarray
    labels: np.ndarray
    tokens: np.ndarray
    starts: np.ndarray

    def __len__(self) -> int:
        return len(self.images)


def build_corpus(folder: Path, size: int, seed: int, workers: int | None = None) -> Corpus:
    """Render (or finish rendering) `size` training scenes into `folder` and open them."""
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
    """Render (or finish rendering) memory-mapped columns of `size` rows into `folder`.

    Args:
        folder: where they lie; created if missing.
        size: rows.
        seed: of the data.
        kinds: shape of one row and dtype of each column.
        render_chunk: makes the rows of one (seed, start, stop).
        workers: processes; one for each core by default.
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
            ledger.write_text(json.dumps(sorted(done)))
    return columns
