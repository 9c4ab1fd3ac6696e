"""GQA (Hudson and Manning 2019): compositional questions, one answer each, exact match."""

from collections.abc import Mapping
from pathlib import Path

from autoselect.data.benchmarks.rows import (
    SHORT_ANSWER,
    Question,
    Row,
    by_image,
    name_field,
    read_object,
    text_field,
)


def rows(files: Mapping[str, Path]) -> list[Row]:
    """Return the rows of `testdev_balanced_questions.json`, a mapping by question id."""
    path = files["questions"]
    found = []
    for number, entry in read_object(path).items():
        question = Question(
            id=str(number),
            text=text_field(entry, "question", path) + SHORT_ANSWER,
            answers=(name_field(entry, "answer", path),),
            task="gqa",
        )
        found.append((f"{name_field(entry, 'imageId', path)}.jpg", question))
    return by_image(found)
