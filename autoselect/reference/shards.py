"""Write the reference data as WebDataset shards: `autoselect reference shards`.

The same seed gives the same data; text on pages also depends on how Pillow sets it. A training
sample holds up to eight rounds about one image. A sample of the validation or test split holds one
round per family, or four rounds about one page; these are asked independently. A caption is one
round about a scene.
"""

import json
import logging
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import features
from tqdm import tqdm

from autoselect.config import ConfigError
from autoselect.data.shards import ShardWriter
from autoselect.files.atomic import write_text
from autoselect.reference.clutter import Split
from autoselect.reference.documents.pages import ask_page, make_page
from autoselect.reference.jpeg import to_jpeg
from autoselect.reference.questions import (
    FAMILIES,
    FAMILY_MIX,
    QUESTIONS_PER_IMAGE,
    Question,
    ask,
    caption,
)
from autoselect.reference.recipe import ReferenceData
from autoselect.reference.scenes import make_scene, scene_rng

logger = logging.getLogger(__name__)
SAMPLES_PER_SHARD = 500
PAGE_ROUNDS = 4


def record_of(key: str, questions: list[Question]) -> dict[str, Any]:
    turns: list[dict[str, str]] = []
    for number, question in enumerate(questions):
        mark = "<image>\n" if number == 0 else ""
        turns.append({"from": "human", "value": f"{mark}{question.question}"})
        turns.append({"from": "gpt", "value": question.answer})
    return {
        "id": key,
        "conversations": turns,
        "tasks": [question.family for question in questions],
        "boxes": [[list(box) for box in question.boxes] for question in questions],
    }


def render_sample(seed: int, split: Split, index: int) -> tuple[str, dict[str, Any], bytes]:
    scene = make_scene(seed, split, index)
    rng = scene_rng(seed + 1, split, index)
    families: tuple[str, ...] = FAMILIES
    if split == "train":
        families = tuple(str(name) for name in rng.permutation(np.array(FAMILY_MIX)))
    questions = ask(rng, scene, families)[:QUESTIONS_PER_IMAGE]
    key = f"{split}-{index:07d}"
    record = record_of(key, questions)
    record["objects"] = [
        {"shape": item.shape, "colour": item.colour, "box": list(item.box)}
        for item in scene.objects
    ]
    return key, record, to_jpeg(scene.image)


def render_page(seed: int, split: Split, index: int) -> tuple[str, dict[str, Any], bytes]:
    """Return key, record and JPEG of a page; validation and test ask `PAGE_ROUNDS` questions."""
    page = make_page(seed, split, index)
    questions = ask_page(page, QUESTIONS_PER_IMAGE if split == "train" else PAGE_ROUNDS)
    key = f"{split}-page-{index:07d}"
    record = record_of(key, questions)
    record["answers"] = [[question.answer] for question in questions]
    record["kind"] = page.kind
    return key, record, to_jpeg(page.image)


def render_caption(seed: int, split: Split, index: int) -> tuple[str, dict[str, Any], bytes]:
    """Return key, record and JPEG of a scene with its caption instead of questions."""
    scene = make_scene(seed, split, index)
    key = f"{split}-{index:07d}"
    return key, record_of(key, [caption(scene)]), to_jpeg(scene.image)


Renderer = Callable[[int, Split, int], tuple[str, dict[str, Any], bytes]]
DOMAINS: dict[str, Renderer] = {
    "scenes": render_sample,
    "pages": render_page,
    "captions": render_caption,
}


def _write_shard(task: tuple[str, str, int, Split, int, int]) -> int:
    domain, folder, seed, split, number, stop = task
    start = number * SAMPLES_PER_SHARD
    with ShardWriter(folder, split, SAMPLES_PER_SHARD, first_shard=number) as writer:
        for index in range(start, stop):
            key, record, jpeg = DOMAINS[domain](seed, split, index)
            writer.write(key, record, [jpeg])
    return number


def render_shards(
    folder: Path, sizes: ReferenceData, workers: int | None = None, domain: str = "scenes"
) -> None:
    """Write the missing shards of all three splits into `folder`.

    Args:
        folder: folder for the shards; created if it is missing.
        sizes: number of images of each split, and the seed.
        workers: number of processes, one per core by default; 1 works in this one.
        domain: what the images show, a key of `DOMAINS`.

    Raises:
        ConfigError: the folder holds reference data of another domain, other sizes or another seed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    note = folder / "reference.json"
    wanted = asdict(sizes) | ({} if domain == "scenes" else {"domain": domain})
    if note.exists() and json.loads(note.read_text()) != wanted:
        raise ConfigError(
            f"shards={folder} holds reference data of other sizes ({note.read_text().strip()}); "
            "choose another folder or remove this one"
        )
    write_text(note, json.dumps(wanted) + "\n")
    tasks: list[tuple[str, str, int, Split, int, int]] = []
    splits: tuple[tuple[Split, int], ...] = (
        ("train", sizes.train),
        ("val", sizes.val),
        ("test", sizes.test),
    )
    for split, count in splits:
        for number in range(-(-count // SAMPLES_PER_SHARD)):
            name = folder / f"{split}-{number:06d}.tar"
            if not (name.exists() and _has_index(name)):
                stop = min(count, (number + 1) * SAMPLES_PER_SHARD)
                tasks.append((domain, str(folder), sizes.seed, split, number, stop))
    if not tasks:
        logger.info("reference shards in %s are complete", folder)
        return
    if domain == "pages" and not features.check("raqm"):
        logger.warning(
            "Pillow finds no libfribidi, and then sets text a little differently: these pages are "
            "not those of benchmarks/results; to get the same pages install it first "
            "(apt-get install libfribidi0)"
        )
    shown = partial(tqdm, total=len(tasks), desc="rendering reference shards", disable=None)
    processes = workers or os.cpu_count() or 1
    if processes == 1:
        list(shown(map(_write_shard, tasks)))
    else:
        with ProcessPoolExecutor(processes) as pool:
            list(shown(pool.map(_write_shard, tasks)))
    logger.info("reference shards written to %s", folder)


def _has_index(shard: Path) -> bool:
    return any(p.name.startswith(shard.name) and p != shard for p in shard.parent.iterdir())
