"""What a model cannot be trained on is a fault of its sample; rows are cut at rounds."""

import io
import logging
import re

import pytest
import torch
from PIL import Image

from autoselect.config import ConfigError
from autoselect.data.faults import BadSample
from autoselect.data.quarantine import Quarantine
from autoselect.data.shards import ShardSet, ShardWriter
from autoselect.evaluation.asking.asked_vlm import AskedVLM
from autoselect.evaluation.samples import EvaluationSample
from autoselect.vlm import Collator
from autoselect.vlm.batches.batch import IGNORED_LABEL
from tests.data.loaders import make_loader
from tests.vlm.conversations import (
    ROUNDS,
    SQUARE,
    WIDE,
    frozen,
    picture,
    sample,
    stock_loss,
)
from tests.vlm.stock import loss_of

LINE = picture(0, (420, 2))
LONG = ("is " * 60 + "?", "no")
SHORT = [("is there a red star ?", "no"), ("how many hearts are there ?", "3")]


def fault(collate, *samples):
    with pytest.raises(BadSample) as caught:
        collate(list(samples))
    return caught.value.fault


def same(one, other):
    for name in ("input_ids", "labels", "position_ids", "segments", "image_ids"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name
    assert one.pixels.keys() == other.pixels.keys()
    assert all(torch.equal(value, other.pixels[name]) for name, value in one.pixels.items())


@pytest.mark.parametrize("rounds", ["independent", "conversation"])
def test_images_that_the_processor_refuses_are_named(rounds):
    collate = Collator(frozen("qwen2_5_vl"), rounds)
    found = fault(collate, sample(0, (SQUARE,)), sample(1, (WIDE, LINE)), sample(2, ()))
    assert (found.kind, found.key, found.shard, found.offset) == (
        "unprocessable",
        "s1",
        "a.tar",
        512,
    )
    assert "48 x 24, 420 x 2 pixels: absolute aspect ratio" in found.detail


@pytest.mark.parametrize("error", [ValueError, ZeroDivisionError, RuntimeError])
def test_what_processors_raise_for_an_image_is_a_fault_of_its_sample(monkeypatch, error):
    """RuntimeError comes from the processors that use torchvision."""
    collate = Collator(frozen("llava_siglip"))
    process = collate.processor.image_processor

    def strict(images, **more):
        if any(image.size == WIDE.size for image in images):
            raise error("sides must be equal.")
        return process(images=images, **more)

    monkeypatch.setattr(collate.processor, "image_processor", strict)
    found = fault(collate, sample(0, (SQUARE,)), sample(1, (WIDE,)))
    assert (found.kind, found.key) == ("unprocessable", "s1")
    assert found.detail.endswith("refuses its images of 48 x 24 pixels: sides must be equal")


@pytest.mark.parametrize("name", ["llava_pixtral", "qwen2_5_vl"])
def test_an_image_that_the_processor_refuses_is_named_in_every_call(name):
    vlm, bad = frozen(name), Image.new("RGB", (1, 64)) if name == "llava_pixtral" else LINE
    said = f"refuses its images of {bad.width} x {bad.height} pixels: .*; leave it out or resize it"
    with pytest.raises(ConfigError, match=f"^sample 's1': {type(vlm.processor).__name__} {said}$"):
        vlm.encode_images([SQUARE, bad], names=["sample 's0'", "sample 's1'"])
    with pytest.raises(ConfigError, match=f"^row 1: .* {said}$"):
        vlm.encode_images([SQUARE, bad])
    assert vlm.refusal([SQUARE]) is None and vlm.refusal([]) is None
    asked = [
        EvaluationSample(f"s{number}", (image,), ("?",), (("a",),), ("t",), ((),))
        for number, image in enumerate((SQUARE, bad))
    ]
    with pytest.raises(ConfigError, match=f"^sample 's1': .* {said}$"):
        AskedVLM(vlm).encode(asked)


def test_an_error_about_no_image_surfaces_in_every_call():
    vlm = frozen("qwen2_5_vl")
    with pytest.raises(Exception) as caught:
        vlm.inputs([[SQUARE]], [vlm.image_mark * 2])
    assert not isinstance(caught.value, ConfigError)


@pytest.mark.parametrize("size", [(4000, 2), (2, 4000)])
def test_a_line_is_refused_before_a_processor_enlarges_it(size, monkeypatch):
    collate = Collator(frozen("llava_next"))
    monkeypatch.setattr(collate, "_pixels", lambda rows: pytest.fail("it was processed"))
    found = fault(collate, sample(1, (Image.new("RGB", size),)))
    assert (found.kind, found.key) == ("unprocessable", "s1")
    assert f"{size[0]} x {size[1]} pixels is too thin" in found.detail


@pytest.mark.parametrize("error", [TypeError, AttributeError, ConfigError])
def test_errors_that_are_no_fault_of_an_image_surface(monkeypatch, error):
    collate = Collator(frozen("qwen2_5_vl"))

    def broken(*arguments, **more):
        raise error("broken")

    monkeypatch.setattr("autoselect.vlm.batches.batch.process_images", broken)
    with pytest.raises(error, match="broken"):
        collate([sample(0, (SQUARE,))])


def test_an_error_that_no_sample_has_alone_surfaces(monkeypatch):
    collate = Collator(frozen("qwen2_5_vl"))
    pixels = collate._pixels

    def only_alone(rows):
        if len(rows) > 1:
            raise ValueError("not together")
        return pixels(rows)

    monkeypatch.setattr(collate, "_pixels", only_alone)
    with pytest.raises(ValueError, match="not together"):
        collate([sample(0, (SQUARE,)), sample(1, (WIDE,))])


@pytest.mark.parametrize("rounds", ["independent", "conversation"])
@pytest.mark.parametrize(
    ("name", "question", "answer", "text"),
    [
        ("qwen2_5_vl", "is <|image_pad|> there ?", "no", "turn 2 holds '<|image_pad|>'"),
        ("qwen2_5_vl", "is <|video_pad|> there ?", "no", "turn 2 holds '<|video_pad|>'"),
        ("qwen2_5_vl", "is there a star ?", "<image>", "turn 3 holds '<image>'"),
        ("llava_next", "is there a star ?", "no <image>", "turn 3 holds '<image>'"),
        ("ovis2", "is there a star ?", "<IMG_ATOM>", "turn 3 holds '<IMG_ATOM>'"),
        ("gemma3", "<start_of_image> ?", "no", "turn 2 holds '<start_of_image>'"),
    ],
)
def test_placeholders_in_the_text_are_named(name, rounds, question, answer, text):
    collate = Collator(frozen(name), rounds)
    bad = sample(1, (SQUARE,), [ROUNDS[0], (question, answer)])
    found = fault(collate, sample(0, (SQUARE,)), bad)
    assert (found.kind, found.key) == ("placeholder_text", "s1") and text in found.detail


def test_text_without_images_may_hold_no_placeholder_either():
    rounds = [("is there a star ?", "<image>")]
    found = fault(Collator(frozen("llava_next")), sample(0, (), rounds))
    assert found.kind == "placeholder_text"


@pytest.mark.parametrize("rounds", ["independent", "conversation"])
def test_placeholders_that_only_the_tokenizer_makes_are_counted(rounds):
    """A normaliser may read other characters as a placeholder."""
    collate = Collator(frozen("llava_next"), rounds)
    collate.reserved = re.compile("(?!)")
    found = fault(collate, sample(0, (SQUARE,), [("is there a star ?", "no <image>")]))
    assert found.kind == "placeholder_text" and "37 tokens '<image>' for 36" in found.detail


@pytest.mark.parametrize("count", [1, 3])
def test_marks_that_are_not_as_many_as_images_are_named(count):
    question = "<image>" * count + "what ?"
    found = fault(Collator(frozen("llava_next")), sample(0, (SQUARE, WIDE), [(question, "no")]))
    assert found.kind == "wrong_json" and f"{count} <image> placeholders for 2" in found.detail


@pytest.mark.parametrize("answer", [None, "", " \n"])
@pytest.mark.parametrize("rounds", ["independent", "conversation"])
def test_a_sample_without_an_answer_is_named(rounds, answer):
    silent = sample(0, (SQUARE,), [])
    silent.record["conversations"] = [{"from": "human", "value": "is there a red star ?"}]
    if answer is not None:
        silent.record["conversations"].append({"from": "gpt", "value": answer})
    assert fault(Collator(frozen("llava_next"), rounds), silent).kind == "no_answer"


@pytest.mark.parametrize("rounds", ["independent", "conversation"])
def test_a_template_that_leaves_images_out_is_named(rounds):
    vlm = frozen("llava_next")
    vlm.processor.chat_template = vlm.processor.chat_template.replace("'<image>' if", "'' if")
    found = fault(Collator(vlm, rounds), sample(0, (SQUARE,)))
    assert found.kind == "unprocessable" and "0 '<image>' for 1 images" in found.detail


@pytest.mark.parametrize("rounds", ["independent", "conversation"])
def test_nothing_that_fits_is_a_fault(rounds):
    collate = Collator(frozen("llava_next"), rounds, max_text_tokens=60)
    found = fault(collate, sample(0, (SQUARE,), [LONG]))
    assert found.kind == "too_long" and "data.max_text_tokens=60" in found.detail


def test_a_conversation_is_cut_at_the_first_round_that_does_not_fit():
    collate = Collator(frozen("llava_next"), "conversation", max_text_tokens=60)
    pictures = (SQUARE,)
    cut = collate([sample(0, pictures, [SHORT[0], LONG, SHORT[1]])])
    assert collate.dropped_rounds == 2
    same(cut, collate([sample(0, pictures, SHORT[:1])]))


@pytest.mark.parametrize("limit", range(45, 70))
def test_a_cut_row_has_the_most_rounds_that_fit(limit):
    vlm, rounds, pictures = frozen("llava_next"), [*SHORT, *SHORT], (SQUARE,)
    whole = Collator(vlm, "conversation")
    sizes = [whole([sample(0, pictures, rounds[: n + 1])]).input_ids.shape[1] for n in range(4)]
    fitting = sum(size <= limit for size in sizes)
    cut = Collator(vlm, "conversation", limit)
    if not fitting:
        assert fault(cut, sample(0, pictures, rounds)).kind == "too_long"
    else:
        same(cut([sample(0, pictures, rounds)]), whole([sample(0, pictures, rounds[:fitting])]))


def test_independent_rounds_that_do_not_fit_are_left_out():
    collate = Collator(frozen("llava_next"), "independent", max_text_tokens=80)
    for place in range(3):
        rounds = [*SHORT[:place], LONG, *SHORT[place:]]
        same(collate([sample(0, (SQUARE,), rounds)]), collate([sample(0, (SQUARE,), SHORT)]))
    assert collate.dropped_rounds == 3


def test_images_of_rounds_that_are_cut_go_too():
    collate = Collator(frozen("qwen2_5_vl"), "conversation", max_text_tokens=60)
    first, later = ("<image>\nis there a red star ?", "no"), (f"<image>\n{LONG[0]}", "no")
    cut = collate([sample(0, (SQUARE, WIDE), [first, later]), sample(1, (WIDE,), SHORT)])
    same(cut, collate([sample(0, (SQUARE,), [first]), sample(1, (WIDE,), SHORT)]))


@torch.no_grad()
def test_an_image_that_is_left_alone_has_the_tokens_of_one_alone():
    """LLaVA-OneVision: 17 tokens beside another image, 52 alone."""
    vlm = frozen("llava_onevision")
    rounds = [(f"<image>\n{question}", "no") for question in (ROUNDS[0][0], LONG[0])]
    cut, other = sample(0, (WIDE, SQUARE), rounds), sample(1, (SQUARE,))
    collate = Collator(vlm, "conversation", max_text_tokens=70)
    batch = collate([cut, other])
    assert (batch.num_images, collate.dropped_rounds) == (2, 1)
    same(batch, collate([sample(0, (WIDE,), rounds[:1]), other]))
    expected = stock_loss(vlm, (WIDE,), ROUNDS[:1]) + stock_loss(vlm, (SQUARE,), ROUNDS)
    torch.testing.assert_close(loss_of(vlm, batch), expected, rtol=1e-4, atol=1e-4)
    found = fault(Collator(vlm, "conversation", max_text_tokens=40), cut)
    assert found.kind == "too_long" and "its images take 52" in found.detail


def test_left_out_rounds_are_logged_at_a_falling_rate(caplog):
    collate = Collator(frozen("llava_next"), "independent", max_text_tokens=80)
    with caplog.at_level(logging.WARNING):
        for _ in range(12):
            collate([sample(0, (SQUARE,), [LONG, *SHORT])])
    lines = [record.getMessage() for record in caplog.records]
    assert [line.split()[0] for line in lines] == ["1", "10"]
    assert "data.max_text_tokens=80" in lines[0]


def test_blanks_are_no_faults():
    blank = sample(0, (), [])
    blank.record["conversations"] = [{"from": "human", "value": ""}]
    for limit in (2048, 1):
        batch = Collator(frozen("llava_next"), max_text_tokens=limit)([blank])
        assert not bool((batch.labels != IGNORED_LABEL).any())


def write_shards(folder, pictures, rounds):
    """Write two bad samples among good ones: a line of pixels, and a placeholder in the text."""
    with ShardWriter(folder) as writer:
        for number in range(6):
            image = LINE if number == 1 else pictures[number % 2]
            asked = [("<|image_pad|> ?", "no")] if number == 4 else rounds
            stream = io.BytesIO()
            image.save(stream, "PNG")
            writer.write(f"s{number}", sample(number, (), asked).record, [stream.getvalue()])
    return ShardSet.open(str(folder))


@pytest.mark.parametrize("rounds", ["independent", "conversation"])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_run_goes_on_past_what_the_model_refuses(tmp_path, rounds, workers):
    shards = write_shards(tmp_path / "shards", (SQUARE, WIDE), SHORT)
    quarantine = Quarantine(len(shards), budget=0.5)
    collate = Collator(frozen("qwen2_5_vl"), rounds)
    options = {"seed": 0, "micro_batch": 3, "stop_step": 2, "workers": workers}
    loader = make_loader(shards, collate, quarantine=quarantine, **options)
    batches = [batch for step in loader for batch in step]
    assert {(f.key, f.kind) for f in quarantine.faults} == {
        ("s1", "unprocessable"),
        ("s4", "placeholder_text"),
    }
    assert sum(batch.num_images for batch in batches) == 4
    silent = [row for b in batches for row in b.labels if not bool((row != IGNORED_LABEL).any())]
    assert len(silent) == 2
