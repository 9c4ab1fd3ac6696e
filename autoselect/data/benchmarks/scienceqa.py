"""ScienceQA-IMG (Lu et al. 2022): the questions of a split that have an image, multiple choice."""

from collections.abc import Mapping
from pathlib import Path

from autoselect.data.benchmarks.rows import (
    LETTER_ANSWER,
    LETTERS,
    Question,
    Row,
    field,
    image_row,
    read_json,
    with_options,
)

SPLIT = "test"


def rows(files: Mapping[str, Path]) -> list[Row]:
    """Return the rows of `problems.json` for the test numbers in `pid_splits.json`."""
    problems, splits = read_json(files["problems"]), files["splits"]
    found = []
    for number in field(read_json(splits), SPLIT, splits):
        problem = field(problems, str(number), files["problems"])
        if not problem.get("image"):
            continue
        hint = f"Context: {problem['hint']}" if problem.get("hint") else ""
        choices = field(problem, "choices", files["problems"])
        question = Question(
            id=str(number),
            text=with_options(problem["question"], choices, hint) + LETTER_ANSWER,
            answers=(LETTERS[field(problem, "answer", files["problems"])],),
            task="scienceqa_img",
        )
        found.append(image_row(str(number), f"{number}/{problem['image']}", [question]))
    return found
