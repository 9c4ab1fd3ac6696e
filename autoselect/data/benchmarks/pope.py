"""POPE (Li et al. 2023): is an object in the image? Three ways to draw the absent objects."""

from collections.abc import Mapping
from pathlib import Path

from autoselect.config import ConfigError
from autoselect.data.benchmarks.rows import (
    SHORT_ANSWER,
    Question,
    Row,
    by_image,
    name_field,
    text_field,
)
from autoselect.data.text_files import read_json_lines

CATEGORIES = ("random", "popular", "adversarial")


def rows(files: Mapping[str, Path]) -> list[Row]:
    """Return the rows of the files `coco_pope_{random,popular,adversarial}.json` in a folder."""
    found = []
    for category in CATEGORIES:
        path = files["questions"] / f"coco_pope_{category}.json"
        for entry in read_json_lines(path):
            label = name_field(entry, "label", path).strip().lower()
            if label not in ("yes", "no"):
                raise ConfigError(f"{path}: label={label!r} must be yes or no")
            question = Question(
                id=f"{category}-{name_field(entry, 'question_id', path)}",
                text=text_field(entry, "text", path) + SHORT_ANSWER,
                answers=(label,),
                task=f"pope_{category}",
            )
            found.append((text_field(entry, "image", path), question))
    return by_image(found)
