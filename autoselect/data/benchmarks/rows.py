"""The common form of all benchmarks: one image with its questions, as a LLaVA-style row."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase
from typing import Any, TypeVar

from autoselect.config import ConfigError
from autoselect.data.text_files import read_json_file
from autoselect.data.turns import IMAGE_PLACEHOLDER

Kind = TypeVar("Kind")
Row = dict[str, Any]
_KINDS: dict[type, str] = {dict: "JSON object", list: "list", str: "text"}
SHORT_ANSWER = "\nAnswer the question using a single word or phrase."
LETTER_ANSWER = "\nAnswer with the option's letter from the given choices directly."
LETTERS = ascii_uppercase


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
    for question in asked:
        if not question.answers:
            raise ConfigError(f"question {question.id} has no answers; is it the official file?")
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


def read_object(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; raise ConfigError if the file holds something else."""
    return _of_kind(read_json_file(path), dict, str(path), path)


def read_list(path: Path) -> list[Any]:
    """Return the list in a JSON file; raise ConfigError if the file holds something else."""
    return _of_kind(read_json_file(path), list, str(path), path)


def field(entry: Any, name: str, path: Path) -> Any:
    """Return a field of an official record; raise ConfigError if the record lacks it."""
    if not isinstance(entry, Mapping) or entry.get(name) is None:
        known = ", ".join(sorted(map(str, entry))) if isinstance(entry, Mapping) else repr(entry)
        hint = (
            "a test split is scored on the benchmark's own server, take the validation split"
            if name in ("answer", "answers", "label")
            else "is it the official file?"
        )
        raise ConfigError(f"{path}: a record has no {name!r} (found: {known[:200]}); {hint}")
    return entry[name]


def text_field(entry: Any, name: str, path: Path) -> str:
    """Return a field that must be text."""
    return _of_kind(field(entry, name, path), str, name, path)


def name_field(entry: Any, name: str, path: Path) -> str:
    """Return a field that must be text or a number, as text."""
    value = field(entry, name, path)
    return str(value) if isinstance(value, int) else _of_kind(value, str, name, path)


def list_field(entry: Any, name: str, path: Path) -> list[Any]:
    """Return a field that must be a list."""
    return _of_kind(field(entry, name, path), list, name, path)


def annotated(entry: Any, path: Path) -> tuple[str, ...]:
    """Return the annotators' answers of a VQA record."""
    return tuple(str(field(one, "answer", path)) for one in list_field(entry, "answers", path))


def _of_kind(value: Any, kind: type[Kind], name: str, path: Path) -> Kind:
    if not isinstance(value, kind):
        raise ConfigError(
            f"{path}: {name} must be a {_KINDS[kind]}, not {str(value)[:60]!r}; is it the official "
            "file?"
        )
    return value
