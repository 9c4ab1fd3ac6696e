"""Images stand where a question marks them, in training and in evaluation."""

import pytest
import torch
import torch.nn.functional as F

from autoselect.evaluation.asking.asked_vlm import AskedVLM
from autoselect.vlm import Collator
from autoselect.vlm.batches.batch import IGNORED_LABEL, MOST_IMAGES
from autoselect.vlm.text.placeholders import question_content
from tests.vlm.conversations import NAMES, SQUARE, WIDE, frozen, sample
from tests.vlm.stock import loss_of

BETWEEN = "is <image> there or <image> a star ?"
LATER = [("<image>\nis there a red star ?", "no"), ("what does <image> say ?", "K7")]


def outline(content):
    return ["*" if part["type"] == "image" else part["text"] for part in content]


@pytest.mark.parametrize(
    ("question", "images", "parts"),
    [
        ("<image>\nwhat ?", 1, ["*", "what ?"]),
        ("<image>\n<image>\n what ? ", 2, ["*", "*", "what ?"]),
        ("what ?\n<image>", 1, ["what ?", "*"]),
        (" is <image> like <image>?\n", 2, ["is ", "*", " like ", "*", "?"]),
        ("is <image><image> <image> it", 3, ["is ", "*", "*", " ", "*", " it"]),
        ("what ?", 2, ["*", "*", "what ?"]),
        ("what <image>?", 2, ["*", "*", "what ?"]),
        ("<image>\nwhat ?", 0, ["what ?"]),
        ("<image>", 1, ["*", ""]),
        ("", 0, [""]),
        ("", 1, ["*", ""]),
    ],
)
def test_parts_of_a_question(question, images, parts):
    assert outline(question_content(question, images)) == parts


def messages_of(rounds):
    """Write a conversation with its marks, by hand."""
    messages = []
    for question, answer in rounds:
        pieces = question.split("<image>")
        content = [{"type": "text", "text": pieces[0]}] if pieces[0] else []
        for piece in pieces[1:]:
            content += [{"type": "image"}, {"type": "text", "text": piece.lstrip("\n")}]
        messages += [
            {"role": "user", "content": content},
            {"role": "assistant", "content": [{"type": "text", "text": answer}]},
        ]
    return messages


def stock(vlm, messages, pictures):
    """Return the untouched model's inputs and its loss on `K7</s>`, tokens found nowhere else."""
    text = vlm.processor.apply_chat_template(messages, tokenize=False)
    inputs = vlm.processor(
        images=[list(pictures)], text=[text], return_tensors="pt", add_special_tokens=False
    )
    logits, ids = vlm.model(**inputs).logits[0, :-1], inputs["input_ids"][0]
    answer = int((ids == vlm.processor.tokenizer.convert_tokens_to_ids("K7")).nonzero())
    rows = slice(answer - 1, answer + 1)
    return ids.tolist(), F.cross_entropy(logits[rows], ids[answer : answer + 2], reduction="sum")


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_images_of_later_turns_have_the_loss_of_the_untouched_model(name):
    vlm, pictures = frozen(name), (SQUARE, WIDE)
    batch = Collator(vlm, "conversation")([sample(3, pictures, LATER)])
    ids, loss = stock(vlm, messages_of(LATER), pictures)
    assert batch.input_ids[0].tolist() == ids
    assert batch.image_ids.tolist() == [3 * MOST_IMAGES, 3 * MOST_IMAGES + 1]
    answers = (batch.labels[0] != IGNORED_LABEL).nonzero()[:, 0]
    batch.labels[0, answers[:-2]] = IGNORED_LABEL
    torch.testing.assert_close(loss_of(vlm, batch), loss, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("rounds", ["independent", "conversation"])
@torch.no_grad()
def test_images_between_words_have_the_loss_of_the_untouched_model(name, rounds):
    vlm, pictures, asked = frozen(name), (WIDE, SQUARE), [(BETWEEN, "K7")]
    batch = Collator(vlm, rounds)([sample(0, pictures, asked)])
    ids, loss = stock(vlm, messages_of(asked), pictures)
    assert batch.input_ids[0].tolist() == ids
    torch.testing.assert_close(loss_of(vlm, batch), loss, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_independent_rounds_share_the_text_up_to_the_last_image(name):
    vlm, pictures = frozen(name), (WIDE, SQUARE)
    asked = [(BETWEEN, "no"), ("what does the sign say ?", "K7")]
    batch = Collator(vlm, "independent")([sample(0, pictures, asked)])
    alone = messages_of([("is <image> there or <image>what does the sign say ?", "K7")])
    ids, loss = stock(vlm, alone, pictures)
    seen = (batch.segments[0] == -1) | (batch.segments[0] == 1)
    assert batch.input_ids[0][seen].tolist() == ids
    batch.labels[batch.segments != 1] = IGNORED_LABEL
    torch.testing.assert_close(loss_of(vlm, batch), loss, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_independent_rounds_are_about_all_images(name):
    """Marks of later questions do not stand: every question is asked about every image."""
    vlm, pictures = frozen(name), (SQUARE, WIDE)
    bare = [(question.replace("<image>", ""), answer) for question, answer in LATER]
    collate = Collator(vlm, "independent")
    marked, unmarked = (collate([sample(0, pictures, rounds)]) for rounds in (LATER, bare))
    assert torch.equal(marked.input_ids, unmarked.input_ids)


@pytest.mark.parametrize("question", [BETWEEN, "is it a star ?", "<image>\n<image>\nhow many ?"])
def test_evaluation_asks_as_training_does(question):
    vlm, pictures = frozen("qwen2_5_vl"), (SQUARE, WIDE)
    asked = AskedVLM(vlm)
    text = asked.prompt(2, question) + "no</s>"
    ids = vlm.inputs([pictures], [text])["input_ids"][0].tolist()
    for rounds in ("independent", "conversation"):
        batch = Collator(vlm, rounds)([sample(0, pictures, [(question, "no")])])
        assert batch.input_ids[0].tolist() == ids
