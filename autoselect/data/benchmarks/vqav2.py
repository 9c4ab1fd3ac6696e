"""VQAv2 (Goyal et al. 2017): questions and ten annotators' answers on COCO images."""

from collections.abc import Mapping
from pathlib import Path

from autoselect.config import ConfigError
from autoselect.data.benchmarks.rows import (
    SHORT_ANSWER,
    Question,
    Row,
    annotated,
    by_image,
    field,
    list_field,
    name_field,
    read_object,
    text_field,
)


def rows(files: Mapping[str, Path]) -> list[Row]:
    """Return the rows of `v2_OpenEnded_mscoco_val2014_questions.json` and its annotations file."""
    asked, answered = files["questions"], files["annotations"]
    questions = read_object(asked)
    split = text_field(questions, "data_subtype", asked)
    answers = {
        name_field(entry, "question_id", answered): entry
        for entry in list_field(read_object(answered), "annotations", answered)
    }
    found = []
    for entry in list_field(questions, "questions", asked):
        number = name_field(entry, "question_id", asked)
        if number not in answers:
            raise ConfigError(f"{answered} has no answers to question_id={number} of {asked}")
        image = field(entry, "image_id", asked)
        if not isinstance(image, int):
            raise ConfigError(f"{asked}: image_id={image!r} must be a whole number")
        question = Question(
            id=number,
            text=text_field(entry, "question", asked) + SHORT_ANSWER,
            answers=annotated(answers[number], answered),
            task="vqav2_val",
            target=str(answers[number].get("multiple_choice_answer", "")),
        )
        found.append((f"COCO_{split}_{image:012d}.jpg", question))
    return by_image(found)
