"""Where answers end: end tokens of a model, and a given answer as the tokens that training uses."""

from collections.abc import Collection, Sequence
from typing import Any

from autoselect.config import ConfigError
from autoselect.data.turns import IMAGE_PLACEHOLDER
from autoselect.vlm.batches.dialogue import DialogueWriter, Round
from autoselect.vlm.text.tokens import end_ids


def up_to_end(ids: Sequence[int], ends: Collection[int]) -> list[int]:
    """Return the ids up to the first end token, which is included; all without one."""
    first = next((i for i, token in enumerate(ids) if token in ends), len(ids) - 1)
    return list(ids[: first + 1])


def answer_ids(vlm: Any, image_count: int, question: str, answer: str) -> list[int]:
    """Return the token ids of an answer and of its end, as they follow the question.

    The chat template says what stands before and after an answer. If it writes no end token, the
    model's own follows; if it cannot write an answer, the answer follows the question directly.

    Args:
        vlm: a `FrozenVLM`.
        image_count: images of the question.
        question: its text; images go first if its marks are not `image_count`.
        answer: text of the answer.
    """
    tokenizer = vlm.processor.tokenizer
    if question.count(IMAGE_PLACEHOLDER) != image_count:
        question = question.replace(IMAGE_PLACEHOLDER, "")
    try:
        writer = DialogueWriter(vlm, vlm.image_mark)
        (written,) = writer.conversation([Round(question, answer)], image_count)
        before, text = written.asked, written.answer
    except ConfigError:
        before, text = "", answer
    asked = tokenizer(before, add_special_tokens=False)["input_ids"]
    told = tokenizer(before + text, add_special_tokens=False)["input_ids"]
    ends = end_ids(vlm.model, tokenizer)
    ids = up_to_end(told[len(asked) :], ends)
    return ids if not ends or ids[-1:] and ids[-1] in ends else [*ids, ends[0]]
