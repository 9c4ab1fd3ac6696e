"""Images in text: where a question has them, and the placeholders of their visual tokens.

Where the number of tokens depends on the image, the model's own processor writes the placeholders.

Dimension letters: I images of a batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image
from torch import Tensor

from autoselect.config import ConfigError
from autoselect.data.record import IMAGE_PLACEHOLDER

OFFSETS = "text_replacement_offsets"


@dataclass(frozen=True)
class ProcessedImages:
    """What a processor makes of the images of a batch.

    Attributes:
        pixels: arguments of the model's `get_image_features`.
        texts: for each row, what takes the place of each of its image marks.
        counts: visual tokens of each image, in order, I numbers.
    """

    pixels: dict[str, Tensor]
    texts: list[list[str]]
    counts: list[int]


def question_content(question: str, num_images: int) -> list[dict[str, Any]]:
    """Content parts of a chat message: text, and an image at every mark of the question.

    Where the marks are not as many as the images, they are taken out and the images go first. White
    space at both ends is dropped, also where marks stand between it and the text, as in the
    "<image>\\n" that begins questions of LLaVA.

    Args:
        question: text with marks.
        num_images: images that it is asked about.
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
    """Pixels of a batch, and the text that the model's own processor writes for each image.

    Args:
        processor: of the model.
        rows: images of each row; rows without any take no part.
        placeholder: the token that stands for one visual token.

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
    if OFFSETS not in output:
        raise ConfigError(
            f"{type(processor).__name__} does not tell what it writes for an image, so its "
            "placeholders cannot be counted; train with another family of docs/backbones.md"
        )
    written = [[o["replacement"] for o in row] for row in output.pop(OFFSETS)]
    of_text = {"input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids"}
    pixels = {n: v for n, v in output.items() if isinstance(v, Tensor) and n not in of_text}
    counts = [text.count(placeholder) for row in written for text in row]
    texts = iter(written)
    return ProcessedImages(pixels, [next(texts) if row else [] for row in rows], counts)


def fixed_count(processor: Any, placeholder: str) -> int | None:
    """Placeholders that are the text of every image; None where it depends on the image.

    Two blank images of unlike shapes stand for all.

    Args:
        processor: of the model.
        placeholder: see `process_images`.
    """
    blanks = [Image.new("RGB", size) for size in ((64, 64), (192, 64))]
    texts = {process_images(processor, [[blank]], placeholder).texts[0][0] for blank in blanks}
    count = max(text.count(placeholder) for text in texts)
    return count if texts == {placeholder * count} else None


def image_mark(processor: Any, placeholder: str) -> str:
    """What a chat template writes for an image."""
    return str(getattr(processor, "image_token", None) or placeholder)


def fill_marks(text: str, mark: str, texts: Sequence[str]) -> str:
    """`text` with its image marks replaced, in order; what is written is not searched again."""
    pieces = text.split(mark)
    assert len(pieces) == len(texts) + 1, "a text for every mark"
    return pieces[0] + "".join(new + piece for new, piece in zip(texts, pieces[1:], strict=True))
