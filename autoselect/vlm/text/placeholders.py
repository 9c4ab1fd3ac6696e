"""Place images in the text of a question, and write the placeholders of their visual tokens.

If the number of tokens depends on the image, the processor of the model writes the placeholders.

Dimension letters: I images of a batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from autoselect.config import ConfigError
from autoselect.data.turns import IMAGE_PLACEHOLDER

OFFSETS = "text_replacement_offsets"


@dataclass(frozen=True)
class ProcessedImages:
    """Output of a processor for the images of a batch.

    Attributes:
        pixels: arguments of the model's `get_image_features`.
        texts: for each row, the text that replaces each of its image marks.
        counts: visual tokens of each image, in order, I numbers.
    """

    pixels: dict[str, Any]
    texts: list[list[str]]
    counts: list[int]


def question_content(question: str, num_images: int) -> list[dict[str, Any]]:
    """Split a question into the parts of a chat message: text, and an image at every mark.

    If the number of marks differs from the number of images, marks are removed and images go first.
    White space at both ends of the text is dropped, such as the line break after the mark in LLaVA.
    """
    pieces = question.split(IMAGE_PLACEHOLDER)
    if len(pieces) != num_images + 1:
        pieces = [""] * num_images + ["".join(pieces)]
    written = [place for place, piece in enumerate(pieces) if piece.strip()] or [num_images]
    first, last = written[0], written[-1]
    pieces[first] = pieces[first].lstrip()
    pieces[last] = pieces[last].rstrip()
    content: list[dict[str, Any]] = []
    for place, piece in enumerate(pieces):
        if place:
            content.append({"type": "image"})
        if first <= place <= last and (piece or first == last):
            content.append({"type": "text", "text": piece})
    return content


def process_images(
    processor: Any, rows: Sequence[Sequence[Image.Image]], placeholder: str
) -> ProcessedImages:
    """Return the pixels of a batch, and the text that the processor writes for each image.

    Raises:
        ConfigError: the processor does not tell what it writes for an image.
    """
    with_images = [list(row) for row in rows if row]
    if not with_images:
        return ProcessedImages({}, [[] for _ in rows], [])
    mark = image_mark(processor, placeholder)
    output = processor(
        images=with_images,
        text=[mark * len(row) for row in with_images],
        return_tensors="pt",
        padding=True,
        return_text_replacement_offsets=True,
    )
    written = written_texts(processor, output, with_images)
    of_text = {"input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids"}
    pixels = {n: v for n, v in output.items() if n not in of_text}
    counts = [text.count(placeholder) for row in written for text in row]
    texts = iter(written)
    return ProcessedImages(pixels, [next(texts) if row else [] for row in rows], counts)


def written_texts(
    processor: Any, output: Any, rows: Sequence[Sequence[Image.Image]]
) -> list[list[str]]:
    """Return the text that a processor wrote for each image of each row.

    Args:
        processor: processor of the model.
        output: what it returned for the rows; what it reports of its texts is removed.
        rows: images of each row.

    Raises:
        ConfigError: the processor neither reports it nor tells it when asked.
    """
    if (offsets := output.pop(OFFSETS, None)) is not None:
        return [[offset["replacement"] for offset in row] for row in offsets]
    total = sum(map(len, rows))
    try:
        texts = iter([processor.replace_image_token(output, number) for number in range(total)])
    except NotImplementedError as error:
        raise ConfigError(
            f"{type(processor).__name__} does not report what it writes for an image, so its "
            "placeholders cannot be counted; train with another family of docs/backbones.md"
        ) from error
    return [[next(texts) for _ in row] for row in rows]


def fixed_count(processor: Any, placeholder: str) -> int | None:
    """Return the number of placeholder tokens per image if every image has the same, else None.

    Probed with two blank images of different shapes.
    """
    blanks = [Image.new("RGB", size) for size in ((64, 64), (192, 64))]
    texts = {process_images(processor, [[blank]], placeholder).texts[0][0] for blank in blanks}
    count = max(text.count(placeholder) for text in texts)
    return count if texts == {placeholder * count} else None


def image_mark(processor: Any, placeholder: str) -> str:
    return str(getattr(processor, "image_token", None) or placeholder)


def fill_marks(text: str, mark: str, texts: Sequence[str]) -> str:
    """Replace the image marks of `text` in order; replacements may contain the mark."""
    pieces = text.split(mark)
    assert len(pieces) == len(texts) + 1, "a text for every mark"
    return pieces[0] + "".join(new + piece for new, piece in zip(texts, pieces[1:], strict=True))
