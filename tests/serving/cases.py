"""Prompts about reference scenes, the files they need, and the form of what a run found.

This module imports neither vLLM nor transformers: the engine and `attach()` run in two processes,
because a running engine changes transformers' own models in its process.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from autoselect.reference.questions import FAMILIES, ask
from autoselect.reference.scenes import make_scene

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "autoselect" / "reference" / "model"
WIDTH, TOWER_WIDTH = 192, 128
NEW_TOKENS = 6


@dataclass(frozen=True)
class Case:
    """One prompt: numbers of the reference scenes in it, the question, and its budget."""

    scenes: tuple[int, ...]
    question: str
    answer: str
    budget: int | float

    @property
    def text(self) -> str:
        return f"<s><user>{'<image>' * len(self.scenes)}{self.question}<assistant>"

    @property
    def images(self) -> list[Image.Image]:
        return [picture(number) for number in self.scenes]


@dataclass(frozen=True)
class Found:
    """What a run made of a case: generated ids, and log-probabilities of the first of them."""

    ids: list[int]
    first: np.ndarray


@cache
def picture(number: int) -> Image.Image:
    return make_scene(0, "test", number).image


@cache
def questions(number: int) -> tuple[tuple[str, str], ...]:
    asked = ask(np.random.default_rng(number), make_scene(0, "test", number), FAMILIES)
    return tuple((own.question, own.answer) for own in asked)


def one_image(count: int, budget: int | float) -> list[Case]:
    """Return the questions of `count` scenes."""
    return [
        Case((number,), question, answer, budget)
        for number in range(count)
        for question, answer in questions(number)
    ]


def several_images(count: int, images: int, budget: int | float) -> list[Case]:
    """Return `count` prompts, each with `images` scenes and a question about the last."""
    return [
        Case(tuple(range(start, start + images)), *questions(start + images - 1)[1], budget)
        for start in range(count)
    ]


def truths(
    folder: Path, selector: Path, cases: Sequence[Case], dtype: str = "float32"
) -> list[Found]:
    """Return what `attach()` gives for each case, computed by another process."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [asdict(case) for case in cases]
    job = {"selector": str(selector), "cases": rows, "dtype": dtype}
    (folder / "cases.json").write_text(json.dumps(job))
    subprocess.run([sys.executable, "-m", "tests.serving.truth", str(folder)], cwd=ROOT, check=True)
    return load(folder)


def load(folder: Path) -> list[Found]:
    found = np.load(folder / "truth.npz")
    pairs = zip(found["ids"], found["first"], strict=True)
    return [Found(json.loads(str(ids)), first) for ids, first in pairs]


def save(folder: Path, found: Sequence[Found]) -> None:
    np.savez(
        folder / "truth.npz",
        ids=np.array([json.dumps(own.ids) for own in found]),
        first=np.stack([own.first for own in found]),
    )


def largest_difference(found: Sequence[Found], truth: Sequence[Found]) -> float:
    """Return the largest difference of first-token log-probabilities."""
    return max(float(np.abs(a.first - b.first).max()) for a, b in zip(found, truth, strict=True))


def equal_answers(found: Sequence[Found], truth: Sequence[Found]) -> int:
    return sum(a.ids == b.ids for a, b in zip(found, truth, strict=True))
