"""The chat template for LLaVA-1.5 writes what LLaVA was trained on."""

from pathlib import Path

import pytest

from autoselect.vlm import Collator
from autoselect.vlm.batches.batch import IGNORED_LABEL
from autoselect.vlm.batches.dialogue import DialogueWriter, Round
from tests.vlm.conversations import SQUARE, frozen, sample

TEMPLATE = Path(__file__).parents[2] / "configs" / "models" / "llava-1.5.jinja"
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the user's questions. "
)
ROUNDS = [Round("<image>\nwhat is it ?", "a star"), Round("is it red ?", "no")]


@pytest.fixture
def vlm():
    model = frozen("llava_next")
    model.processor.chat_template = TEMPLATE.read_text()
    return model


def text_of(written):
    return "".join(one.asked + one.answer for one in written)


def test_a_conversation_is_that_of_the_original_code(vlm):
    first = f"{SYSTEM}USER: <image>\nwhat is it ? ASSISTANT: a star</s>"
    expected = f"{first}USER: is it red ? ASSISTANT: no</s>"
    writer = DialogueWriter(vlm, "<image>")
    assert text_of(writer.conversation(ROUNDS, 1)) == expected
    behind = [Round("what is it ?\n<image>", "a star"), ROUNDS[1]]
    assert text_of(writer.conversation(behind, 1)) == expected
    first, second = writer.independent(ROUNDS, 1)
    assert first.asked == f"{SYSTEM}USER: <image>\nwhat is it ? ASSISTANT:"
    assert (first.answer, second.answer) == (" a star</s>", " no</s>")


@pytest.mark.parametrize("rounds", ["independent", "conversation"])
def test_the_end_of_an_answer_is_a_label(vlm, rounds):
    batch = Collator(vlm, rounds)([sample(0, (SQUARE,), [("what ?", "no"), ("is it ?", "no")])])
    labels = batch.labels[batch.labels != IGNORED_LABEL].tolist()
    assert labels == vlm.processor.tokenizer("no</s>no</s>")["input_ids"]
