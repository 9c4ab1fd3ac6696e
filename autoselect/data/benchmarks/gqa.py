"""GQA (Hudson and Manning 2019): compositional questions, one answer each, exact match."""

from collections.abc import Mapping
from pathlib import Path

from autoselect.data.benchmarks.rows import SHORT_ANSWER, Question, Row, by_image, field, read_json


def rows(files: Mapping[str, Path]) -> list[Row]:
    """Rows of `testdev_balanced_questions.json`, a mapping of question ids.

    Raises:
        ConfigError: the file is not the official one, or has no answers.
    """
    path = files["questions"]
    found = []
    for number, entry in read_json(path).items():
        question = Question(
            id=str(number),
            text=field(entry, "question", path) + SHORT_ANSWER,
            answers=(str(field(entry, "answer", path)),),
            task="gqa",
        )
        found.append((f"{field(entry, 'imageId', path)}.jpg", question))
    return by_image(found)
