"""What every benchmark becomes: one image with its questions, as a LLaVA-style row."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoselect.config import ConfigError
from autoselect.data.record import IMAGE_PLACEHOLDER

Row = dict[str, Any]
SHORT_ANSWER = "\nAnswer the question using a single word or phrase."
LETTER_ANSWER = "\nAnswer with the option's letter from the given choices directly."
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class Question:
    """One question about an image.

    Attributes:
        id: as the benchmark numbers it.
        text: with the instruction that says how to answer.
        answers: accepted ones; ten for VQA soft accuracy.
        task: the name under which its score is reported, as in lmms-eval.
        target: the answer that stands in the conversation; the first accepted one when empty.
    """

    id: str
    text: str
    answers: tuple[str, ...]
    task: str
    target: str = ""


def image_row(name: str, image: str, questions: Iterable[Question]) -> Row:
    """A row of one image: the conversation, and per round `tasks`, `answers`, `question_ids`.

    Args:
        name: of the row, as lists of rejected rows show it.
        image: path within the image folder.
        questions: at least one.
    """
    asked = list(questions)
    turns = []
    for number, question in enumerate(asked):
        mark = f"{IMAGE_PLACEHOLDER}\n" if number == 0 else ""
        text = question.text.replace(IMAGE_PLACEHOLDER, "")
        turns.append({"from": "human", "value": mark + text})
        turns.append({"from": "gpt", "value": question.target or question.answers[0]})
    return {
        "id": name,
        "image": image,
        "conversations": turns,
        "tasks": [question.task for question in asked],
        # Annotators may leave an answer empty; the first one shows that there is an answer at all.
        "answers": [sorted(q.answers, key=lambda answer: not answer.strip()) for q in asked],
        "question_ids": [question.id for question in asked],
    }


def by_image(asked: Iterable[tuple[str, Question]]) -> list[Row]:
    """One row per image with all its questions, in the order of first appearance."""
    groups: dict[str, list[Question]] = {}
    for image, question in asked:
        groups.setdefault(image, []).append(question)
    return [image_row(image, image, questions) for image, questions in groups.items()]


def with_options(question: str, options: Iterable[str], hint: str = "") -> str:
    """A multiple-choice question: hint, question, then a line `A. text` per option."""
    lines = [hint.strip()] if hint.strip() else []
    lines.append(question.strip())
    lines += [f"{LETTERS[i]}. {' '.join(text.split())}" for i, text in enumerate(options)]
    return "\n".join(lines)


def read_json(path: Path) -> Any:
    """The value of a JSON file.

    Raises:
        ConfigError: it cannot be read, or is no JSON.
    """
    try:
        return json.loads(_read(path))
    except ValueError as error:
        raise ConfigError(f"{path} is no JSON: {error}; download it again") from error


def read_json_lines(path: Path) -> list[Any]:
    """The values of a file with one JSON value per line.

    Raises:
        ConfigError: it cannot be read, or a line is no JSON.
    """
    try:
        return [json.loads(line) for line in _read(path).splitlines() if line.strip()]
    except ValueError as error:
        raise ConfigError(f"{path} is no file of JSON lines: {error}") from error


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}; check the path") from error


def field(entry: Mapping[str, Any], name: str, path: Path) -> Any:
    """A field of an official record.

    Raises:
        ConfigError: the record lacks it, so the file is not the official one, or has no answers.
    """
    if not isinstance(entry, Mapping) or entry.get(name) is None:
        known = ", ".join(sorted(entry)) if isinstance(entry, Mapping) else type(entry).__name__
        hint = (
            "a test split is scored on the benchmark's own server, take the validation split"
            if name in ("answer", "answers", "label")
            else "is it the official file?"
        )
        raise ConfigError(f"{path}: a record has no {name!r} (found: {known}); {hint}")
    return entry[name]
