"""MME (Fu et al. 2023): 14 subtasks, two yes/no questions per image, accuracy and accuracy+.

A subtask is a folder with images and texts beside each other, or in `images/` and
`questions_answers_YN/`. A text holds one line `question<TAB>Yes` per question.
"""

from collections.abc import Mapping
from pathlib import Path

from autoselect.config import ConfigError
from autoselect.data.benchmarks.rows import SHORT_ANSWER, Question, Row, image_row
from autoselect.data.text_files import read_lines

PERCEPTION = (
    "existence",
    "count",
    "position",
    "color",
    "posters",
    "celebrity",
    "scene",
    "landmark",
    "artwork",
    "OCR",
)
COGNITION = (
    "commonsense_reasoning",
    "numerical_calculation",
    "text_translation",
    "code_reasoning",
)
SUFFIXES = (".jpg", ".png", ".jpeg")
YES_OR_NO = " Please answer yes or no."
"""Ends every question; the short-answer line replaces it, as in lmms-eval."""


def rows(files: Mapping[str, Path]) -> list[Row]:
    """Return the rows of the folder `MME_Benchmark_release_version`."""
    root = files["images"]
    found = []
    for subtask in PERCEPTION + COGNITION:
        folder = root / subtask
        nested = folder / "questions_answers_YN"
        texts = sorted((nested if nested.is_dir() else folder).glob("*.txt"))
        if not texts:
            raise ConfigError(
                f"images={root} has no texts for the subtask {subtask}; unpack the whole "
                "MME_Benchmark_release_version"
            )
        pictures = folder / "images" if (folder / "images").is_dir() else folder
        for text in texts:
            image = next(
                (p for s in SUFFIXES if (p := pictures / f"{text.stem}{s}").is_file()),
                pictures / f"{text.stem}.jpg",
            )
            name = f"{subtask}/{text.stem}"
            questions = _questions(text, subtask, name)
            found.append(image_row(name, str(image.relative_to(root)), questions))
    return found


def _questions(path: Path, subtask: str, name: str) -> list[Question]:
    pairs = [line.split("\t") for line in read_lines(path) if line.strip()]
    if len(pairs) != 2 or any(len(p) != 2 or p[1].strip() not in ("Yes", "No") for p in pairs):
        raise ConfigError(f"{path} must hold two lines: question, tab, Yes or No")
    return [
        Question(
            f"{name}#{number}",
            text.replace(YES_OR_NO, "") + SHORT_ANSWER,
            (answer.strip(),),
            f"mme_{subtask}",
        )
        for number, (text, answer) in enumerate(pairs)
    ]
