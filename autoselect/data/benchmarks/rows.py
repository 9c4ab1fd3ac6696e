"""The common form of all benchmarks: one image with its questions, as a LLaVA-style row."""

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
        id: id of the question in the benchmark.
        text: the question with the instruction that says how to answer.
        answers: accepted answers; ten for VQA soft accuracy.
        task: name under which its score is reported, as in lmms-eval.
        target: answer in the conversation; if empty, the first accepted one.
    """

    id: str
    text: str
    answers: tuple[str, ...]
    task: str
    target: str = ""


def image_row(name: str, image: str, questions: Iterable[Question]) -> Row:
    """Return the row of one image: its conversation, and per round a task, answers and an id.

    `name` stands in lists of rejected rows, `image` is a path relative to the image folder, and
    `questions` holds at least one question.
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
        # Annotators may leave answers empty; one that is not comes first, to show that one exists.
        "answers": [sorted(q.answers, key=lambda answer: not answer.strip()) for q in asked],
        "question_ids": [question.id for question in asked],
    }


def by_image(asked: Iterable[tuple[str, Question]]) -> list[Row]:
    """Return one row per image with all its questions, in the order of first appearance."""
    groups: dict[str, list[Question]] = {}
    for image, question in asked:
        groups.setdefault(image, []).append(question)
    return [image_row(image, image, questions) for image, questions in groups.items()]


def with_options(question: str, options: Iterable[str], hint: str = "") -> str:
    """Return a multiple-choice text: hint, question, then a line `A. text` per option."""
    lines = [hint.strip()] if hint.strip() else []
    lines.append(question.strip())
    lines += [f"{LETTERS[i]}. {' '.join(text.split())}" for i, text in enumerate(options)]
    return "\n".join(lines)


def read_json(path: Path) -> Any:
    """Return the value of a JSON file; raise ConfigError if it cannot be read or parsed."""
    try:
        return json.loads(_read(path))
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON: {error}; download it again") from error


def read_json_lines(path: Path) -> list[Any]:
    """Return the values of a JSON-lines file; raise ConfigError if it cannot be read or parsed."""
    try:
        return [json.loads(line) for line in _read(path).splitlines() if line.strip()]
    except ValueError as error:
        raise ConfigError(f"{path} is not a file of JSON lines: {error}") from error


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}; check the path") from error


def field(entry: Mapping[str, Any], name: str, path: Path) -> Any:
    """Return a field of an official record; raise ConfigError if the record lacks it."""
    if not isinstance(entry, Mapping) or entry.get(name) is None:
        known = ", ".join(sorted(entry)) if isinstance(entry, Mapping) else type(entry).__name__
        hint = (
            "a test split is scored on the benchmark's own server, take the validation split"
            if name in ("answer", "answers", "label")
            else "is it the official file?"
        )
        raise ConfigError(f"{path}: a record has no {name!r} (found: {known}); {hint}")
    return entry[name]
