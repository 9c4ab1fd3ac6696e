"""TextVQA (Singh et al. 2019): questions about text in images, ten answers.

LLaVA's published 58.2 was measured with OCR tokens in the prompt; lmms-eval leaves them out by
default. The file `ocr` adds them.
"""

from collections.abc import Mapping
from pathlib import Path

from autoselect.data.benchmarks.rows import (
    SHORT_ANSWER,
    Question,
    Row,
    by_image,
    list_field,
    name_field,
    read_object,
    text_field,
)


def rows(files: Mapping[str, Path]) -> list[Row]:
    """Return the rows of `TextVQA_0.5.1_val.json`; `ocr` is `TextVQA_Rosetta_OCR_v0.2_val.json`."""
    path = files["questions"]
    tokens: dict[str, str] = {}
    if "ocr" in files:
        for entry in list_field(read_object(files["ocr"]), "data", files["ocr"]):
            words = list_field(entry, "ocr_tokens", files["ocr"])
            tokens[name_field(entry, "image_id", files["ocr"])] = ", ".join(map(str, words))
    found = []
    for entry in list_field(read_object(path), "data", path):
        image = name_field(entry, "image_id", path)
        reference = f"\nReference OCR token: {tokens[image]}" if image in tokens else ""
        question = Question(
            id=name_field(entry, "question_id", path),
            text=text_field(entry, "question", path).capitalize() + reference + SHORT_ANSWER,
            answers=tuple(str(answer) for answer in list_field(entry, "answers", path)),
            task="textvqa_val",
        )
        found.append((f"{image}.jpg", question))
    return by_image(found)
