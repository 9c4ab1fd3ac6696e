"""VizWiz-VQA (Gurari et al. 2018): photographs by blind people, ten answers, some unanswerable."""

from collections.abc import Mapping
from pathlib import Path

from autoselect.data.benchmarks.rows import SHORT_ANSWER, Question, Row, by_image, field, read_json

UNANSWERABLE = (
    "\nWhen the provided information is insufficient, respond with 'Unanswerable'." + SHORT_ANSWER
)


def rows(files: Mapping[str, Path]) -> list[Row]:
    """Return the rows of `val.json`, a list."""
    path = files["questions"]
    found = []
    for number, entry in enumerate(read_json(path)):
        answers = tuple(str(answer["answer"]) for answer in field(entry, "answers", path))
        text = field(entry, "question", path) + UNANSWERABLE
        question = Question(str(number), text, answers, "vizwiz_vqa_val")
        found.append((field(entry, "image", path), question))
    return by_image(found)
