"""VQAv2 (Goyal et al. 2017): questions and ten annotators' answers on COCO images."""

from collections.abc import Mapping
from pathlib import Path

from autoselect.config import ConfigError
from autoselect.data.benchmarks.rows import SHORT_ANSWER, Question, Row, by_image, field, read_json


def rows(files: Mapping[str, Path]) -> list[Row]:
    """Return the rows of `v2_OpenEnded_mscoco_val2014_questions.json` and its annotations file."""
    asked, annotated = files["questions"], files["annotations"]
    questions = read_json(asked)
    split = field(questions, "data_subtype", asked)
    answers = {
        entry["question_id"]: entry
        for entry in field(read_json(annotated), "annotations", annotated)
    }
    found = []
    for entry in field(questions, "questions", asked):
        number = field(entry, "question_id", asked)
        if number not in answers:
            raise ConfigError(f"{annotated} has no answers to question_id={number} of {asked}")
        given = [str(answer["answer"]) for answer in answers[number]["answers"]]
        question = Question(
            id=str(number),
            text=entry["question"] + SHORT_ANSWER,
            answers=tuple(given),
            task="vqav2_val",
            target=str(answers[number].get("multiple_choice_answer", "")),
        )
        found.append((f"COCO_{split}_{int(entry['image_id']):012d}.jpg", question))
    return by_image(found)
