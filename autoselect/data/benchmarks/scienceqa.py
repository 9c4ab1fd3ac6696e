"""ScienceQA-IMG (Lu et al. 2022): the questions of a split that have an image, multiple choice."""

from collections.abc import Mapping
from pathlib import Path

from autoselect.config import ConfigError
from autoselect.data.benchmarks.rows import (
    LETTER_ANSWER,
    LETTERS,
    Question,
    Row,
    field,
    image_row,
    list_field,
    read_object,
    text_field,
    with_options,
)

SPLIT = "test"


def rows(files: Mapping[str, Path]) -> list[Row]:
    """Return the rows of `problems.json` for the test numbers in `pid_splits.json`."""
    path, splits = files["problems"], files["splits"]
    problems = read_object(path)
    found = []
    for number in list_field(read_object(splits), SPLIT, splits):
        problem = field(problems, str(number), path)
        if not field(problem, "choices", path) or not problem.get("image"):
            continue
        hint = f"Context: {problem['hint']}" if problem.get("hint") else ""
        choices = [str(choice) for choice in list_field(problem, "choices", path)]
        place = field(problem, "answer", path)
        if not isinstance(place, int) or not 0 <= place < min(len(choices), len(LETTERS)):
            raise ConfigError(
                f"{path}: problem {number} has answer={place!r}, which is none of its "
                f"{len(choices)} choices; is it the official file?"
            )
        question = Question(
            id=str(number),
            text=with_options(text_field(problem, "question", path), choices, hint) + LETTER_ANSWER,
            answers=(LETTERS[place],),
            task="scienceqa_img",
        )
        found.append(image_row(str(number), f"{number}/{problem['image']}", [question]))
    return found
