"""Make reference pages and their questions; seed, split and index decide all pixels and texts."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from autoselect.reference.clutter import Split
from autoselect.reference.documents.canvas import Mark, Printed
from autoselect.reference.documents.charts import chart
from autoselect.reference.documents.sheets import Made, form, receipt, table
from autoselect.reference.documents.signs import labels, sign
from autoselect.reference.questions import Question
from autoselect.reference.scenes import SPLIT_IDS

PAGE_FAMILIES = ("document", "chart", "ocr", "sign")
KINDS: dict[str, Callable[[np.random.Generator, Split], Made]] = {
    "receipt": receipt,
    "chart": chart,
    "form": form,
    "labels": labels,
    "table": table,
    "sign": sign,
}
_DOMAIN = 20


@dataclass(frozen=True)
class Page:
    """A page: its kind, its words and marks with positions, its questions and the image."""

    kind: str
    words: tuple[Printed, ...]
    marks: tuple[Mark, ...]
    questions: tuple[Question, ...]
    image: Image.Image


def make_page(seed: int, split: Split, index: int) -> Page:
    """Draw a page of a split; the same arguments give the same page."""
    rng = np.random.default_rng([seed, SPLIT_IDS[split], index, _DOMAIN])
    kind = list(KINDS)[index % len(KINDS)]
    canvas, questions = KINDS[kind](rng, split)
    order = rng.permutation(len(questions))
    shuffled = tuple(questions[int(i)] for i in order)
    return Page(kind, tuple(canvas.words), tuple(canvas.marks), shuffled, canvas.finished())


def ask_page(page: Page, most: int) -> list[Question]:
    """Return the first `most` questions of a page that have different texts."""
    asked: dict[str, Question] = {}
    for question in page.questions:
        asked.setdefault(question.question, question)
    return list(asked.values())[:most]
