"""SEED-Bench (Li et al. 2023): multiple choice; the nine dimensions that ask about images."""

from collections.abc import Mapping
from pathlib import Path

from autoselect.data.benchmarks.rows import (
    LETTER_ANSWER,
    Question,
    Row,
    by_image,
    field,
    list_field,
    name_field,
    read_object,
    text_field,
    with_options,
)


def rows(files: Mapping[str, Path]) -> list[Row]:
    """Return the rows of `SEED-Bench.json` whose `data_type` is image; skip those about videos."""
    path = files["questions"]
    found = []
    for entry in list_field(read_object(path), "questions", path):
        if field(entry, "data_type", path) != "image":
            continue
        options = [str(field(entry, f"choice_{letter}", path)) for letter in "abcd"]
        question = Question(
            id=name_field(entry, "question_id", path),
            text=with_options(text_field(entry, "question", path), options) + LETTER_ANSWER,
            answers=(text_field(entry, "answer", path),),
            task="seedbench",
        )
        found.append((name_field(entry, "data_id", path), question))
    return by_image(found)
