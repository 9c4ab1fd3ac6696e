"""MM-Vet (Yu et al. 2023): open questions, graded by a language model on the official server."""

from collections.abc import Mapping
from pathlib import Path

from autoselect.data.benchmarks.rows import (
    Question,
    Row,
    field,
    image_row,
    name_field,
    read_object,
    text_field,
)


def rows(files: Mapping[str, Path]) -> list[Row]:
    """Return the rows of `mm-vet.json`, each with the `capability` list for the grader."""
    path = files["questions"]
    found = []
    for number, entry in read_object(path).items():
        answer = name_field(entry, "answer", path)
        question = Question(number, text_field(entry, "question", path), (answer,), "mmvet")
        row = image_row(number, text_field(entry, "imagename", path), [question])
        found.append(row | {"capability": field(entry, "capability", path)})
    return found
