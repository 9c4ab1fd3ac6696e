"""VizWiz-VQA (Gurari et al. 2018): photographs by blind people, ten answers, some unanswerable."""

from collections.abc import Mapping
from pathlib import Path

from autoselect.data.benchmarks.rows import (
    SHORT_ANSWER,
    Question,
    Row,
    annotated,
    by_image,
    read_list,
    text_field,
)

UNANSWERABLE = (
    "\nWhen the provided information is insufficient, respond with 'Unanswerable'." + SHORT_ANSWER
)


def rows(files: Mapping[str, Path]) -> list[Row]:
    """Return the rows of `val.json`, a list."""
    path = files["questions"]
    found = []
    for number, entry in enumerate(read_list(path)):
        answers = annotated(entry, path)
        text = text_field(entry, "question", path) + UNANSWERABLE
        question = Question(str(number), text, answers, "vizwiz_vqa_val")
        found.append((text_field(entry, "image", path), question))
    return by_image(found)
